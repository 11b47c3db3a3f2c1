"""Where an agent loses: its episodes by what became of them, kinds of faults, novelty and coverage of its lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np

from agents.rows import UserRow
from trm.data.catalog import PAD
from trm.types import IntArray

UNKNOWN_FAULT = "unknown"
"""The kind of fault in rows of older files."""


class EpisodeEnd(StrEnum):
    """What became of an episode; each is exactly one of these."""

    HIT = "hit"
    """The target stands in the list."""
    RETRIEVAL_FAILURE = "retrieval_failure"
    """No search has found the target, and the list does not hold it."""
    RANKING_FAILURE = "ranking_failure"
    """A search has found the target, and the list does not hold it."""
    MALFORMED = "malformed"
    """The episode did not end in a well-formed recommendation."""


def end_of(row: UserRow) -> EpisodeEnd:
    """Return what became of a row's episode."""
    if not row.well_formed:
        return EpisodeEnd.MALFORMED
    if row.rank:
        return EpisodeEnd.HIT
    return EpisodeEnd.RANKING_FAILURE if row.in_pool else EpisodeEnd.RETRIEVAL_FAILURE


def share_by_fault(rows: Sequence[UserRow]) -> Mapping[str, float]:
    """Return the share of all rows that each kind of fault has, the commonest first; they sum to the malformed share.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("expected at least one row, got none")
    counts = Counter(row.failure or UNKNOWN_FAULT for row in rows if not row.well_formed)
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return {fault: count / len(rows) for fault, count in ordered}


def novelty_of(item_ids: Sequence[int], popularity: IntArray, num_users: int) -> float | None:
    """Return the mean self-information of a list's known items in bits; None if it holds none.

    An item that c of n users chose has -log2((c + 1) / (n + 1)): 0 bits for what everybody chose, 1 bit for what half
    of them did. The ones keep an item that nobody chose finite.

    Args:
        item_ids: the list; PAD is left out.
        popularity: int64 [num_items + 1], how many users chose each item in the training part of the data.
        num_users: how many users there are.
    """
    known = np.array([item_id for item_id in item_ids if item_id != PAD], dtype=np.int64)
    if known.size == 0:
        return None
    return float(-np.log2((np.minimum(popularity[known], num_users) + 1) / (num_users + 1)).mean())


def coverage_of(rows: Sequence[UserRow], num_items: int) -> float | None:
    """Return the share of the catalogue that stands in at least one list; None where rows do not hold their lists.

    It grows with the number of rows, so only agents that played the same users can be compared by it.
    """
    lists = [row.recommended_ids for row in rows if row.recommended_ids is not None]
    if len(lists) < len(rows) or num_items < 1:
        return None
    return len({item_id for item_ids in lists for item_id in item_ids} - {PAD}) / num_items
