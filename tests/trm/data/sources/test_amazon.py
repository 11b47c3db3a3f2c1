"""Amazon Reviews, 2023 and 2018: what is kept, how items without a title are named, and broken files."""

import gzip
import json
import re

import pytest

from trm.data.sources.amazon import AMAZON_2018, AMAZON_2023, read_amazon
from trm.data.sources.assemble import Filters
from trm.errors import DataFormatError

META = [
    {
        "parent_asin": "A1",
        "title": "Bolts &amp; Nuts, 1&quot;",
        "store": "Acme",
        "categories": ["Hand Tools", "Bolts", "Bolts"],
        "main_category": "Hand Tools",
        "description": ["Made of <b>steel</b>.", "&lt;br&gt;Strong"],
    },
    {"parent_asin": "A2", "title": None, "store": "Acme", "categories": [], "main_category": "Hand Tools"},
    {"parent_asin": "A3", "title": "  ", "store": None, "categories": None, "features": ["Sharp"]},
    {"parent_asin": "A9", "title": "Never bought", "store": "Acme"},
    {"parent_asin": "A1", "title": "The same again", "store": "Acme"},
]
REVIEWS = [
    ("u", "A1", 2000),
    ("u", "A2", 1000),
    ("u", "A3", 1000),
    ("u", "A1", 3000),
    ("u", "A4", 1500),
    ("v", "A1", 1000),
    ("w", "A1", 1),
    ("w", "A2", 1),
    ("w", "A2", 1),
    ("w", "A1", 1),
]
AT_LEAST_4 = Filters(min_interactions=4, drop_repeats=True)


def review(user, item, time):
    return json.dumps({"user_id": user, "parent_asin": item, "asin": "child", "timestamp": time, "rating": 5.0})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Hand_Tools.jsonl").write_text("".join(review(*row) + "\n" for row in REVIEWS))
    (tmp_path / "meta_Hand_Tools.jsonl").write_text("".join(json.dumps(row) + "\n" for row in META))
    return tmp_path


def test_titles_attributes_and_descriptions(folder):
    catalog = read_amazon(folder, "Hand_Tools", filters=AT_LEAST_4).catalog
    assert [item.title for item in catalog] == ['Bolts & Nuts, 1"', "Acme A2", "A3", "A4"]
    assert [dict(item.attributes) for item in catalog] == [
        {"brand": ("Acme",), "categories": ("Bolts",)},
        {"brand": ("Acme",)},
        {},
        {},
    ]
    assert [item.description for item in catalog] == ["Made of steel . Strong", "", "Sharp", ""]
    assert {item.year for item in catalog} == {None}


def test_the_account_says_what_was_dropped(folder):
    dataset = read_amazon(folder, "Hand_Tools", filters=AT_LEAST_4)
    assert dataset.name == "amazon-Hand_Tools"
    assert dataset.interactions.user_ids == ("u",)
    assert dataset.interactions.history(0).tolist() == [2, 3, 4, 1]  # A1 once, when it was first bought
    nonzero = {entry: value for entry, value in dataset.report.items() if value}
    assert nonzero == {
        "source": "Hand_Tools.jsonl, meta_Hand_Tools.jsonl",
        "filters": "at least 4 interactions a user, 0-core, repeats dropped",
        "interactions_read": 10,
        "users_below_min_interactions": 1,  # v
        "interactions_of_users_below_min": 1,
        "duplicated_rows": 2,  # w took A1 and A2 twice at one time
        "repeated_interactions_dropped": 3,  # u's second A1, two of w's
        "users_with_too_few_items": 1,  # w has two items
        "interactions_of_users_with_too_few_items": 2,
        "titles_with_entities": 1,
        "items_without_title": 2,
        "items_without_description": 1,
        "items_described_twice": 1,
        "items_never_taken": 1,
        "items_not_described": 1,
        "users": 1,
        "items": 4,
        "interactions": 4,
    }


def test_the_account_is_logged(folder, caplog):
    with caplog.at_level("INFO", logger="trm"):
        read_amazon(folder, "Hand_Tools", filters=AT_LEAST_4)
    assert re.search(r"\nrepeated interactions dropped +3\n", caplog.text)


def test_repeats_are_kept_unless_they_are_to_be_dropped(folder):
    dataset = read_amazon(folder, "Hand_Tools", filters=Filters(min_interactions=4))
    titles = [[dataset.catalog.title(item) for item in dataset.interactions.history(user)] for user in range(2)]
    a1, a2 = 'Bolts & Nuts, 1"', "Acme A2"
    assert titles == [[a2, "A3", "A4", a1, a1], [a1, a2, a2, a1]]
    assert dataset.report["repeated_interactions_kept"] == 3
    assert dataset.report["repeated_interactions_dropped"] == 0


def test_k_core_is_applied_until_nothing_falls(tmp_path):
    # The k-core is users a, b, c on items 1, 2, 3; d hangs on it by item 4, which falls first.
    pairs = [(user, item) for user in "abc" for item in "123"] + [("d", "1"), ("d", "2"), ("d", "4")]
    (tmp_path / "X.jsonl").write_text("".join(review(user, item, 1) + "\n" for user, item in pairs))
    (tmp_path / "meta_X.jsonl").write_text("")
    dataset = read_amazon(tmp_path, "X", filters=Filters(k_core=3))
    assert dataset.interactions.user_ids == ("a", "b", "c")
    assert dataset.report["users_outside_core"] == 1
    assert dataset.report["interactions_outside_core"] == 3
    assert dataset.report["items_outside_core"] == 1


