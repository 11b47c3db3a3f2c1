"""The reader gives what its files say."""

import my_deeprec_dataset

from trm.data.plugins import DatasetReader, read_plugin


def test_four_functions_make_a_data_set():
    assert isinstance(my_deeprec_dataset, DatasetReader)
    dataset = read_plugin(my_deeprec_dataset, name="my_loans", filters=my_deeprec_dataset.filters())
    assert dataset.interactions.num_users == 29  # r30 has two loans only
    assert dataset.report["users_below_min_interactions"] == 1
    assert dataset.report["items_not_described"] == 1  # b99 stands in no catalogue, and is named by its id
    assert dataset.catalog.title(1) == "The Silent Inspector"
    assert dataset.catalog[1].attributes["genres"] == ("crime",)
