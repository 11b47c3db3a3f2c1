"""What a final ranking holds, title by title, and what it is worth. Pure: no episode, no catalogue."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from operator import attrgetter, methodcaller, mul
from typing import Any, NamedTuple

import numpy as np

from deeprec_env.rewards.config import RewardConfig
from trm.data.catalog import PAD
from trm.types import FloatArray

CUTOFFS = (1, 5, 10)
"""Where Recall and NDCG are cut for `info`."""
_NOTHING = (PAD,)
_RANKINGS_AT_ONCE = 32
"""Few enough for their items' vectors to stay in the processor's cache."""


class RankedLine(NamedTuple):
    """One place of the final ranking."""

    title: str
    item_ids: tuple[int, ...]
    """All items with this title; () if it is unknown."""
    is_duplicate: bool
    """Whether an earlier line names the same items."""
    is_retrieved: bool
    """Whether a search of this episode has returned one of the items."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an episode ended: the first top_k places of its ranking, column by column."""

    well_formed: bool
    """Whether it ended in a recommendation with nothing wrong about it."""
    titles: tuple[str, ...] = ()
    """As written; () if there is no ranking."""
    item_ids: tuple[tuple[int, ...], ...] = ()
    """All items with each title; () where it is unknown."""
    duplicate: tuple[bool, ...] = ()
    """Whether an earlier title names the same items."""
    retrieved: tuple[bool, ...] = ()
    """Whether a search of this episode has returned one of the items."""
    hit_rank: int = 0
    """1-based place of the target; 0 if it is not in the ranking."""
    top_k: int = 10

    @property
    def lines(self) -> tuple[RankedLine, ...]:
        """The same place by place."""
        return tuple(map(RankedLine, self.titles, self.item_ids, self.duplicate, self.retrieved))

    @property
    def earning_ids(self) -> list[tuple[int, ...]]:
        """The items of each place that can earn anything (retrieved, and not a duplicate), (PAD,) for the others."""
        columns = zip(self.item_ids, self.duplicate, self.retrieved)
        return [ids if retrieved and not duplicate else _NOTHING for ids, duplicate, retrieved in columns]

    @property
    def recommended_ids(self) -> tuple[int, ...]:
        """One item a line (the lowest id where several share the title), PAD where the title is unknown."""
        return tuple([ids[0] if ids else PAD for ids in self.item_ids])

    @property
    def unknown_titles(self) -> tuple[str, ...]:
        """Titles that no item has."""
        return tuple([title for title, ids in zip(self.titles, self.item_ids) if not ids])

    @property
    def duplicate_titles(self) -> tuple[str, ...]:
        """Titles that stand further up already."""
        return tuple(compress(self.titles, self.duplicate))

    @property
    def never_retrieved_titles(self) -> tuple[str, ...]:
        """Known titles that no search of the episode has returned."""
        columns = zip(self.titles, self.item_ids, self.retrieved)
        return tuple([title for title, ids, retrieved in columns if ids and not retrieved])

    @property
    def grounded_share(self) -> float:
        """Share of the top_k places that hold distinct items which were retrieved."""
        return sum([ids is not _NOTHING for ids in self.earning_ids]) / self.top_k

    def recall(self, k: int) -> float:
        """Return 1.0 if the target stands among the first k, else 0.0."""
        return float(1 <= self.hit_rank <= k)

    def ndcg(self, k: int) -> float:
        """Return 1 / log2(1 + place) if the target stands among the first k, else 0.0."""
        return 1.0 / math.log2(1 + self.hit_rank) if 1 <= self.hit_rank <= k else 0.0

    def as_info(self) -> dict[str, object]:
        """Return a fresh dict for `info["outcome"]`."""
        return {name: read(self) for name, read in INFO_FIELDS.items()}


INFO_FIELDS: Mapping[str, Callable[[Outcome], Any]] = {
    **{name: attrgetter(name) for name in ("recommended_ids", "hit_rank", "well_formed")},
    **{f"{name}@{k}": methodcaller(name, k) for k in CUTOFFS for name in ("recall", "ndcg")},
    **{name: attrgetter(name) for name in ("unknown_titles", "duplicate_titles", "never_retrieved_titles")},
}
"""What `info["outcome"]` says, and where it is read."""


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
    titles = tuple(titles[:top_k])
    item_ids = tuple(map(find, titles))
    hit_rank = next((place for place, ids in enumerate(item_ids, start=1) if target in ids), 0)
    retrieved = tuple([bool(ids) and (ids[0] in pool or any(i in pool for i in ids[1:])) for ids in item_ids])
    return Outcome(well_formed, titles, item_ids, _repeats(item_ids), retrieved, hit_rank, top_k)


