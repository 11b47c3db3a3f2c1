"""What a language model is asked to write. Knows neither models nor files.

A question is a conversation: what a wish is, three subjects with wishes as they should be, and the subject that is
meant. A small model writes essays and lists of titles without the examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trm.written_preferences import Prefix

if TYPE_CHECKING:
    from trm.data.dataset import Dataset

VERSION = 2
"""Of the wording; a file of texts is gone on with by the same one only."""

_SHOWN_ITEMS = 10
_MAX_DESCRIPTION_CHARS = 400
_SYSTEM = (
    "You write what people type into a search box before they know what they will choose. Write {count} wishes, one a "
    "line with a dash, each of 2 to 15 words, which differ in how much they say: kinds, themes, moods, uses, makers. "
    "Never write a title. Write nothing else."
)
_FOR_ITEM = "They chose this:\n{item}\nWhat had they typed?"
_FOR_PREFIX = "They chose these, oldest first:\n{items}\nWhat do they type next?"
_EXAMPLES = (
    (
        _FOR_ITEM.format(
            item="The Lampkeeper's Widow (1987) | Drama, Mystery; 1980s | A woman takes over a lighthouse and finds "
            "letters that nobody was to read."
        ),
        ("slow lighthouse mystery", "sad drama", "a widow reads forgotten letters", "quiet 1980s films"),
    ),
    (
        _FOR_ITEM.format(item="Brannock Hex Bit Set, 12 Pieces, Magnetic | Hand Tools; Brannock"),
        ("cordless driver bits", "hand tools", "small magnetic tools to mend furniture", "things by Brannock"),
    ),
    (
        _FOR_PREFIX.format(
            items="Nine to Never (1994) | Comedy; 1990s\nThe Wrong Umbrella (1996) | Comedy, Romance; 1990s\n"
            "Paris on a Tuesday (1991) | Comedy, Romance; 1990s"
        ),
        ("office comedy with clever talk", "light 1990s films", "funny, never sad", "lovers who miss each other"),
    ),
)
"""Subjects that are in no catalogue, and what may be asked for; the first `count` wishes are shown."""
EXAMPLE_WISHES = tuple(wish for _, wishes in _EXAMPLES for wish in wishes)
EXAMPLE_TITLES = tuple(
    line.partition(" | ")[0] for question, _ in _EXAMPLES for line in question.splitlines() if " | " in line
)
INSTRUCTIONS = "\n".join((_SYSTEM, _FOR_ITEM, _FOR_PREFIX))
"""Words of a question that are the same for all."""


@dataclass(frozen=True)
class Asked:
    """One question to a model: a subject, and the conversation that asks about it."""

    subject: int | Prefix
    """An item, or the beginning of a training sequence."""
    messages: tuple[dict[str, str], ...]
    seed: int
    """Of the sampling, where a model takes one."""


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
    messages = [{"role": "system", "content": _SYSTEM.format(count=count)}]
    # The last example is one of the subject's own sort, and answers look unlike what is shown: small models imitate.
    for asked, wishes in _EXAMPLES if isinstance(subject, Prefix) else _EXAMPLES[::-1]:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": "\n".join(f"- {wish}" for wish in wishes[:count])})
    messages.append({"role": "user", "content": question})
    return Asked(subject, tuple(messages), int(np.random.SeedSequence([seed, *key]).generate_state(1)[0]))


def _described(item_id: int, dataset: Dataset, *, with_description: bool) -> str:
    item = dataset.catalog[item_id]
    parts = [item.title, dataset.catalog.attribute_line(item_id)]
    if with_description:
        parts.append(item.description[:_MAX_DESCRIPTION_CHARS])
    return " | ".join(" ".join(part.split()) for part in parts if part)
