"""Leave-one-out: each user's last item tests, the second last validates, the rest trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from trm.data.interactions import Interactions
from trm.types import FloatArray, IntArray

Split = Literal["train", "valid", "test"]

LATEST_CHOICES = 5
"""Of each user, so many of the last training items make the trend."""
MIN_INTERACTIONS = 3
"""A user with fewer has no item left for each of the three splits and is left out."""

_TARGET_FROM_END: dict[str, int] = {"test": 1, "valid": 2, "train": 3}


@dataclass(frozen=True, slots=True)
class Example:
    """One question to a recommender: what came after this history?"""

    user_index: int
    user_id: str
    history: tuple[int, ...]
    """Item ids, oldest first; all that came before the target. Empty only for "train" and a user of 3 interactions."""
    target: int
    """The held-out item's id."""


class LeaveOneOut:
    """The split of the users that have at least MIN_INTERACTIONS; they are counted anew from 0, in their old order."""

    def __init__(self, interactions: Interactions, *, num_items: int | None = None) -> None:
        """Split the interactions.

        Args:
            interactions: chronological histories.
            num_items: the size of the catalogue; the largest id that was taken, if not given.

        Raises:
            ValueError: if no user has enough interactions.
        """
        kept = np.flatnonzero(np.diff(interactions.offsets) >= MIN_INTERACTIONS)
        if kept.size == 0:
            raise ValueError(
                f"expected a user with at least {MIN_INTERACTIONS} interactions, got none; "
                "prepare the data set with weaker filters"
            )
        self._interactions = interactions
        self._kept = kept
        self.num_items = int(interactions.item_ids.max()) if num_items is None else num_items
        self.user_ids: tuple[str, ...] = tuple(interactions.user_ids[user] for user in kept)
        self._index_by_user_id = {user_id: index for index, user_id in enumerate(self.user_ids)}

    @property
    def num_users(self) -> int:
        """How many users the split has, in every part."""
        return len(self.user_ids)

    def user_index(self, user_id: str) -> int:
        """Return the index of the user with this raw id.

        Raises:
            KeyError: if there is no such user, or it has too few interactions.
        """
        try:
            return self._index_by_user_id[user_id]
        except KeyError:
            raise KeyError(
                f"expected the id of a user with at least {MIN_INTERACTIONS} interactions, got {user_id!r}"
            ) from None

    def example(self, split: Split, user_index: int) -> Example:
        """Return the user's history and target of the split; "train" holds out the third last item.

        Raises:
            ValueError: if the split is unknown.
            IndexError: if the user is.
        """
        if split not in _TARGET_FROM_END:
            raise ValueError(f"expected a split in {get_args(Split)}, got {split!r}")
        sequence = self._sequence(user_index)
        place = len(sequence) - _TARGET_FROM_END[split]
        return Example(
            user_index=user_index,
            user_id=self.user_ids[user_index],
            history=tuple(sequence[:place].tolist()),
            target=int(sequence[place]),
        )

    def train_sequence(self, user_index: int) -> IntArray:
        """Return all of the user's items but the last two: a read-only view of int64 [n - 2], oldest first."""
        return self._sequence(user_index)[:-2]

    def train_counts(self) -> IntArray:
        """Return how often each item occurs in the training sequences: int64 [num_items + 1], 0 for PAD."""
        sequences = [self.train_sequence(user) for user in range(self.num_users)]
        return np.bincount(np.concatenate(sequences), minlength=self.num_items + 1).astype(np.int64)

    @cached_property
    def trend(self) -> FloatArray:
        """Each item's share of all users' LATEST_CHOICES last training items, per thousand: float32 [num_items + 1].

        0 for PAD; read-only.
        """
        latest = [self.train_sequence(user)[-LATEST_CHOICES:] for user in range(self.num_users)]
        counts = np.bincount(np.concatenate(latest), minlength=self.num_items + 1)
        shares = (1000.0 * counts / counts.sum()).astype(np.float32)
        shares.flags.writeable = False
        return shares

    def _sequence(self, user_index: int) -> IntArray:
        if not 0 <= user_index < self.num_users:
            raise IndexError(f"expected a user index in 0..{self.num_users - 1}, got {user_index}")
        return self._interactions.history(int(self._kept[user_index]))
