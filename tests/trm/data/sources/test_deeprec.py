"""The original DeepRec layout: read, written, and there and back without loss."""

import json

import numpy as np
import pytest

from trm.data.sources.deeprec import read_deeprec
from trm.data.sources.deeprec_export import TRMArrays, write_deeprec
from trm.errors import DataFormatError

META = {
    "3": {"title": "Tea", "categories": ["Drink", "Hot"]},
    "1": {"title": "Ice", "category": "Cold"},
    "2": {"title": "Nothing"},
    "4": {"title": "Never taken", "categories": ["Drink"]},
}
LINES = {
    "test": [{"idx": 7, "history": [1, 2, 3], "target": 1}, {"idx": 9, "history": [3, 1], "target": 2}],
    "valid": [{"idx": 7, "history": [1, 2], "target": 3}, {"idx": 9, "history": [3], "target": 1}],
    "train": [{"idx": 7, "history": [1], "target": 2}],
}


def write_layout(folder, *, meta=META, lines=LINES):
    (folder / "Retrieval").mkdir(parents=True, exist_ok=True)
    (folder / "Retrieval" / "meta.json").write_text(json.dumps(meta))
    for split, records in lines.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "Retrieval" / f"{split}_id.jsonl").write_text(text)
    return folder


def records_of(folder):
    files = folder / "Retrieval"
    meta = json.loads((files / "meta.json").read_text())
    lines = {
        split: [json.loads(line) for line in (files / f"{split}_id.jsonl").read_text().splitlines()]
        for split in ("test", "valid", "train")
    }
    return meta, lines


def assert_equal_datasets(one, two):
    assert list(one.catalog) == list(two.catalog)
    assert one.interactions.user_ids == two.interactions.user_ids
    for name in ("offsets", "item_ids", "timestamps"):
        np.testing.assert_array_equal(getattr(one.interactions, name), getattr(two.interactions, name))


def test_a_layout_is_read(tmp_path):
    dataset = read_deeprec(write_layout(tmp_path / "Toys"))
    assert dataset.name == "deeprec-Toys"
    assert [(item.source_id, item.title) for item in dataset.catalog] == [
        ("3", "Tea"),
        ("1", "Ice"),
        ("2", "Nothing"),
        ("4", "Never taken"),
    ]
    assert [dict(item.attributes) for item in dataset.catalog][:3] == [
        {"categories": ("Drink", "Hot")},
        {"category": ("Cold",)},
        {},
    ]
    assert dataset.interactions.user_ids == ("7", "9")
    assert [dataset.interactions.history(user).tolist() for user in (0, 1)] == [[2, 3, 1, 2], [1, 2, 3]]
    example = dataset.splits.example("valid", 0)
    assert (example.history, example.target) == ((2, 3), 1)


def test_a_layout_comes_back_as_it_was(tmp_path):
    write_deeprec(read_deeprec(write_layout(tmp_path / "one")), tmp_path / "two")
    assert records_of(tmp_path / "two") == (META, LINES)


def test_categories_that_are_one_text_come_back_as_one_text(tmp_path):
    meta = {str(place): {"title": f"T{place}", "categories": "A, B" if place == 1 else ""} for place in (1, 2, 3)}
    dataset = read_deeprec(write_layout(tmp_path / "one", meta=meta))
    assert dataset.catalog[1].attributes == {"categories": ("A", "B")}
    write_deeprec(dataset, tmp_path / "two")
    assert records_of(tmp_path / "two")[0] == meta


