"""What is taken from a model's answer, and what is left out, by kind. Knows neither models nor files.

One reason a line, the first that holds:

cut       the answer ran into its limit in this line
garbled   no letter, a lost character, or Latin and Cyrillic letters in one word
length    over 300 characters or 30 words
listing   a line of a catalogue, with its bars or a year in brackets
title     names the target, or what comes later in a person's sequence
shown     names what the person was shown to have chosen
talk      speaks to whoever asks, or announces what comes
copied    a title of the examples, three words in a row of one of their wishes, or words of the question
loop      says the same again and again
repeated  stands in the answer already
unfit     says of an item what would fit too many others better, where a FitJudge is asked
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agents.preferences.prompts import EXAMPLE_TITLES, EXAMPLE_WISHES, INSTRUCTIONS
from trm.written_preferences import Prefix, hidden_titles, names_title

if TYPE_CHECKING:
    from agents.preferences.fit import FitJudge
    from trm.data.dataset import Dataset

MAX_CHARS = 300
MAX_WORDS = 30
_LOOP_WORDS = 8
"""A shorter line may say a word as often as it likes."""
_LOOP_SHARE = 0.5
"""A line with a smaller share of different words is a loop."""
_COPIED_WORDS = 3
"""So many words in a row are copied: of an example's wish anywhere, of the question as a whole wish."""

_ALPHABETS = frozenset({"LATIN", "CYRILLIC"})
"""No word has letters of both; units and product names mix others."""

_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER = re.compile(rf"\b(?:{'|'.join(_NUMBERS)})\b", re.IGNORECASE)
_EDGES = " \t,;*_`\"'“”"
"""Around a wish, and no part of it."""
_WORD = re.compile(r"\w+")
_NO_NAME = re.compile(r"^(?:the|an?)\s|\(\d{4}\)\s*$", re.IGNORECASE)
_LISTING = re.compile(r"\s\|\s|\(\s*\d{4}\s*\)")
_TALK = re.compile(
    r":$|^(?:sure|certainly|of course|okay|here (?:are|is)|as an ai|i(?:'m| am) (?:sorry|unable)|i can(?:'|no)t|"
    r"they (?:had )?(?:typed|chose|type)|the (?:answer|wish|user|person|text)(?:e?s)? (?:is|are|has|have|may|might))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Answer:
    """What was taken from a model's answer."""

    texts: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    """How many of the lines that were read were left out, by reason; see above."""


def read_answer(
    text: str,
    subject: int | Prefix,
    dataset: Dataset,
    *,
    count: int,
    cut: bool = False,
    judge: FitJudge | None = None,
) -> Answer:
    """Return the first `count` wishes of an answer; what is none, or gives a target's title away, is counted.

    Args:
        text: the answer.
        subject: what it is about.
        dataset: items and users.
        count: wishes at most; further lines are not read.
        cut: whether the answer ran into its limit, so that its last line is a piece.
        judge: refuses wishes that do not fit an item; those for a person's beginning are not judged.
    """
    hidden, shown = hidden_titles(subject, dataset), _shown_titles(subject, dataset)
    texts: list[str] = []
    left_out: dict[str, int] = {}
    lines = [wish for wish in map(_without_bullet, text.splitlines()) if any(map(str.isalnum, wish))]
    for place, wish in enumerate(lines):
        if len(texts) == count:
            break
        is_piece = cut and place == len(lines) - 1
        reason = "cut" if is_piece else _reason_against(wish, texts, hidden=hidden, shown=shown)
        if reason is None and judge and not isinstance(subject, Prefix) and not judge.fits(wish, subject):
            reason = "unfit"
        if reason is None:
            texts.append(wish)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    return Answer(tuple(texts), left_out)


def _without_bullet(line: str) -> str:
    return _BULLET.sub("", line).strip(_EDGES)


def _shown_titles(subject: int | Prefix, dataset: Dataset) -> list[str]:
    """Return the titles of a person's beginning; one of a single word is a word like others."""
    if not isinstance(subject, Prefix):
        return []
    sequence = dataset.splits.train_sequence(subject.user_index)[: subject.length]
    titles = [dataset.catalog.title(int(item_id)) for item_id in sequence]
    return [title for title in titles if len(_words(_NO_NAME.sub("", title))) > 1]


def _reason_against(wish: str, texts: Sequence[str], *, hidden: Sequence[str], shown: Sequence[str]) -> str | None:
    """Return why a line is not taken, None if it may be."""
    words = _words(wish)
    reasons = {
        "garbled": lambda: _is_garbled(wish),
        "length": lambda: len(wish) > MAX_CHARS or len(words) > MAX_WORDS,
        "listing": lambda: _LISTING.search(wish) is not None,
        "title": lambda: any(_gives_away(wish, title) for title in hidden),
        "shown": lambda: any(_gives_away(wish, title) for title in shown),
        "talk": lambda: _TALK.search(wish) is not None,
        "copied": lambda: _is_copied(wish, words),
        "loop": lambda: len(words) >= _LOOP_WORDS and len(set(words)) < _LOOP_SHARE * len(words),
        "repeated": lambda: any(_words(text) == words for text in texts),
    }
    return next((reason for reason, holds in reasons.items() if holds()), None)


def _gives_away(wish: str, title: str) -> bool:
    """Return whether the title is named, be its numbers written in digits or in words: "12 Monkeys"."""
    return names_title(wish, title) or names_title(_in_digits(wish), _in_digits(title))


def _in_digits(text: str) -> str:
    return _NUMBER.sub(lambda match: str(_NUMBERS.index(match[0].casefold())), text)


def _is_copied(wish: str, words: Sequence[str]) -> bool:
    said = " ".join(words)
    if said in _COPIED or any(run in _COPIED for run in _runs(words)):
        return True
    of_question = len(words) >= _COPIED_WORDS and f" {said} " in _INSTRUCTIONS
    return of_question or any(names_title(wish, title) for title in EXAMPLE_TITLES)


def _runs(words: Sequence[str]) -> list[str]:
    return [" ".join(words[start : start + _COPIED_WORDS]) for start in range(len(words) - _COPIED_WORDS + 1)]


def _is_garbled(wish: str) -> bool:
    """Return whether there is no letter at all, a character that stands for a lost one, or a word of two alphabets."""
    if "\ufffd" in wish or not any(map(str.isalpha, wish)):
        return True
    return any({_alphabet(letter) for letter in word} >= _ALPHABETS for word in _WORD.findall(wish))


def _alphabet(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


_COPIED = frozenset(said for words in map(_words, EXAMPLE_WISHES) for said in (" ".join(words), *_runs(words)))
_INSTRUCTIONS = f" {' '.join(_words(INSTRUCTIONS))} "
