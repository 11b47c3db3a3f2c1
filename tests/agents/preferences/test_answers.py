"""What is taken from a model's answer: wishes; and that all else is counted by its kind."""

from __future__ import annotations

import pytest

from agents.preferences.answers import read_answer
from agents.preferences.prompts import EXAMPLE_TITLES, ask
from tests.trm.worlds import colour_world
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
        ("a slow mystery by the sea", "copied"),
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


@pytest.mark.parametrize("subject", [7, Prefix(0, 3)])
def test_the_examples_of_a_question_are_answers_as_they_should_be(subject: int | Prefix) -> None:
    """Were they not marked as copied, every line would be taken; and the last one is of the subject's own sort."""
    messages = ask(subject, WORLD, count=3, seed=0).messages
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert messages[-3]["content"].splitlines()[0] == messages[-1]["content"].splitlines()[0]
    for message in messages[2:-1:2]:
        answer = read_answer(message["content"], subject, WORLD, count=3)
        assert answer.left_out == {"copied": 3}
        for number, line in enumerate(message["content"].splitlines()):
            changed = read_answer(f"{line} please", subject, WORLD, count=3)
            assert len(changed.texts) == 1, number
    assert len(EXAMPLE_TITLES) == 5
