"""What a language model is asked to write, and what is taken from its answer. Knows neither models nor files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trm.written_preferences import Prefix, hidden_titles, names_title

if TYPE_CHECKING:
    from trm.data.dataset import Dataset

VERSION = 1
"""Of the wording; a file of texts is gone on with by the same one only."""
MAX_CHARS = 300
"""A longer line is no preference."""

_SHOWN_ITEMS = 10
_MAX_DESCRIPTION_CHARS = 400
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")
_SYSTEM = (
    "You write search wishes for a recommender. A wish is one line of 3 to 20 words in the words of the person who "
    "asks: kinds, themes, moods, uses, makers. It never names a title. Write {count} wishes that differ in how much "
    "they say, one a line, and nothing else."
)
_FOR_ITEM = "Someone is about to choose this:\n{item}\nWhat could they have asked for, who did not know of it yet?"
_FOR_PREFIX = "Someone chose these, oldest first:\n{items}\nWhat do they seem to like?"


@dataclass(frozen=True)
class Asked:
    """One question to a model: a subject, and the conversation that asks about it."""

    subject: int | Prefix
    """An item, or the beginning of a training sequence."""
    messages: tuple[dict[str, str], ...]
    seed: int
    """Of the sampling, where a model takes one."""


@dataclass(frozen=True)
class Answer:
    """What was taken from a model's answer."""

    texts: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    """How many lines were left out, by reason: title, length, repeated."""


def choose_subjects(dataset: Dataset, *, num_items: int, num_users: int, seed: int) -> list[int | Prefix]:
    """Return whom to write for: the items that are chosen most often, then beginnings of random users' sequences.

    Args:
        dataset: items and users.
        num_items: at most; 0 means all.
        num_users: at most; 0 means all. A user with one training item has no beginning.
        seed: of the choice of users and of where their sequences are cut.
    """
    counts = dataset.splits.train_counts()
    items = sorted(range(1, dataset.catalog.num_items + 1), key=lambda item_id: (-counts[item_id], item_id))
    subjects: list[int | Prefix] = [*(items[:num_items] if num_items else items)]
    rng = np.random.default_rng([seed, 0])
    users = [int(user) for user in rng.permutation(dataset.splits.num_users)]
    prefixes = []
    for user in users:
        length = len(dataset.splits.train_sequence(user))
        if length > 1:
            prefixes.append(Prefix(user, int(rng.integers(1, length))))
    return subjects + (prefixes[:num_users] if num_users else prefixes)


def ask(subject: int | Prefix, dataset: Dataset, *, count: int, seed: int) -> Asked:
    """Return the question about a subject. Of a user it shows the beginning of the training sequence and no more."""
    if isinstance(subject, Prefix):
        shown = dataset.splits.train_sequence(subject.user_index)[: subject.length][-_SHOWN_ITEMS:]
        items = "\n".join(_described(int(item_id), dataset, with_description=False) for item_id in shown)
        question, key = _FOR_PREFIX.format(items=items), [1, *subject]
    else:
        question, key = _FOR_ITEM.format(item=_described(subject, dataset, with_description=True)), [0, subject]
    messages = (
        {"role": "system", "content": _SYSTEM.format(count=count)},
        {"role": "user", "content": question},
    )
    return Asked(subject, messages, int(np.random.SeedSequence([seed, *key]).generate_state(1)[0]))


def read_answer(text: str, subject: int | Prefix, dataset: Dataset, *, count: int) -> Answer:
    """Return the first `count` wishes of an answer; lines that give a target's title away are left out, and counted."""
    titles = hidden_titles(subject, dataset)
    texts: list[str] = []
    left_out: dict[str, int] = {}
    for line in text.splitlines():
        wish = _BULLET.sub("", line).strip().strip("\"'“”").strip()
        reason = _reason_against(wish, texts, titles)
        if reason is None and len(texts) < count:
            texts.append(wish)
        elif reason:
            left_out[reason] = left_out.get(reason, 0) + 1
    return Answer(tuple(texts), left_out)


def _reason_against(wish: str, texts: Sequence[str], titles: Sequence[str]) -> str | None:
    """Return why a line is not taken; "" if there is nothing in it, None if it may be."""
    if not any(letter.isalpha() for letter in wish):
        return ""
    if len(wish) > MAX_CHARS:
        return "length"
    if wish in texts:
        return "repeated"
    return "title" if any(names_title(wish, title) for title in titles) else None


def _described(item_id: int, dataset: Dataset, *, with_description: bool) -> str:
    item = dataset.catalog[item_id]
    parts = [item.title, dataset.catalog.attribute_line(item_id)]
    if with_description:
        parts.append(item.description[:_MAX_DESCRIPTION_CHARS])
    return " | ".join(" ".join(part.split()) for part in parts if part)
