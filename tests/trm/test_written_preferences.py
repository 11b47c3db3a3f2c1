from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trm.worlds import colour_world
from trm.errors import DataFormatError
from trm.written_preferences import Prefix, hidden_titles, names_title, read_written_preferences

WORLD = colour_world(num_users=6)
HEADER = {"format": 1, "dataset": "colours", "fingerprint": WORLD.fingerprint, "model": "m", "prompts": 1}


def written(path: Path, *records: object, header: object = HEADER) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in (header, *records)))
    return path


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("something like toy story, please", "Toy Story (1995)"),
        ("a HEAT wave", "Heat (1995)"),
        ("the matrix and its like", "The Matrix (1999)"),
        ("more star wars", "Star Wars: Episode IV - A New Hope (1977)"),
        ("Pokemon? no, ＰＯＫＥＭＯＮ", "Pokemon"),
        ("a gauge for pressure of 200 psi with glycerin", "Acme Gauge for Pressure of 200 PSI, brass, 2 inch"),
    ],
)
def test_a_text_that_names_a_title_is_known(text: str, title: str) -> None:
    assert names_title(text, title)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("stories about toys", "Toy Story (1995)"),
        ("films of 1995", "Heat (1995)"),
        ("the best", "The Matrix (1999)"),
        ("a star", "Star: The Movie"),
        ("preheated", "Heat (1995)"),
        ("a gauge for pressure", "Acme Gauge for Pressure of 200 PSI, brass, 2 inch"),
        ("anything", "?!"),
    ],
)
def test_a_text_that_shares_words_with_a_title_is_none(text: str, title: str) -> None:
    assert not names_title(text, title)


def test_a_beginning_hides_what_comes_after_it_in_training_and_nothing_else() -> None:
    sequence = WORLD.splits.train_sequence(2)
    assert hidden_titles(Prefix(2, 4), WORLD) == [f"Widget {item_id}" for item_id in sequence[4:]]
    assert hidden_titles(7, WORLD) == ["Widget 7"]


def test_texts_are_read_by_item_and_by_beginning(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        {"item": 7, "texts": ["blue and round"], "left_out": {"title": 2}},
        {"item": 8, "texts": [], "left_out": {}},
        {"user": 2, "length": 4, "texts": ["bright things", "flat ones"], "left_out": {}},
    )
    path.write_text(path.read_text() + '{"item": 9, "tex')  # cut short
    found = read_written_preferences(path, WORLD)
    assert dict(found.by_item) == {7: ("blue and round",)}
    assert dict(found.by_prefix) == {Prefix(2, 4): ("bright things", "flat ones")}
    assert found.num_texts == 3
    other = read_written_preferences(written(tmp_path / "b.jsonl", {"item": 7, "texts": ["red"]}), WORLD)
    assert other.fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"item": 7, "texts": ["like widget 7"]}, "names 'Widget 7'"),
        ({"item": 61, "texts": []}, "item 61"),
        ({"user": 6, "length": 1, "texts": []}, "user 6"),
        ({"user": 0, "length": 10, "texts": []}, "the first 10 items of user 0"),
        ({"texts": []}, "KeyError"),
        ([], "TypeError"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, record: object, said: str) -> None:
    path = written(tmp_path / "a.jsonl", {"item": 1, "texts": ["red"]}, record)
    with pytest.raises(DataFormatError, match=rf"a\.jsonl:3: expected written preferences, got .*{said}"):
        read_written_preferences(path, WORLD)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({**HEADER, "format": 2}, "a.jsonl:1: expected a file of written preferences, got .*format 2"),
        ({**HEADER, "fingerprint": "0"}, "another state of colours"),
        ("text", "a.jsonl:1: expected a file of written preferences"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, header: object, said: str) -> None:
    with pytest.raises(DataFormatError, match=said):
        read_written_preferences(written(tmp_path / "a.jsonl", header=header), WORLD)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataFormatError, match="expected a file of written preferences"):
        read_written_preferences(tmp_path / "empty.jsonl", WORLD)
