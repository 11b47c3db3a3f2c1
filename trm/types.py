"""The records and Protocols between the recommender and whoever calls it. Holds no logic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RetrievalQuery:
    """What is asked of a retriever: a user history and a preference in words."""

    history: tuple[int, ...]
    """Item ids, oldest first, without padding. Never holds the target."""
    preference: str
    """Free text; "" asks for the model's own order."""
    k: int = 20
    """How many candidates to return."""
    exclude_history: bool = True
    """Whether items of the history are left out of the answer."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The answer to one query, best first."""

    item_ids: tuple[int, ...]
    """At most k item ids, distinct, never PAD."""
    scores: tuple[float, ...]
    """The scores of item_ids, not increasing."""


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to unit vectors."""

    name: str
    """Identifies model and version; keys the disk cache."""
    dim: int

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), dim], each row of unit norm (an empty text: the zero row)."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """Answers queries with candidates."""

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        """Return one Candidates a query, in the order of the queries.

        Raises:
            RetrieverError: if the service behind it is broken.
        """
        ...


@runtime_checkable
class RankingRetriever(Retriever, Protocol):
    """A Retriever that can also say where it ranks a target."""

    def ranks(self, queries: Sequence[RetrievalQuery], targets: Sequence[int]) -> IntArray:
        """Return each target's rank from 1 among all items, int64 [len(queries)]; 0 where its query excludes it."""
        ...
