from __future__ import annotations

import numpy as np
import pytest

from tests.trm.worlds import COLOURS, SHAPES, colour_world
from trm.data.catalog import Catalog, Item
from trm.preferences import _TEMPLATES, PreferenceWriter

CATALOG = colour_world().catalog


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def mentioned(text: str) -> set[str]:
    return {value for value in (*COLOURS, *SHAPES) if value in text}


def test_informative_names_all_attributes_and_one_names_one():
    writer = PreferenceWriter(CATALOG)
    for item_id in (1, 7, 30):
        attributes = {COLOURS[item_id % 5], SHAPES[item_id % 3]}
        for seed in range(20):
            assert mentioned(writer.informative(item_id, rng(seed))) == attributes
            assert len(mentioned(writer.one(item_id, rng(seed)))) == 1
            assert mentioned(writer.one(item_id, rng(seed))) <= attributes
            assert 1 <= len(mentioned(writer.some(item_id, rng(seed)))) <= 2


def test_titles_never_enter_a_preference():
    writer = PreferenceWriter(CATALOG)
    texts = [write(i, rng(i)) for i in range(1, 61) for write in (writer.informative, writer.some, writer.one)]
    assert not any("widget" in text.casefold() for text in texts)


def test_vague_depends_on_the_given_prefix_alone():
    writer = PreferenceWriter(CATALOG)
    reds = [5, 10, 20, 25]  # colour 0 is red; shapes 2, 1, 2, 1
    for seed in range(20):
        text = writer.vague(reds, rng(seed))
        assert mentioned(text) <= {"red", "square", "flat"}
        assert "red" in text  # the commonest is never the one left out
    assert writer.vague([], rng()) == ""


def test_train_and_test_wordings_are_kept_apart():
    frames = {name: {frame for frame, _ in templates} for name, templates in _TEMPLATES.items()}
    assert frames["train"].isdisjoint(frames["test"])
    train, test = (PreferenceWriter(CATALOG, templates=name) for name in ("train", "test"))
    written = {name: {writer.one(1, rng(s)) for s in range(50)} for name, writer in (("train", train), ("test", test))}
    assert written["train"].isdisjoint(written["test"])


def test_same_seed_same_text():
    writer = PreferenceWriter(CATALOG)
    assert writer.informative(3, rng(5)) == writer.informative(3, rng(5))


def test_an_item_without_attributes_gives_an_empty_text():
    writer = PreferenceWriter(Catalog([Item(1, "a", "Bare", {})]))
    assert {writer.informative(1, rng()), writer.some(1, rng()), writer.one(1, rng()), writer.vague([1], rng())} == {""}


def test_phrases_are_the_commonest_values():
    items = [Item(i, str(i), f"t{i}", {"g": ("b",) if i < 4 else ("a", "c")}) for i in range(1, 6)]
    assert PreferenceWriter(Catalog(items)).phrases(2) == ("b", "a")


def test_unknown_templates_are_refused():
    with pytest.raises(ValueError, match="expected templates"):
        PreferenceWriter(CATALOG, templates="tests")  # type: ignore[arg-type]
