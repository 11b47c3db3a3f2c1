"""Files of ids: a line a user."""

import pytest

from trm.data.sources.assemble import Filters
from trm.data.sources.ids import read_ids
from trm.errors import DataFormatError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "Games.txt"
    path.write_text("0 5 6 7\n\n1 7 5 7 8\n2 9\n")
    return path


def test_a_line_is_a_history(path):
    dataset = read_ids(path)
    assert dataset.name == "ids-Games"
    assert dataset.interactions.user_ids == ("0", "1")
    assert [[dataset.catalog.title(i) for i in dataset.interactions.history(u)] for u in (0, 1)] == [
        ["5", "6", "7"],
        ["7", "5", "7", "8"],
    ]
    assert dataset.report["users_with_too_few_items"] == 1
    assert not dataset.catalog.has_texts


def test_filters_apply(path):
    assert read_ids(path, filters=Filters(min_interactions=4)).interactions.user_ids == ("1",)


def test_errors_name_file_and_line(path):
    path.write_text("0 5 6 7\n1 7\n0 8\n")
    with pytest.raises(DataFormatError, match=r"Games\.txt:3: expected one line a user, got '0' as in line 1"):
        read_ids(path)
    path.write_text("\n")
    with pytest.raises(DataFormatError, match="expected lines such as"):
        read_ids(path)


def test_the_real_file(real_data):
    path = real_data / "ids" / "Games.txt"
    if not path.is_file():
        pytest.skip("needs DEEPREC_DATA/ids/Games.txt")
    dataset = read_ids(path)
    interactions = dataset.interactions
    assert (interactions.num_users, dataset.catalog.num_items, interactions.num_interactions) == (
        50_546,
        16_859,
        452_989,
    )