def test_a_data_set_comes_back_as_it_was(tmp_path, dataset):
    """Titles, kinds of attributes, descriptions, years, ids that are no numbers, timestamps; v has 2 items only."""
    write_deeprec(dataset, tmp_path / "layout")
    again = read_deeprec(tmp_path / "layout")
    assert list(again.catalog) == list(dataset.catalog)
    assert again.interactions.user_ids == ("u", "w")
    for before, after in ((0, 0), (2, 1)):
        np.testing.assert_array_equal(again.interactions.history(after), dataset.interactions.history(before))
    assert again.interactions.timestamps.tolist() == [1, 3, 3, 9, 1, 2, 3]
    write_deeprec(again, tmp_path / "twice")
    for path in (tmp_path / "layout").rglob("*.json*"):
        assert path.read_bytes() == (tmp_path / "twice" / path.relative_to(tmp_path / "layout")).read_bytes()
    assert_equal_datasets(read_deeprec(tmp_path / "twice"), again)


def test_what_the_recommender_adds(tmp_path, dataset):
    texts, ids = (np.arange(5 * width, dtype=np.float32).reshape(5, width) for width in (3, 2))
    arrays = TRMArrays(item_text_vectors=texts, item_id_vectors=ids, ranks=np.array([1, 101]))
    write_deeprec(dataset, tmp_path / "layout", trm=arrays)
    np.testing.assert_array_equal(np.load(tmp_path / "layout" / "Retrieval" / "meta.embeddings.npy"), texts)
    np.testing.assert_array_equal(np.load(tmp_path / "layout" / "Retrieval" / "embeddings.npy"), ids)
    subsets = json.loads((tmp_path / "layout" / "RL" / "data_idx_two_stage.json").read_text())
    assert subsets == {"top0_100_stage1": [0], "top0_100_stage2": []}
    lines = (tmp_path / "layout" / "RL" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"idx": 0, "history": "1. Hugo Pool (1997)", "target": "Pok\u00e9mon"},
    ]


def test_histories_that_were_cut_are_put_together(tmp_path):
    lines = {
        "test": [{"idx": 7, "history": [3, 1], "target": 2}],
        "valid": [{"idx": 7, "history": [2, 3], "target": 1}],
        "train": [{"idx": 7, "history": [1, 2], "target": 3}, {"idx": 7, "history": [1], "target": 2}],
    }
    dataset = read_deeprec(write_layout(tmp_path, lines=lines))
    assert [dataset.catalog[item].source_id for item in dataset.interactions.history(0)] == ["1", "2", "3", "1", "2"]
    assert dataset.report["training_lines_of_no_known_sequence"] == 0


def test_training_lines_of_others_are_counted_and_left_out(tmp_path, caplog):
    train = [*LINES["train"], {"idx": 9, "history": [2], "target": 2}, {"idx": 1, "history": [2], "target": 1}]
    dataset = read_deeprec(write_layout(tmp_path, lines={**LINES, "train": train}))
    assert dataset.report["training_lines_of_no_known_sequence"] == 2
    assert "2 lines are no part of the sequence" in caplog.text
    assert dataset.interactions.num_interactions == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": [{"idx": 7, "history": [1, 8], "target": 1}]}, r"test_id\.jsonl:1: expected items of .* the id '8'"),
        ({"test": [{"idx": 7, "history": [1], "target": 1}]}, r"test_id\.jsonl:1: expected a history of two"),
        ({"test": [LINES["test"][0]] * 2}, r"test_id\.jsonl:2: expected one line a user"),
        ({"test": [{"idx": 7, "target": 1}]}, r"test_id\.jsonl:1: expected idx, history"),
        ({"test": []}, r"test_id\.jsonl: expected lines of users"),
        ({"valid": [{"idx": 5, "history": [1], "target": 1}]}, r"valid_id\.jsonl:1: expected a user of test_id"),
        (
            {"valid": [{"idx": 7, "history": [2], "target": 1}]},
            r"valid_id\.jsonl:1: expected the test history of idx 7",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path, change, message):
    lines = {**LINES, "valid": [] if "test" in change else LINES["valid"], "train": [], **change}
    with pytest.raises(DataFormatError, match=message):
        read_deeprec(write_layout(tmp_path, lines=lines))


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path, dataset):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="new or empty folder"):
        write_deeprec(dataset, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"
