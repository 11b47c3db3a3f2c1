"""What the searches of an episode are worth. Pure: texts, vectors and ranks in, numbers out."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from deeprec_env.rewards.config import RewardConfig
from trm.types import FloatArray

_WORD = re.compile(r"\w+")
_UNSEEN = ("Mn", "Cf")
"""Unicode categories that change how a letter looks little or not at all: accents, joiners, soft hyphens."""


@lru_cache(maxsize=8192)
def canonical_preference(text: str) -> frozenset[str]:
    """Return the words of a preference, without accents and invisible characters, case folded."""
    folded = text.casefold()
    if not folded.isascii():
        parts = unicodedata.normalize("NFKD", folded)
        plain = "".join(char for char in parts if unicodedata.category(char) not in _UNSEEN)
        folded = unicodedata.normalize("NFKC", plain).casefold()
    return frozenset(_WORD.findall(folded))


class Newness(StrEnum):
    """Whether a search asks for something new, or why not."""

    NEW = "new"
    NO_WORDS = "no words"
    SAME_WORDS = "same words"
    """Its words were asked before, in whatever order and spelling."""
    FEW_NEW_CANDIDATES = "few new candidates"
    """What it found was known already."""
    NEAR = "near"
    """Its embedding is near to an earlier one's."""


_NEW = Newness.NEW
"""As a plain name, because it is read several times a search: through its class it costs as much as a call."""


class JudgedSearch(NamedTuple):
    """A search and what `DistinctPreferences` made of it."""

    preference: str
    newness: Newness
    like: str | None = None
    """The earlier preference that it repeats, where it repeats one."""
    dot: float | None = None
    """The greatest dot product with an earlier preference that asked for something new."""
    new_share: float = 0.0
    """Share of its candidates that no search had returned before."""


class DistinctPreferences:
    """The searches of one episode, and which of them ask for something new. Grows search by search."""

    __slots__ = (
        "_asked",
        "_cap",
        "_dot_sum",
        "_min_new_share",
        "_near_duplicate",
        "_num_pairs",
        "distance",
        "judged",
        "kept",
        "vectors",
    )

    def __init__(self, config: RewardConfig) -> None:
        """Hold the thresholds; nothing has been asked yet."""
        self._near_duplicate = config.near_duplicate
        self._min_new_share = config.min_new_share
        self._cap = config.diversity_cap
        self._asked: dict[frozenset[str], str] = {}
        self._dot_sum = 0.0
        self._num_pairs = 0
        self.judged: list[JudgedSearch] = []
        """All searches, in order."""
        self.kept: list[str] = []
        """The preferences that ask for something new, in order."""
        self.vectors: list[FloatArray] = []
        """Their unit embeddings."""
        self.distance = 0.0
        """The mean distance of the vectors, up to the configured cap; 0.0 with fewer than two."""

    def add(self, preference: str, vector: FloatArray, *, num_new: int, num_found: int) -> JudgedSearch:
        """Judge the next search.

        Args:
            preference: its text.
            vector: its unit embedding.
            num_new: how many of its candidates no search had returned before.
            num_found: how many candidates it returned.
        """
        judged = self._judge(preference, vector, num_new / num_found if num_found else 0.0)
        self.judged.append(judged)
        if judged.newness is _NEW:
            self.kept.append(preference)
            self.vectors.append(vector)
        return judged

    def _judge(self, preference: str, vector: FloatArray, share: float) -> JudgedSearch:
        words = canonical_preference(preference)
        if not words:
            return JudgedSearch(preference, Newness.NO_WORDS, None, None, share)
        if words in self._asked:
            return JudgedSearch(preference, Newness.SAME_WORDS, self._asked[words], None, share)
        if share == 0.0 or share < self._min_new_share:
            return JudgedSearch(preference, Newness.FEW_NEW_CANDIDATES, None, None, share)
        self._asked[words] = preference
        if not self.vectors:
            return JudgedSearch(preference, _NEW, None, None, share)
        dots = list(map(float, map(vector.dot, self.vectors)))
        nearest = max(dots)
        if nearest >= self._near_duplicate:
            return JudgedSearch(preference, Newness.NEAR, self.kept[dots.index(nearest)], nearest, share)
        self._dot_sum = sum(dots, self._dot_sum)
        self._num_pairs += len(dots)
        self.distance = min(1.0 - self._dot_sum / self._num_pairs, self._cap)
        return JudgedSearch(preference, _NEW, None, nearest, share)


def invocation_reward(num_searches: int, config: RewardConfig) -> float:
    """Return weight x (min(n, max) - 1) for n > 1 searches, else 0.0."""
    return config.invocation_weight * (min(num_searches, config.invocation_max) - 1) if num_searches > 1 else 0.0


def capped_distance(dots: Sequence[float], *, cap: float) -> float:
    """Return min(1 - mean, cap) of the dot products of pairs of unit vectors; 0.0 without a pair."""
    return min(1.0 - sum(dots) / len(dots), cap) if dots else 0.0


def mean_distance(vectors: Sequence[FloatArray], *, cap: float = math.inf) -> float:
    """Return min(1 - mean pairwise dot product, cap) for more than one unit vector, else 0.0."""
    stacked = np.array(vectors, dtype=np.float64)
    pairs = np.triu_indices(len(stacked), k=1)
    return capped_distance((stacked @ stacked.T)[pairs].tolist() if len(stacked) > 1 else [], cap=cap)


def progress_potential(target_ranks: Iterable[int]) -> float:
    """Return 1 / log2(1 + r) for the target's best rank r among the searches' answers (0 = absent), else 0.0."""
    found = [rank for rank in target_ranks if rank > 0]
    return 1.0 / math.log2(1 + min(found)) if found else 0.0
