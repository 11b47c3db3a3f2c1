"""Two CSV files: which column is what, quoted fields, times of several kinds, and bad rows."""

import gzip

import pytest

from trm.data.sources.csv_files import read_csv
from trm.errors import DataFormatError

INTERACTIONS = """user_id,item_id,timestamp
7,x1,2020-01-02
7,x2,1577836800
7,"x,3",1577836800500
7,x9,2020-01-02T00:00:00.001Z
"""
ITEMS = '''item_id,title,genre,price,description,year
x1,"Tea, green",drink|hot,3.50,"A tea
of two lines",1999
x2,,cold,1,,
"x,3","The ""Net""",,,,
x8,Never taken,drink,,,
'''


@pytest.fixture
def files(tmp_path):
    (tmp_path / "log.csv").write_text(INTERACTIONS)
    (tmp_path / "items.csv").write_text("\ufeff" + ITEMS, encoding="utf-8")
    return tmp_path / "log.csv", tmp_path / "items.csv"


def test_columns_by_their_names(files):
    dataset = read_csv(*files, name="shop")
    assert [item.title for item in dataset.catalog] == ["Tea, green", "x2", 'The "Net"', "x9"]
    assert [dict(item.attributes) for item in dataset.catalog] == [
        {"genre": ("drink", "hot"), "decade": ("1990s",)},
        {"genre": ("cold",)},
        {},
        {},
    ]
    assert dataset.catalog[1].description == "A tea of two lines"
    assert [dataset.catalog[item].source_id for item in dataset.interactions.history(0)] == ["x2", "x,3", "x1", "x9"]
    day_1, day_2 = 1_577_836_800_000, 1_577_923_200_000
    assert dataset.interactions.timestamps.tolist() == [day_1, day_1 + 500, day_2, day_2 + 1]
    entries = ("items_without_title", "items_not_described", "items_never_taken")
    assert [dataset.report[entry] for entry in entries] == [1, 1, 1]


def test_attributes_may_be_chosen_and_files_gzipped(files):
    zipped = tuple(path.with_name(path.name + ".gz") for path in files)
    for path, target in zip(files, zipped):
        target.write_bytes(gzip.compress(path.read_bytes()))
    catalog = read_csv(*zipped, name="shop", attributes=[]).catalog
    assert {kind for item in catalog for kind in item.attributes} == {"decade"}
    with pytest.raises(DataFormatError, match=r"items\.csv\.gz:1: expected a column colour"):
        read_csv(*zipped, name="shop", attributes=["colour"])


@pytest.mark.parametrize(
    ("which", "text", "message"),
    [
        (0, "", r"log\.csv:1: expected a header"),
        (0, "user_id,item_id\n", r"log\.csv: expected interactions, got none"),
        (0, "who,item_id\n", r"log\.csv:1: expected a column user_id or"),
        (0, INTERACTIONS + "7,x1\n", r"log\.csv:6: expected 3 fields, got 2"),
        (0, INTERACTIONS + "7,x1,yesterday\n", r"log\.csv:6: expected a Unix time or an ISO date, got 'yesterday'"),
        (0, INTERACTIONS + "7,x1,nan\n", r"log\.csv:6: expected a Unix time"),
        (0, INTERACTIONS + "7,x1,1e999\n", r"log\.csv:6: expected a Unix time"),
        (1, ITEMS + ",No id,,,,\n", r"items\.csv:7: expected the id of an item"),
        (0, INTERACTIONS.replace(",", ";"), r"log\.csv:1: expected columns split by ',', got one column that holds"),
        (1, ITEMS.replace(",", "\t"), r"items\.csv:1: expected columns split by ',', got one column that holds"),
        (1, ITEMS + '"never closed', r"items\.csv:7: expected a row of a table, .* does a quote lack its end"),
    ],
)
def test_errors_name_file_and_line(files, which, text, message):
    files[which].write_text(text)
    with pytest.raises(DataFormatError, match=message):
        read_csv(*files, name="shop")
