"""The in-process Retriever: one search a call, histories and preferences encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from trm.frozen import FrozenTRM
from trm.index import IndexKind, VectorIndex, build_index, hide
from trm.types import Candidates, FloatArray, IntArray, RetrievalQuery, TextEncoder

_MARGIN = 8
"""Extra candidates that are scored again in float64, so that an order never hangs on the shape of a batch."""


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
        queries_BD = self.query_vectors(queries)
        excluded = [query.history if query.exclude_history else () for query in queries]
        ids_BK, scores_BK = self.index.search(queries_BD, largest_k + _MARGIN, excluded=excluded)
        items_BKD = self.frozen.item_vectors[ids_BK].astype(np.float64)
        exact_BK = np.matmul(items_BKD, queries_BD.astype(np.float64)[:, :, None])[:, :, 0]
        exact_BK[np.isneginf(scores_BK)] = -np.inf
        order_BK = np.lexsort((ids_BK, -exact_BK), axis=1)[:, :largest_k]
        ids_BK = np.take_along_axis(ids_BK, order_BK, axis=1)
        exact_BK = np.take_along_axis(exact_BK, order_BK, axis=1)
        counts = np.isfinite(exact_BK).sum(axis=1)
        return [
            Candidates(item_ids=tuple(ids[: min(query.k, count)]), scores=tuple(scores[: min(query.k, count)]))
            for query, ids, scores, count in zip(queries, ids_BK.tolist(), exact_BK.tolist(), counts.tolist())
        ]

    def ranks(self, queries: Sequence[RetrievalQuery], targets: Sequence[int]) -> IntArray:
        """Return each target's rank from 1 among all items, int64 [len(queries)].

        Equal scores are ordered by id. k is ignored; where a query excludes its history and the target is in it, the
        rank is 0 (not ranked).
        """
        if len(queries) != len(targets):
            raise ValueError(f"expected a target for each of {len(queries)} queries, got {len(targets)}")
        if not queries:
            return np.zeros(0, dtype=np.int64)
        scores_BN = self.query_vectors(queries) @ self.frozen.item_vectors.T
        hide(scores_BN, [query.history if query.exclude_history else () for query in queries])
        return ranks_of(scores_BN, np.asarray(targets, dtype=np.int64))

    def query_vectors(self, queries: Sequence[RetrievalQuery]) -> FloatArray:
        """Return the unit query vectors, float32 [B, D], from the caches where they can be."""
        states_BD = self._states([query.history for query in queries])
        return self.frozen.queries(states_BD, self.encoder.encode([query.preference for query in queries]))

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
