"""Ranking metrics of one target a user, and the uncertainty of their means. Knows neither models nor data sets.

Every metric takes full-catalogue ranks and returns one value a user: callers average. With one target Recall@K equals
HitRate@K.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

NOT_RANKED = 0
"""The rank of a target that is not in the list at all."""

_CHUNK_VALUES = 4_000_000


def recall_at_k(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return 1.0 where the target stands among the first k, else 0.0.

    Args:
        ranks: int [N], the target's rank from 1; 0 where it was not ranked.
        k: the cut-off, at least 1.
    """
    checked = _checked_ranks(ranks)
    return _within(checked, k).astype(np.float64)


def ndcg_at_k(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """Return 1 / log2(1 + rank) where the target stands among the first k, else 0.0 (the ideal DCG of one target is 1).

    Args:
        ranks: int [N], the target's rank from 1; 0 where it was not ranked.
        k: the cut-off, at least 1.
    """
    checked = _checked_ranks(ranks)
    within = _within(checked, k)
    gains = np.zeros(checked.shape, dtype=np.float64)
    gains[within] = 1.0 / np.log2(1.0 + checked[within])
    return gains


def mrr(ranks: ArrayLike) -> NDArray[np.float64]:
    """Return 1 / rank of each target, 0.0 where it was not ranked.

    Args:
        ranks: int [N], the target's rank from 1; 0 where it was not ranked.
    """
    checked = _checked_ranks(ranks)
    ranked = checked != NOT_RANKED
    reciprocal = np.zeros(checked.shape, dtype=np.float64)
    reciprocal[ranked] = 1.0 / checked[ranked]
    return reciprocal


def standard_error(values: ArrayLike) -> float:
    """Return the standard error of the mean (sample deviation, n - 1); nan for a single value.

    Raises:
        ValueError: if there is no value.
    """
    checked = _checked_values(values)
    if checked.size == 1:
        return float("nan")
    return float(checked.std(ddof=1) / math.sqrt(checked.size))


def bootstrap_interval(values: ArrayLike, *, seed: int = 0, num_resamples: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval (low, high) of the mean; the same for the same seed.

    Args:
        values: float [N], one value a user.
        seed: of the resampling.
        num_resamples: how many means are drawn.

    Raises:
        ValueError: if there is no value or num_resamples < 1.
    """
    checked = _checked_values(values)
    if num_resamples < 1:
        raise ValueError(f"expected num_resamples of at least 1, got {num_resamples}")
    rng = np.random.default_rng(seed)
    means = np.empty(num_resamples, dtype=np.float64)
    chunk = max(1, _CHUNK_VALUES // checked.size)
    for start in range(0, num_resamples, chunk):
        stop = min(start + chunk, num_resamples)
        picks = rng.integers(0, checked.size, size=(stop - start, checked.size))
        means[start:stop] = checked[picks].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _within(ranks: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    return (ranks != NOT_RANKED) & (ranks <= k)


def _checked_ranks(ranks: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(ranks)
    if array.size == 0:
        array = array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"expected integer ranks, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"expected ranks of shape [N], got {array.shape}")
    if array.size and array.min() < 0:
        raise ValueError(f"expected ranks from 1, or 0 for a target that was not ranked, got {array.min()}")
    return array.astype(np.int64)


def _checked_values(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"expected at least one value in an array of shape [N], got shape {array.shape}")
    return array