def test_a_core_that_drops_over_half_warns(tmp_path, caplog):
    pairs = [(user, item) for user in "abc" for item in "123"]
    pairs += [(f"lone{user}", f"own{user}-{item}") for user in range(4) for item in range(3)]
    (tmp_path / "X.jsonl").write_text("".join(review(user, item, 1) + "\n" for user, item in pairs))
    (tmp_path / "meta_X.jsonl").write_text("")
    read_amazon(tmp_path, "X", filters=Filters(k_core=3))
    said = "the 3-core drops over half: 4 of 7 users, 12 of 15 items, 12 of 21 interactions"
    assert said in caplog.text
    caplog.clear()
    read_amazon(tmp_path, "X", filters=Filters(k_core=1))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_raw_files_of_2018(tmp_path):
    def line(user, item, time):
        return json.dumps({"reviewerID": user, "asin": item, "overall": 4.0, "unixReviewTime": time}) + "\n"

    (tmp_path / "Hand_Tools_5.json").write_text("".join(line("u", f"A{item}", 9 - item) for item in range(1, 6)))
    meta = [
        {
            "asin": "A1",
            "title": "Bolt &amp; Nut <b>new</b>",
            "brand": "by\n   Acme",
            "category": ["Hand Tools", "Bolts"],
        },
        {
            "asin": "A2",
            "title": "var x = new Date(); x.getTime()",
            "brand": "",
            "feature": ["Sharp"],
            "description": [],
        },
        {"asin": "A3", "title": "Cable <3 in", "category": ["</span></span>", "Cables"], "description": ["Long"]},
        {"asin": "A3", "title": "Again"},
    ]
    text = "".join(json.dumps(record) + "\n" for record in meta)
    (tmp_path / "meta_Hand_Tools.json.gz").write_bytes(gzip.compress(text.encode()))
    dataset = read_amazon(tmp_path, "Hand_Tools", layout=AMAZON_2018)
    assert dataset.name == "amazon-2018-Hand_Tools"
    assert [item.title for item in dataset.catalog] == ["Bolt & Nut new", "A2", "Cable <3 in", "A4", "A5"]
    assert [dict(item.attributes) for item in dataset.catalog][:3] == [
        {"brand": ("Acme",), "categories": ("Bolts",)},
        {},
        {"categories": ("Cables",)},
    ]
    assert [dataset.catalog[item].source_id for item in dataset.interactions.history(0)] == [
        "A5",
        "A4",
        "A3",
        "A2",
        "A1",
    ]
    assert dataset.interactions.timestamps.tolist() == [4000, 5000, 6000, 7000, 8000]
    with pytest.raises(FileNotFoundError, match=r"Books_5\.json or Books\.json\[\.gz\]|Books_5\.json\[\.gz\] or Books"):
        read_amazon(tmp_path, "Books", layout=AMAZON_2018)


def test_gzipped_files_give_the_same(folder, tmp_path_factory):
    zipped = tmp_path_factory.mktemp("zipped")
    for path in folder.iterdir():
        (zipped / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    plain = read_amazon(folder, "Hand_Tools", filters=AT_LEAST_4)
    assert list(read_amazon(zipped, "Hand_Tools", filters=AT_LEAST_4).catalog) == list(plain.catalog)


def test_gzipped_files_cut_short_are_noticed(folder):
    path = folder / "Hand_Tools.jsonl"
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()
    with pytest.raises(DataFormatError, match=r"Hand_Tools\.jsonl\.gz:\d+: expected a whole gzip file"):
        read_amazon(folder, "Hand_Tools")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"Hand_Tools\.jsonl:11: expected a JSON object"),
        ("[1]", r"Hand_Tools\.jsonl:11: expected a JSON object"),
        ('{"parent_asin": "A1", "timestamp": 1}', r":11: expected a review with 'user_id'"),
        ('{"parent_asin": "A1", "user_id": "u", "timestamp": "noon"}', r":11: expected a whole number as 'timestamp'"),
    ],
)
def test_bad_lines_are_named(folder, line, message):
    with (folder / "Hand_Tools.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataFormatError, match=message):
        read_amazon(folder, "Hand_Tools")


def test_text_that_is_not_utf8_is_named(folder):
    (folder / "meta_Hand_Tools.jsonl").write_bytes(b'{"parent_asin": "\xff"}\n')
    with pytest.raises(DataFormatError, match=r"meta_Hand_Tools\.jsonl:1: expected utf-8 text"):
        read_amazon(folder, "Hand_Tools", filters=AT_LEAST_4)


def test_filters_that_leave_nobody_say_so(folder):
    with pytest.raises(DataFormatError, match=r"at least 50 interactions a user, .* got none of 10"):
        read_amazon(folder, "Hand_Tools", filters=Filters(min_interactions=50))


def test_a_missing_file_is_named(folder):
    assert AMAZON_2023.find(folder, "Hand_Tools") is not None
    (folder / "meta_Hand_Tools.jsonl").unlink()
    assert AMAZON_2023.find(folder, "Hand_Tools") is None
    with pytest.raises(FileNotFoundError, match=r"meta_Hand_Tools\.jsonl"):
        read_amazon(folder, "Hand_Tools")


def test_real_industrial_and_scientific(real_data):
    category = "Industrial_and_Scientific"
    if AMAZON_2023.find(real_data / "amazon", category) is None:
        pytest.skip(f"needs DEEPREC_DATA/amazon/{category}.jsonl.gz and its meta file")
    dataset = read_amazon(real_data / "amazon", category)
    assert (dataset.splits.num_users, dataset.catalog.num_items) == (3_285, 3_541)
    assert dataset.interactions.num_interactions == dataset.report["interactions_read"] == 22_743
    assert dataset.report["repeated_interactions_kept"] == 22_743 - 21_664  # distinct pairs
    assert not [item.title for item in dataset.catalog if "&amp;" in item.title or not item.title.strip()]
