"""The in-process Retriever: one search a call, histories and preferences encoded once.

An item's score is the better of two: by the history's own query, and by the query with the preference plus the trust
that the model puts into it. The best of all are among the best of either, and the first do not change from call to
call, so they are kept.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trm.frozen import FrozenTRM
from trm.index import IndexKind, VectorIndex, build_index, hide
from trm.types import Candidates, FloatArray, IntArray, RetrievalQuery, TextEncoder

_MARGIN = 8
"""Extra candidates that are scored again in float64, so that an order never hangs on the shape of a batch."""

_ROWS_AT_ONCE = 64
"""Queries whose candidates are scored again at once: few enough for their vectors to stay in a cache."""

_Best = tuple[IntArray, NDArray[np.float64]]
"""Ids and scores of a query's best items, best first."""


class TRMRetriever:
    """Answers queries from a frozen TRM; equal scores are ordered by item id."""

    def __init__(
        self,
        frozen: FrozenTRM,
        encoder: TextEncoder,
        *,
        index: IndexKind | None = None,
        max_cached_histories: int = 50_000,
    ) -> None:
        """Join a model and the text encoder that it was trained with.

        Args:
            frozen: the model.
            encoder: of the preferences.
            index: how items are searched; exactly, or approximately in a large catalogue, if not given. It is built
                when it is first asked.
            max_cached_histories: how many encoded histories are kept.

        Raises:
            ValueError: if the encoder is another than the model's.
        """
        if encoder.name != frozen.encoder_name or encoder.dim != frozen.text_dim:
            raise ValueError(
                f"expected the text encoder {frozen.encoder_name!r} ({frozen.text_dim} dimensions) that the TRM was "
                f"trained with, got {encoder.name!r} ({encoder.dim})"
            )
        self.frozen = frozen
        self.encoder = encoder
        self._index_kind = index
        self._max_cached_histories = max_cached_histories
        self.num_encoded_histories = 0
        """How many histories went through the model; all others came from the cache."""
        self._state_by_history: OrderedDict[tuple[int, ...], FloatArray] = OrderedDict()
        self._own_best_by_history: OrderedDict[tuple[tuple[int, ...], bool], tuple[int, _Best]] = OrderedDict()

    @cached_property
    def index(self) -> VectorIndex:
        """What the items are searched in."""
        return build_index(self.frozen.item_vectors, kind=self._index_kind)

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        """Return one Candidates a query, in the order of the queries; fewer than k where the catalogue ends.

        Raises:
            ValueError: if a k is below 1 or a history holds an unknown id.
        """
        if not queries:
            return []
        largest_k = max(query.k for query in queries)
        if min(query.k for query in queries) < 1:
            raise ValueError(f"expected k of at least 1, got {min(query.k for query in queries)}")
        states_BS = self._states([query.history for query in queries])
        found = self._own_best(queries, states_BS, largest_k)
        vectors_BP = self.encoder.encode([query.preference for query in queries])
        rows = np.flatnonzero(vectors_BP.any(axis=1))
        if rows.size:
            asked = [queries[row] for row in rows]
            steered_XD, trust_X = self.frozen.steered(states_BS[rows], vectors_BP[rows])
            ids_XK, scores_XK = self._best(steered_XD, asked, largest_k)
            scores_XK += trust_X[:, None]
            own = [found[row] for row in rows]
            merged = _merged(
                np.concatenate((ids_XK[:, :largest_k], np.stack([ids[:largest_k] for ids, _ in own])), axis=1),
                np.concatenate((scores_XK[:, :largest_k], np.stack([scores[:largest_k] for _, scores in own])), axis=1),
            )
            for row, ids, scores in zip(rows.tolist(), *merged):
                found[row] = ids, scores
        return [_candidates(query.k, ids, scores) for query, (ids, scores) in zip(queries, found)]

    def ranks(self, queries: Sequence[RetrievalQuery], targets: Sequence[int]) -> IntArray:
        """Return each target's rank from 1 among all items, int64 [len(queries)].

        Equal scores are ordered by id. k is ignored; where a query excludes its history and the target is in it, the
        rank is 0 (not ranked).
        """
        if len(queries) != len(targets):
            raise ValueError(f"expected a target for each of {len(queries)} queries, got {len(targets)}")
        if not queries:
            return np.zeros(0, dtype=np.int64)
        scores_BN = self.scores(queries)
        hide(scores_BN, [query.history if query.exclude_history else () for query in queries])
        return ranks_of(scores_BN, np.asarray(targets, dtype=np.int64))

    def scores(self, queries: Sequence[RetrievalQuery]) -> FloatArray:
        """Return every item's score, float32 [len(queries), num_items + 1]; nothing is excluded, column 0 is PAD."""
        states_BS = self._states([query.history for query in queries])
        vectors_BP = self.encoder.encode([query.preference for query in queries])
        scores_BN = self.frozen.queries(states_BS) @ self.frozen.item_vectors.T
        rows = np.flatnonzero(vectors_BP.any(axis=1))
        if rows.size:
            steered_XD, trust_X = self.frozen.steered(states_BS[rows], vectors_BP[rows])
            scores_XN = steered_XD @ self.frozen.item_vectors.T
            scores_XN += trust_X[:, None]
            scores_BN[rows] = np.maximum(scores_BN[rows], scores_XN)
        return scores_BN

    def query_vectors(self, queries: Sequence[RetrievalQuery]) -> FloatArray:
        """Return unit query vectors, float32 [B, D]: with the preference, or the history's own where there is none."""
        states_BS = self._states([query.history for query in queries])
        return self.frozen.queries(states_BS, self.encoder.encode([query.preference for query in queries]))

    def _own_best(self, queries: Sequence[RetrievalQuery], states_BS: FloatArray, count: int) -> list[_Best]:
        """Return the best of each query's history by itself, best first, from the cache where they can be."""
        cache = self._own_best_by_history
        keys = [(query.history, query.exclude_history) for query in queries]
        found: dict[tuple[tuple[int, ...], bool], _Best] = {}
        missing: dict[tuple[tuple[int, ...], bool], int] = {}
        for row, key in enumerate(keys):
            if key not in found and key not in missing:
                kept = cache.get(key)
                if kept is not None and kept[0] >= count:
                    found[key] = kept[1]
                else:
                    missing[key] = row
        if missing:
            rows = list(missing.values())
            ids_XK, scores_XK = self._best(self.frozen.queries(states_BS[rows]), [queries[row] for row in rows], count)
            for key, ids, scores in zip(missing, ids_XK, scores_XK):
                found[key] = ids, scores
                cache[key] = count, found[key]
        for key in found:
            cache.move_to_end(key)
        while len(cache) > self._max_cached_histories:
            cache.popitem(last=False)
        return [found[key] for key in keys]

    def _best(
        self, vectors_BD: FloatArray, queries: Sequence[RetrievalQuery], count: int
    ) -> tuple[IntArray, NDArray[np.float64]]:
        """Return ids and exact scores of at least count items, if there are so many, [B, K], best first.

        Equal scores are ordered by id; what a query excludes scores -inf.
        """
        excluded = [query.history if query.exclude_history else () for query in queries]
        ids_BK, scores_BK = self.index.search(vectors_BD, count + _MARGIN, excluded=excluded)
        rows = [slice(first, first + _ROWS_AT_ONCE) for first in range(0, len(queries), _ROWS_AT_ONCE)]
        exact_BK = np.concatenate([self._exact(vectors_BD[block], ids_BK[block]) for block in rows])
        exact_BK[np.isneginf(scores_BK)] = -np.inf
        order_BK = np.lexsort((ids_BK, -exact_BK), axis=1)
        return np.take_along_axis(ids_BK, order_BK, axis=1), np.take_along_axis(exact_BK, order_BK, axis=1)

    def _exact(self, vectors_BD: FloatArray, ids_BK: IntArray) -> NDArray[np.float64]:
        items_BKD = np.take(self.frozen.item_vectors, ids_BK, axis=0).astype(np.float64)
        return np.matmul(items_BKD, vectors_BD.astype(np.float64)[:, :, None])[:, :, 0]

    def _states(self, histories: Sequence[tuple[int, ...]]) -> FloatArray:
        keys = [history[-self.frozen.max_history :] for history in histories]
        cache = self._state_by_history
        missing = [key for key in dict.fromkeys(keys) if key not in cache]
        found = dict(zip(missing, self.frozen.encode_histories(missing))) if missing else {}
        self.num_encoded_histories += len(missing)
        states = np.stack([found[key] if key in found else cache[key] for key in keys])
        cache.update(found)
        for key in keys:
            cache.move_to_end(key)
        while len(cache) > self._max_cached_histories:
            cache.popitem(last=False)
        return states


