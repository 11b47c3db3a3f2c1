"""What the searches of an episode are worth. Pure: texts, vectors and ranks in, numbers out."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from deeprec_env.rewards.config import RewardConfig
from trm.types import FloatArray

_WORD = re.compile(r"\w+")
_UNSEEN = ("Mn", "Cf")
"""Unicode categories that change how a letter looks little or not at all: accents, joiners, soft hyphens."""


def canonical_preference(text: str) -> tuple[str, ...]:
    """Return the distinct words of a preference, without accents and invisible characters, case folded and sorted."""
    folded = text.casefold()
    if not folded.isascii():
        parts = unicodedata.normalize("NFKD", folded)
        plain = "".join(char for char in parts if unicodedata.category(char) not in _UNSEEN)
        folded = unicodedata.normalize("NFKC", plain).casefold()
    return tuple(sorted(set(_WORD.findall(folded))))


def distinct_preferences(
    searches: Iterable[tuple[str, int]], vectors: Mapping[str, FloatArray], *, near_duplicate: float
) -> list[str]:
    """Return the preferences that ask for something new, in order.

    Left out: those without a word, those whose words were asked before, those whose search returned no new candidate,
    and those whose embedding is near to an earlier one's.

    Args:
        searches: (preference, number of candidates not seen before) of each search.
        vectors: unit embeddings by preference.
        near_duplicate: dot product from which two preferences are one.
    """
    kept: list[str] = []
    asked: set[tuple[str, ...]] = set()
    for preference, num_new in searches:
        words = canonical_preference(preference)
        if not words or words in asked or num_new == 0:
            continue
        asked.add(words)
        if all(float(vectors[preference] @ vectors[other]) < near_duplicate for other in kept):
            kept.append(preference)
    return kept


def invocation_reward(num_searches: int, config: RewardConfig) -> float:
    """Return weight x (min(n, max) - 1) for n > 1 searches, else 0.0."""
    return config.invocation_weight * max(0, min(num_searches, config.invocation_max) - 1)


def mean_pairwise_dot(vectors: Sequence[FloatArray]) -> float:
    """Return the mean dot product over all pairs of at least two unit vectors."""
    stacked = np.stack(vectors).astype(np.float64)
    count = len(stacked)
    products = stacked @ stacked.T
    return float((products.sum() - np.trace(products)) / (count * (count - 1)))


def mean_distance(vectors: Sequence[FloatArray], *, cap: float = math.inf) -> float:
    """Return min(1 - mean pairwise dot product, cap) for more than one unit vector, else 0.0."""
    return min(1.0 - mean_pairwise_dot(vectors), cap) if len(vectors) > 1 else 0.0


def progress_potential(target_ranks: Iterable[int]) -> float:
    """Return 1 / log2(1 + r) for the target's best rank r among the searches' answers (0 = absent), else 0.0."""
    found = [rank for rank in target_ranks if rank > 0]
    return 1.0 / math.log2(1 + min(found)) if found else 0.0