def _repeats(item_ids: Sequence[tuple[int, ...]]) -> tuple[bool, ...]:
    """Return whether each place names the same items as one before it; () names none."""
    seen = set(item_ids)
    if len(seen) == len(item_ids):
        return (False,) * len(item_ids)
    seen = {()}
    repeats = []
    for ids in item_ids:
        repeats.append(bool(ids) and ids in seen)
        seen.add(ids)
    return tuple(repeats)


def hit_reward(hit_rank: int, config: RewardConfig) -> float:
    """Return weight x (1 + step x (10 - i)) for a hit at place i counted from 0; 0.0 without a hit."""
    if hit_rank == 0:
        return 0.0
    return config.hit_weight * (1.0 + config.hit_rank_step * max(0, 10 - (hit_rank - 1)))


def likeness(
    item_ids: Sequence[Sequence[int]], targets: Sequence[int], *, text_vectors: FloatArray, id_vectors: FloatArray
) -> FloatArray:
    """Return each item's mean of text-embedding dot product and cosine of item embeddings to its row's target.

    A row's figures do not depend on the other rows, to the last bit.

    Args:
        item_ids: B rows of K; PAD gives 0.0.
        targets: B item ids.
        text_vectors: float32 [num_items + 1, D], unit rows, row 0 zeros.
        id_vectors: float32 [num_items + 1, d], any norm, row 0 zeros.

    Returns:
        [B, K], of the vectors' type.
    """
    rows_BK, target_B = np.array(item_ids, dtype=np.int64), np.array(targets, dtype=np.int64)
    ids_BKd, wanted_Bd = id_vectors.take(rows_BK, axis=0), id_vectors.take(target_B, axis=0)
    norms_BK = np.sqrt(np.vecdot(ids_BKd, ids_BKd) * np.vecdot(wanted_Bd, wanted_Bd)[:, None])
    values_BK = np.matmul(ids_BKd, wanted_Bd[:, :, None])[:, :, 0]
    values_BK /= np.maximum(norms_BK, 1e-8)
    texts_BKD, wanted_BD = text_vectors.take(rows_BK, axis=0), text_vectors.take(target_B, axis=0)
    values_BK += np.matmul(texts_BKD, wanted_BD[:, :, None])[:, :, 0]
    return np.asarray(values_BK / 2)


@lru_cache(maxsize=64)
def place_weights(num_places: int) -> tuple[float, ...]:
    """Return (1 - i / num_places)^2 for i from 0."""
    return tuple((1.0 - place / num_places) ** 2 for place in range(num_places))


def mean_similarities(
    outcomes: Sequence[Outcome], targets: Sequence[int], *, text_vectors: FloatArray, id_vectors: FloatArray
) -> list[float]:
    """Return for each ranking the mean likeness to its target, early places more; in [0, 1].

    Unknown, duplicate and never-retrieved titles count 0 and keep their weight in the mean; so does a dissimilar item,
    for a negative likeness would make an invented title the better choice.
    """
    similarities = []
    for values, outcome in zip(
        likeness_by_place(outcomes, targets, text_vectors=text_vectors, id_vectors=id_vectors), outcomes
    ):
        weights = place_weights(outcome.top_k)
        similarities.append(sum(map(mul, weights, values)) / sum(weights))
    return similarities


def likeness_by_place(
    outcomes: Sequence[Outcome], targets: Sequence[int], *, text_vectors: FloatArray, id_vectors: FloatArray
) -> list[list[float]]:
    """Return what each place of each ranking counts in `mean_similarities`, in [0, 1].

    Args:
        outcomes: rankings of equal length, as those of well-formed episodes are.
        targets: the held-out item of each.
        text_vectors: float32 [num_items + 1, D], unit rows, row 0 zeros.
        id_vectors: float32 [num_items + 1, d], row 0 zeros.
    """
    counted: list[list[float]] = []
    for start in range(0, len(outcomes), _RANKINGS_AT_ONCE):
        batch = slice(start, start + _RANKINGS_AT_ONCE)
        earning = [outcome.earning_ids for outcome in outcomes[batch]]
        rows = [[ids[0] for ids in places] for places in earning]
        values = likeness(rows, targets[batch], text_vectors=text_vectors, id_vectors=id_vectors)
        for places, row, target in zip(earning, values.clip(0.0, 1.0).tolist(), targets[batch]):
            counted.append([1.0 if target in ids else value for ids, value in zip(places, row)])
    return counted