def ranks_of(scores_BN: FloatArray, targets_B: IntArray) -> IntArray:
    """Return the rank from 1 of each row's target column; equal scores by id, 0 where the target is -inf."""
    target_B1 = np.take_along_axis(scores_BN, targets_B[:, None], axis=1)
    better = (scores_BN > target_B1).sum(axis=1)
    columns = np.arange(scores_BN.shape[1])
    tied_before = ((scores_BN == target_B1) & (columns < targets_B[:, None])).sum(axis=1)
    return np.where(np.isneginf(target_B1[:, 0]), 0, 1 + better + tied_before)


def _merged(ids_BK: IntArray, scores_BK: NDArray[np.float64]) -> _Best:
    """Return the items of each row once, with the larger of their scores, best first; what is left over is -inf."""
    rows_B1 = np.arange(len(ids_BK))[:, None]
    by_id_BK = np.lexsort((-scores_BK, ids_BK), axis=1)
    ids_BK, scores_BK = ids_BK[rows_B1, by_id_BK], scores_BK[rows_B1, by_id_BK]
    scores_BK[:, 1:][ids_BK[:, 1:] == ids_BK[:, :-1]] = -np.inf
    order_BK = np.lexsort((ids_BK, -scores_BK), axis=1)
    return ids_BK[rows_B1, order_BK], scores_BK[rows_B1, order_BK]


def _candidates(k: int, ids: IntArray, scores: NDArray[np.float64]) -> Candidates:
    count = min(k, len(scores))
    while count and scores.item(count - 1) == -math.inf:
        count -= 1
    return Candidates(item_ids=tuple(ids[:count].tolist()), scores=tuple(scores[:count].tolist()))
