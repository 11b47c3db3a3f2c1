"""What is taken from a model's answer: wishes; and that all else is counted by its kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agents.preferences.answers import read_answer
from agents.preferences.fit import FitJudge
from agents.preferences.prompts import EXAMPLE_TITLES, ask
from tests.trm.worlds import COLOURS, SHAPES, colour_world
from trm.types import FloatArray
from trm.written_preferences import Prefix

WORLD = colour_world(num_users=20)


def test_lines_become_wishes_and_those_that_name_a_target_are_counted() -> None:
    lines = [
        '1. "Something red"',
        "",
        "- like Widget 7",
        "* Something red",
        "2) WIDGET 7!",
        "x" * 301,
        "---",
        "**dull**,",
    ]
    answer = read_answer("\n".join([*lines, "fifth", "Widget 7"]), 7, WORLD, count=2)
    assert answer.texts == ("Something red", "dull")
    assert answer.left_out == {"title": 2, "repeated": 1, "length": 1}  # what comes after the last wish is not read


def test_of_a_person_neither_what_comes_later_nor_what_was_shown_is_named() -> None:
    sequence = [int(item) for item in WORLD.splits.train_sequence(0)]
    earlier = next(item for item in sequence[:5] if item not in sequence[5:])
    later = next(item for item in sequence[5:] if item not in sequence[:5])
    answer = read_answer(f"more Widget {later}\nas Widget {earlier}\nred things", Prefix(0, 5), WORLD, count=2)
    assert answer.texts == ("red things",)
    assert answer.left_out == {"title": 1, "shown": 1}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("films of \ufffd\ufffd", "garbled"),
        ("h\u0430\u0432 things", "garbled"),
        ("1990", "garbled"),
        ("word " * 31, "length"),
        ("Red Dust (1997) with green", "listing"),
        ("Red Dust | drama", "listing"),
        ("Here are three wishes", "talk"),
        ("Wishes they may have:", "talk"),
        ("The answer is red", "talk"),
        ("Sad drama", "copied"),
        ("a thriller, but a widow reads it", "copied"),
        ("like The Wrong Umbrella", "copied"),
        ("What had they typed?", "copied"),
        ("red and red and red and red and", "loop"),
    ],
)
def test_what_is_no_wish_is_left_out_and_said_why(line: str, reason: str) -> None:
    answer = read_answer(f"- {line}\n- something red", 7, WORLD, count=3)
    assert answer.texts == ("something red",)
    assert answer.left_out == {reason: 1}


@pytest.mark.parametrize(
    "wish",
    [
        "T恤 in red",
        "5 μm filters",
        "красные фильмы",
        "here and now",
        "red, red wine",
        "comedy: dry and slow",
        "1990s",
        "кино noir",
    ],
)
def test_wishes_of_any_sort_and_language_are_taken(wish: str) -> None:
    assert read_answer(wish, 7, WORLD, count=3).texts == (wish,)


def test_the_piece_at_which_an_answer_was_cut_is_no_wish() -> None:
    said = "- red things\n- something gre"
    assert read_answer(said, 7, WORLD, count=3, cut=True).texts == ("red things",)
    assert read_answer(said, 7, WORLD, count=3, cut=True).left_out == {"cut": 1}
    assert read_answer(said, 7, WORLD, count=1, cut=True).left_out == {}
    assert read_answer(said, 7, WORLD, count=3).texts == ("red things", "something gre")


def test_a_title_is_known_whether_its_numbers_are_digits_or_words() -> None:
    assert read_answer("like widget seven\nseven widgets", 7, WORLD, count=3).left_out == {"title": 1}
    assert read_answer("like widget eight", 7, WORLD, count=3).left_out == {}


@pytest.mark.parametrize("subject", [7, Prefix(0, 3)])
def test_the_examples_of_a_question_are_answers_as_they_should_be(subject: int | Prefix) -> None:
    """All that speaks against them is where they come from; and the last one is of the subject's own sort."""
    messages = ask(subject, WORLD, count=3, seed=0).messages
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert messages[-3]["content"].splitlines()[0] == messages[-1]["content"].splitlines()[0]
    for message in messages[2:-1:2]:
        answer = read_answer(message["content"], subject, WORLD, count=3)
        assert answer.left_out == {"copied": 3}
    assert len(EXAMPLE_TITLES) == 5


class Words:
    """Encodes a text as the colours and shapes in it."""

    name, dim = "words", len(COLOURS) + len(SHAPES)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        rows = np.array([[word in text for word in (*COLOURS, *SHAPES)] for text in texts], dtype=np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize(
    ("wish", "share"),
    [
        ("blue", (48 + 12 / 2) / 60),  # it fits 48 items less well, and all 12 blue ones alike
        ("blue and square", (56 + 4 / 2) / 60),
        ("green and square", (32 + 24 / 2) / 60),  # 4 have both; 8 only green and 16 only square, of which it is one
        ("red", (0 + 48 / 2) / 60),
        ("nothing that counts", 1 / 2),
    ],
)
def test_the_share_of_items_that_a_wish_fits_less_well(wish: str, share: float) -> None:
    """Item 7 is blue and square."""
    judge = FitJudge(WORLD, Words(), min_fit=0.7)
    assert judge.share(wish, 7) == pytest.approx(share)
    assert judge.fits(wish, 7) == (share >= 0.7)


def test_what_does_not_fit_its_item_is_left_out_and_a_person_is_not_judged() -> None:
    judge = FitJudge(WORLD, Words(), min_fit=0.7)
    said = "- red things\n- blue things\n- things that are square"
    answer = read_answer(said, 7, WORLD, count=3, judge=judge)
    assert answer.texts == ("blue things", "things that are square")
    assert answer.left_out == {"unfit": 1}
    assert len(read_answer(said, Prefix(0, 3), WORLD, count=3, judge=judge).texts) == 3
    with pytest.raises(ValueError, match=r"expected min_fit from 0 to 1, got 1\.5"):
        FitJudge(WORLD, Words(), min_fit=1.5)
