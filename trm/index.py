"""The best items by inner product: exact in numpy, or by faiss, behind one function. THE place of faiss.

Shapes: B queries, D width, N items (0 is padding), K answers, E excluded ids of a query.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, Protocol, get_args

import numpy as np

from trm.errors import TRMError
from trm.types import FloatArray, IntArray

IndexKind = Literal["exact", "flat", "ivf", "hnsw"]
"""Exact in numpy; faiss: exact, inverted lists (the default approximate index), a graph of neighbours."""

APPROXIMATE_FROM = 200_000
"""Items from which the default is approximate."""
RECALL = 0.995
"""Share of the exact best 20 that an approximate index is tuned to find; real queries may find a little less."""

_SCORES_AT_ONCE = 1 << 26
"""Bounds queries * items of one matrix product, a quarter of a gigabyte of scores."""
_SCORES_IN_CACHE = 1 << 20
"""Bounds queries * items whose best are looked for at once: few enough to be read a second time from a cache."""
_LEAST_SEGMENTS = 4
_PLACES = 16
"""Maxima for each column that is wanted: so many that two of the best seldom fall on one place."""
_WORD = 8
"""Columns that are looked at as one 64-bit number."""
_FEW = 8
"""Times as many columns as are wanted may reach the threshold; where more do, most are equal."""
_TUNED_ON = 256
_TUNED_AT = 20
_NOISE = 0.5
_WORTHWHILE = 1 / 8
"""Share of the lists past which searching them costs about as much as searching all items."""
_TRAINED_ON = 64
"""Vectors a list that the k-means of inverted lists sees."""
_HNSW_NEIGHBOURS = 32
_HNSW_CONSTRUCTION = 80

logger = logging.getLogger(__name__)


class VectorIndex(Protocol):
    """Item vectors that can be searched."""

    def search(
        self, queries_BD: FloatArray, count: int, *, excluded: Sequence[Sequence[int]]
    ) -> tuple[IntArray, FloatArray]:
        """Return the ids [B, K] and scores [B, K] of the best items of each query, in no order, K <= count.

        Padding and the excluded items are not among them; where too few are left the score is -inf.

        Args:
            queries_BD: float32 [B, D].
            count: how many are wanted.
            excluded: for each query, ids in 1..N.
        """
        ...


def build_index(vectors_ND: FloatArray, *, kind: IndexKind | None = None) -> VectorIndex:
    """Return an index over item vectors.

    Args:
        vectors_ND: float32 [N + 1, D], row 0 is padding. Not copied by "exact".
        kind: if not given, `default_kind` of the number of items, or "exact" where that would gain nothing.

    Raises:
        ValueError: if there is no such kind.
        TRMError: if faiss is wanted and not installed.
    """
    wanted = kind or default_kind(len(vectors_ND) - 1)
    if wanted not in get_args(IndexKind):
        raise ValueError(f"expected an index of {get_args(IndexKind)}, got {wanted!r}")
    if wanted == "exact":
        return ExactIndex(vectors_ND)
    index = FaissIndex(vectors_ND, kind=wanted)
    if kind is None and index.effort > _WORTHWHILE * index.num_lists:
        logger.warning(
            "the item vectors have too little structure for an approximate index (%d of %d lists must be searched for "
            "a recall of %.3f); they are searched exactly",
            index.effort,
            index.num_lists,
            RECALL,
        )
        return ExactIndex(vectors_ND)
    return index


def default_kind(num_items: int) -> IndexKind:
    """Return "exact", or "ivf" from APPROXIMATE_FROM items on, where faiss is installed."""
    if num_items < APPROXIMATE_FROM:
        return "exact"
    if importlib.util.find_spec("faiss") is None:
        logger.warning("%d items are searched exactly, as faiss is missing; pip install deeprec-env[faiss]", num_items)
        return "exact"
    return "ivf"


class ExactIndex:
    """One matrix product and a search for the best in two steps.

    The memory of the scores is kept from call to call, one piece a thread: asking the system for it anew costs as much
    as the search for the best.
    """

    def __init__(self, vectors_ND: FloatArray) -> None:
        self._vectors_ND = vectors_ND
        self._kept = threading.local()

    def search(
        self, queries_BD: FloatArray, count: int, *, excluded: Sequence[Sequence[int]]
    ) -> tuple[IntArray, FloatArray]:
        """See VectorIndex."""
        num_columns = len(self._vectors_ND)
        rows_at_once = min(len(queries_BD), max(1, _SCORES_AT_ONCE // num_columns))
        rows_in_cache = max(1, _SCORES_IN_CACHE // num_columns)
        scratch: FloatArray | None = getattr(self._kept, "scores", None)
        if scratch is None or len(scratch) < rows_at_once:
            scratch = self._kept.scores = np.empty((rows_at_once, num_columns), dtype=np.float32)
        ids, scores = [], []
        for start in range(0, len(queries_BD), rows_at_once):
            rows = slice(start, start + rows_at_once)
            batch_BD = queries_BD[rows]
            scores_BN = np.matmul(batch_BD, self._vectors_ND.T, out=scratch[: len(batch_BD)])
            hide(scores_BN, excluded[rows])
            for first in range(0, len(batch_BD), rows_in_cache):
                ids_BK, scores_BK = best_columns(scores_BN[first : first + rows_in_cache], min(count, num_columns))
                ids.append(ids_BK)
                scores.append(scores_BK)
        return np.concatenate(ids), np.concatenate(scores)


class FaissIndex:
    """Vectors in a faiss index, on the GPU where faiss finds one; an approximate one is tuned to RECALL when built."""

    def __init__(self, vectors_ND: FloatArray, *, kind: IndexKind) -> None:
        """Build the index; at a million items the inverted lists take about a minute, the graph several.

        Raises:
            TRMError: if faiss is not installed.
        """
        try:
            import faiss
        except ImportError as error:
            raise TRMError(f"expected faiss for {kind!r}, got {error}; run: pip install deeprec-env[faiss]") from error
        self._faiss = faiss
        self._vectors_ND = vectors_ND
        self.kind = kind
        items_ND = np.ascontiguousarray(vectors_ND[1:], dtype=np.float32)
        num_items, dim = items_ND.shape
        if kind == "flat":
            index: Any = faiss.IndexFlatIP(dim)
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, _HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = _HNSW_CONSTRUCTION
        else:
            num_lists = max(1, min(round(4 * num_items**0.5), num_items // 39 or 1))  # faiss wants 39 vectors a list
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.max_points_per_centroid = _TRAINED_ON
            index.train(items_ND)
        if kind != "hnsw" and getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
            index = faiss.index_cpu_to_all_gpus(index)
        index.add(items_ND)
        self._index = index
        self.num_lists = index.nlist if kind == "ivf" else 0
        """0 for other kinds."""
        self.effort = 0
        """How many lists, or how long a queue, a search looks at; 0 where that has no meaning."""
        if kind != "flat":
            self._tune()

    def search(
        self, queries_BD: FloatArray, count: int, *, excluded: Sequence[Sequence[int]]
    ) -> tuple[IntArray, FloatArray]:
        """See VectorIndex; an approximate index may miss some of the best."""
        longest = max(map(len, excluded), default=0)
        fetched = min(count + longest, len(self._vectors_ND) - 1)
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(self.effort, fetched)
        scores_BF, places_BF = self._index.search(np.ascontiguousarray(queries_BD, dtype=np.float32), fetched)
        ids_BF = places_BF + 1
        missing_BF = places_BF < 0
        if longest:
            excluded_BE = np.zeros((len(excluded), longest), dtype=np.int64)
            for row, ids in zip(excluded_BE, excluded):
                row[: len(ids)] = ids
            missing_BF |= (ids_BF[:, :, None] == excluded_BE[:, None, :]).any(axis=2)
        scores_BF = np.where(missing_BF, -np.inf, scores_BF).astype(np.float32)
        order_BK = np.argsort(-scores_BF, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(ids_BF, order_BK, axis=1), np.take_along_axis(scores_BF, order_BK, axis=1)

    @property
    def num_bytes(self) -> int:
        """The size of the index, with its own copy of the vectors."""
        return int(self._faiss.serialize_index(self._index).nbytes)

    def _tune(self) -> None:
        """Raise the effort until items with noise find RECALL of their exact best items."""
        rng = np.random.default_rng(0)
        num_items, dim = len(self._vectors_ND) - 1, self._vectors_ND.shape[1]
        picked = rng.integers(1, num_items + 1, size=min(_TUNED_ON, num_items))
        noise_BD = rng.standard_normal((len(picked), dim), dtype=np.float32) / np.float32(dim**0.5)
        queries_BD = self._vectors_ND[picked] + np.float32(_NOISE) * noise_BD
        nobody: list[Sequence[int]] = [()] * len(picked)
        count = min(_TUNED_AT, num_items)
        exact_BK, _ = ExactIndex(self._vectors_ND).search(queries_BD, count, excluded=nobody)
        largest = self.num_lists or num_items
        effort = 4 if self.kind == "ivf" else 32
        while True:
            self._set_effort(min(effort, largest))
            found_BK, _ = self.search(queries_BD, count, excluded=nobody)
            recall = overlap(found_BK, exact_BK)
            logger.debug("%s with effort %d: recall %.4f", self.kind, self.effort, recall)
            if recall >= RECALL or effort >= largest:
                return
            effort = effort * 3 // 2

    def _set_effort(self, effort: int) -> None:
        self.effort = effort
        if self.kind == "ivf":
            self._index.nprobe = effort


def overlap(found_BK: IntArray, expected_BK: IntArray) -> float:
    """Return the share of the expected ids that were found, over all rows."""
    hits = sum(len(set(found) & set(expected)) for found, expected in zip(found_BK.tolist(), expected_BK.tolist()))
    return hits / max(1, expected_BK.size)


def hide(scores_BN: FloatArray, excluded: Sequence[Sequence[int]]) -> None:
    """Set padding (column 0) and the excluded ids of each row to -inf, in place."""
    scores_BN[:, 0] = -np.inf
    lengths = [len(ids) for ids in excluded]
    columns = np.fromiter(chain.from_iterable(excluded), dtype=np.int64, count=sum(lengths))
    scores_BN[np.repeat(np.arange(len(excluded)), lengths), columns] = -np.inf


def best_columns(scores_BN: FloatArray, count: int) -> tuple[IntArray, FloatArray]:
    """Return columns [B, count] and scores [B, count] of the best of each row, in no order.

    The columns are cut into segments and laid one over the other: at each place the maximum over the segments. The
    best `count` reach at least the `count`th largest of these maxima, and few others do.

    Args:
        scores_BN: float32 [B, N], not NaN.
        count: in 1..N.
    """
    num_rows, num_columns = scores_BN.shape
    width = min(_PLACES * count, num_columns // _LEAST_SEGMENTS)
    if width < 2 * count:
        return _partitioned(scores_BN, count)
    num_segments = num_columns // width
    segments_BSW = scores_BN[:, : width * num_segments].reshape(num_rows, num_segments, width)
    least_B1 = np.partition(segments_BSW.max(axis=1), width - count, axis=1)[:, width - count, None]
    num_words = -(-num_columns // _WORD)
    reaching = np.zeros((num_rows, num_words * _WORD), dtype=bool)
    np.greater_equal(scores_BN, least_B1, out=reaching[:, :num_columns])
    words = np.flatnonzero(reaching.view(np.uint64) != 0)  # eight columns at a glance, as few hold any
    if len(words) > _FEW * count * num_rows:
        return _partitioned(scores_BN, count)
    chosen, places = np.nonzero(reaching.reshape(-1, _WORD)[words])
    rows, columns = np.divmod(words[chosen] * _WORD + places, num_words * _WORD)
    num_found_B = np.bincount(rows, minlength=num_rows)
    slots = np.arange(len(rows)) - (np.cumsum(num_found_B) - num_found_B)[rows]
    columns_BR = np.zeros((num_rows, num_found_B.max()), dtype=np.int64)
    scores_BR = np.full(columns_BR.shape, -np.inf, dtype=scores_BN.dtype)
    columns_BR[rows, slots], scores_BR[rows, slots] = columns, scores_BN[rows, columns]
    places_BK, best_BK = _partitioned(scores_BR, count)
    return np.take_along_axis(columns_BR, places_BK, axis=1), best_BK


def _partitioned(scores_BN: FloatArray, count: int) -> tuple[IntArray, FloatArray]:
    columns_BK = np.argpartition(scores_BN, scores_BN.shape[1] - count, axis=1)[:, scores_BN.shape[1] - count :]
    return columns_BK, np.take_along_axis(scores_BN, columns_BK, axis=1)
