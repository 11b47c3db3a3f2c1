"""What a final ranking holds, title by title, and what it is worth. Pure: no episode, no catalogue."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from deeprec_env.rewards.config import RewardConfig
from trm.data.catalog import PAD
from trm.types import FloatArray

CUTOFFS = (1, 5, 10)
"""Where Recall and NDCG are cut for `info`."""


@dataclass(frozen=True, slots=True)
class RankedLine:
    """One place of the final ranking."""

    title: str
    item_ids: tuple[int, ...]
    """All items with this title; () if it is unknown."""
    is_duplicate: bool
    """Whether an earlier line names the same items."""
    is_retrieved: bool
    """Whether a search of this episode has returned one of the items."""

    @property
    def counts(self) -> bool:
        """Whether the line can earn anything: known and not a duplicate."""
        return bool(self.item_ids) and not self.is_duplicate


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an episode ended."""

    well_formed: bool
    """Whether it ended in a recommendation with nothing wrong about it."""
    lines: tuple[RankedLine, ...] = ()
    """The first top_k lines; () if there is no ranking."""
    hit_rank: int = 0
    """1-based place of the target; 0 if it is not in the ranking."""
    top_k: int = 10

    @property
    def recommended_ids(self) -> tuple[int, ...]:
        """One item a line (the lowest id where several share the title), PAD where the title is unknown."""
        return tuple(line.item_ids[0] if line.item_ids else PAD for line in self.lines)

    @property
    def unknown_titles(self) -> tuple[str, ...]:
        """Titles that no item has."""
        return tuple(line.title for line in self.lines if not line.item_ids)

    @property
    def duplicate_titles(self) -> tuple[str, ...]:
        """Titles that stand further up already."""
        return tuple(line.title for line in self.lines if line.is_duplicate)

    @property
    def never_retrieved_titles(self) -> tuple[str, ...]:
        """Known titles that no search of the episode has returned."""
        return tuple(line.title for line in self.lines if line.item_ids and not line.is_retrieved)

    @property
    def grounded_share(self) -> float:
        """Share of the top_k places that hold distinct items which were retrieved."""
        return sum(line.counts and line.is_retrieved for line in self.lines) / self.top_k

    def recall(self, k: int) -> float:
        """Return 1.0 if the target stands among the first k, else 0.0."""
        return float(1 <= self.hit_rank <= k)

    def ndcg(self, k: int) -> float:
        """Return 1 / log2(1 + place) if the target stands among the first k, else 0.0."""
        return 1.0 / math.log2(1 + self.hit_rank) if 1 <= self.hit_rank <= k else 0.0

    def as_info(self) -> dict[str, object]:
        """Return a fresh dict for `info["outcome"]`."""
        info: dict[str, object] = {
            "recommended_ids": self.recommended_ids,
            "hit_rank": self.hit_rank,
            "well_formed": self.well_formed,
        }
        for k in CUTOFFS:
            info[f"recall@{k}"] = self.recall(k)
            info[f"ndcg@{k}"] = self.ndcg(k)
        info["unknown_titles"] = self.unknown_titles
        info["duplicate_titles"] = self.duplicate_titles
        info["never_retrieved_titles"] = self.never_retrieved_titles
        return info


def build_outcome(
    titles: Sequence[str],
    *,
    target: int,
    top_k: int,
    find: Callable[[str], tuple[int, ...]],
    pool: Collection[int],
    well_formed: bool,
) -> Outcome:
    """Return what the first top_k titles mean.

    Args:
        titles: best first.
        target: the held-out item.
        top_k: places that count.
        find: title to the ids of all items that have it.
        pool: the items that the episode's searches have returned.
        well_formed: whether the episode ends as it should.
    """
    lines: list[RankedLine] = []
    seen: set[tuple[int, ...]] = set()
    hit_rank = 0
    for place, title in enumerate(titles[:top_k], start=1):
        item_ids = find(title)
        is_duplicate = item_ids in seen
        if item_ids:
            seen.add(item_ids)
        if target in item_ids and not hit_rank:
            hit_rank = place
        lines.append(RankedLine(title, item_ids, is_duplicate, any(item_id in pool for item_id in item_ids)))
    return Outcome(well_formed, tuple(lines), hit_rank, top_k)


def hit_reward(hit_rank: int, config: RewardConfig) -> float:
    """Return weight x (1 + step x (10 - i)) for a hit at place i counted from 0; 0.0 without a hit."""
    if hit_rank == 0:
        return 0.0
    return config.hit_weight * (1.0 + config.hit_rank_step * max(0, 10 - (hit_rank - 1)))


def likeness(item_ids: Sequence[int], target: int, *, text_vectors: FloatArray, id_vectors: FloatArray) -> list[float]:
    """Return each item's mean of text-embedding dot product and cosine of item embeddings to the target.

    Args:
        item_ids: PAD gives 0.0.
        target: an item id.
        text_vectors: float32 [num_items + 1, D], unit rows, row 0 zeros.
        id_vectors: float32 [num_items + 1, d], any norm.
    """
    rows = np.asarray(item_ids, dtype=np.int64)
    text = (text_vectors[rows].astype(np.float64) * text_vectors[target].astype(np.float64)).sum(axis=1)
    ids, wanted = id_vectors[rows].astype(np.float64), id_vectors[target].astype(np.float64)
    norms = np.sqrt((ids * ids).sum(axis=1)) * math.sqrt(float((wanted * wanted).sum()))
    cosine = (ids * wanted).sum(axis=1) / np.maximum(norms, 1e-8)
    values = (text + cosine) / 2
    return [0.0 if item_id == PAD else float(value) for item_id, value in zip(item_ids, values, strict=True)]


def place_weights(num_places: int) -> list[float]:
    """Return (1 - i / num_places)^2 for i from 0."""
    return [(1.0 - place / num_places) ** 2 for place in range(num_places)]


def mean_similarity(outcome: Outcome, target: int, *, text_vectors: FloatArray, id_vectors: FloatArray) -> float:
    """Return the mean likeness of the ranking to the target, early places more; in [0, 1].

    Unknown, duplicate and never-retrieved titles count 0 and keep their weight in the mean; so does a dissimilar item,
    for a negative likeness would make an invented title the better choice.
    """
    earning = [line.item_ids if line.counts and line.is_retrieved else (PAD,) for line in outcome.lines]
    if not earning:
        return 0.0
    flat = likeness([ids[0] for ids in earning], target, text_vectors=text_vectors, id_vectors=id_vectors)
    values = [1.0 if target in ids else min(1.0, max(0.0, value)) for ids, value in zip(earning, flat, strict=True)]
    weights = place_weights(outcome.top_k)
    return sum(w * s for w, s in zip(weights, values, strict=False)) / sum(weights)
