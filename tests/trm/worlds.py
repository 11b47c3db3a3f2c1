"""A small catalogue with a known answer: items of one colour follow each other, and preferences name colours."""

from __future__ import annotations

import numpy as np

from trm.data.catalog import Catalog, Item
from trm.data.dataset import Dataset
from trm.data.interactions import Interactions

COLOURS = ("red", "green", "blue", "yellow", "violet")
SHAPES = ("round", "square", "flat")


def colour_world(*, num_items: int = 60, num_users: int = 80, length: int = 12, seed: int = 0) -> Dataset:
    """Return users who stay with one colour nine times out of ten; item i has colour i % 5 and shape i % 3."""
    items = [
        Item(i, f"s{i}", f"Widget {i}", {"colour": (COLOURS[i % 5],), "shape": (SHAPES[i % 3],)})
        for i in range(1, num_items + 1)
    ]
    rng = np.random.default_rng(seed)
    by_colour = [[i for i in range(1, num_items + 1) if i % 5 == c] for c in range(5)]
    users, item_ids, times = [], [], []
    for user in range(num_users):
        favourite = int(rng.integers(5))
        for turn in range(length):
            colour = favourite if rng.random() < 0.9 else int(rng.integers(5))
            users.append(user)
            item_ids.append(int(rng.choice(by_colour[colour])))
            times.append(turn)
    interactions = Interactions.from_events(
        [f"u{user}" for user in range(num_users)],
        users=np.array(users),
        item_ids=np.array(item_ids),
        timestamps=np.array(times),
    )
    return Dataset("colours", Catalog(items), interactions)
