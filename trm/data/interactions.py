"""Who took which item when: every user's history, oldest first. Knows ids, no titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trm.types import IntArray


@dataclass(frozen=True, eq=False)
class Interactions:
    """All histories, one after the other (N interactions of U users); the arrays are read-only."""

    user_ids: tuple[str, ...]
    """The ids of the raw files, [U], distinct."""
    offsets: IntArray
    """int64 [U + 1]: user u's interactions are offsets[u]:offsets[u + 1]."""
    item_ids: IntArray
    """int64 [N], from 1; oldest first within a user, file order where timestamps are equal."""
    timestamps: IntArray
    """int64 [N], Unix time in milliseconds, not decreasing within a user."""

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: if offsets, item_ids, timestamps and user_ids do not fit together.
        """
        if len(set(self.user_ids)) != len(self.user_ids):
            raise ValueError("expected distinct user ids")
        if self.offsets.shape != (len(self.user_ids) + 1,):
            raise ValueError(f"expected {len(self.user_ids) + 1} offsets, got shape {self.offsets.shape}")
        if self.item_ids.ndim != 1 or self.item_ids.shape != self.timestamps.shape:
            raise ValueError(
                "expected item_ids and timestamps of one shape [N], "
                f"got {self.item_ids.shape} and {self.timestamps.shape}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != self.item_ids.size or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"expected offsets that rise from 0 to {self.item_ids.size}")
        if self.item_ids.size and self.item_ids.min() < 1:
            raise ValueError(f"expected item ids from 1, got {self.item_ids.min()}")
        for array in (self.offsets, self.item_ids, self.timestamps):
            array.flags.writeable = False

    @classmethod
    def from_events(
        cls, user_ids: Sequence[str], *, users: IntArray, item_ids: IntArray, timestamps: IntArray
    ) -> Interactions:
        """Return the events sorted by user and time; a stable sort, so ties keep the order given.

        Args:
            user_ids: the id of each user index; users without an event are left out.
            users: int64 [N], indices into user_ids.
            item_ids: int64 [N], from 1.
            timestamps: int64 [N], in milliseconds.
        """
        order = np.lexsort((timestamps, users))
        counts = np.bincount(users, minlength=len(user_ids))
        present = np.flatnonzero(counts)
        offsets = np.concatenate(([0], np.cumsum(counts[present]))).astype(np.int64)
        return cls(
            user_ids=tuple(user_ids[index] for index in present),
            offsets=offsets,
            item_ids=item_ids[order].astype(np.int64),
            timestamps=timestamps[order].astype(np.int64),
        )

    @property
    def num_users(self) -> int:
        """How many users there are."""
        return len(self.user_ids)

    @property
    def num_interactions(self) -> int:
        """How many interactions there are, over all users."""
        return int(self.item_ids.size)

    def history(self, user: int) -> IntArray:
        """Return user's item ids, oldest first: a read-only view of int64 [n]."""
        if not 0 <= user < self.num_users:
            raise IndexError(f"expected a user index in 0..{self.num_users - 1}, got {user}")
        return self.item_ids[self.offsets[user] : self.offsets[user + 1]]

    def popularity(self, num_items: int) -> IntArray:
        """Return how often each item was taken: int64 [num_items + 1], 0 for PAD."""
        if self.item_ids.size and self.item_ids.max() > num_items:
            raise ValueError(f"expected item ids up to {num_items}, got {self.item_ids.max()}")
        return np.bincount(self.item_ids, minlength=num_items + 1).astype(np.int64)
