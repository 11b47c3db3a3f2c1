"""RecBole's atomic files: columns by their types, histories without times, and files that are something else."""

import pytest

from trm.data.sources.assemble import Filters
from trm.data.sources.recbole import read_recbole
from trm.errors import DataFormatError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"{user}\t{item}\t5\t{time}\n"
    for user, item, time in [("u", "b", 3), ("u", "a", 1.5), ("u", "c", 2), ("u", "a", 4)]
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float\ttags:token_seq\n"
    "c\tThe \"Net\t1995\tAction Sci-Fi\t3.5\t'Big Cities', 'Spies'\n"
    "a\tHeat\t\tCrime\t1.0\t\n"
    "z\tNever seen\t\tWar\t1.0\t\n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "films.inter").write_text(INTER)
    (tmp_path / "films.item").write_text(ITEM)
    return tmp_path


def test_tokens_describe_items_and_floats_do_not(folder):
    dataset = read_recbole(folder)
    assert dataset.name == "recbole-films"
    assert [item.title for item in dataset.catalog] == ['The "Net', "Heat", "b"]
    assert dict(dataset.catalog[1].attributes) == {
        "class": ("Action", "Sci-Fi"),
        "tags": ("Big Cities", "Spies"),
        "decade": ("1990s",),
    }
    assert dict(dataset.catalog[2].attributes) == {"class": ("Crime",)}
    assert dataset.catalog[1].year == 1995
    assert dataset.interactions.history(0).tolist() == [2, 1, 3, 2]
    assert dataset.interactions.timestamps.tolist() == [1500, 2000, 3000, 4000]
    assert (dataset.report["items_not_described"], dataset.report["items_never_taken"]) == (1, 1)


def test_without_items_and_times_the_file_is_the_order(folder):
    (folder / "films.item").unlink()
    lines = [line.split("\t") for line in INTER.splitlines()]
    (folder / "films.inter").write_text("\n".join("\t".join(fields[:3]) for fields in lines))
    dataset = read_recbole(folder, filters=Filters(drop_repeats=True))
    assert [dataset.catalog.title(item) for item in dataset.interactions.history(0)] == ["b", "a", "c"]
    assert not dataset.catalog.has_texts


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("films.inter", "user_id\titem_id\n", r"films\.inter:1: expected columns such as 'item_id:token'"),
        ("films.inter", "user_id:token\trating:float\n", r"films\.inter:1: expected a column item_id or item"),
        ("films.inter", INTER + "u\tb\n", r"films\.inter:6: expected 4 fields, got 2"),
        ("films.inter", INTER + "u\t\t5\t9\n", r"films\.inter:6: expected a user and an item"),
        ("films.inter", INTER + "u\tb\t5\tnoon\n", r"films\.inter:6: expected a Unix time"),
        ("films.item", "item_id:token\n\n\ta\n", r"films\.item:3: expected 1 fields, got 2"),
        ("other.inter", INTER, r"expected one file \*\.inter, got \['films\.inter', 'other\.inter'\]"),
    ],
)
def test_errors_name_file_and_line(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(DataFormatError, match=message):
        read_recbole(folder)
