"""A space of texts that takes every string, quickly, and samples actions that mean something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from gymnasium import Space
from gymnasium.vector.utils import create_shared_memory

from deeprec_env.protocol import render_recommend, render_search

_ASPECTS = ("something light", "something recent", "a classic", "dark and slow", "fast and funny", "a family favourite")


class TextSpace(Space[str]):
    """All strings. `gymnasium.spaces.Text` has an alphabet and a length, and pays a millisecond for checking them."""

    def __init__(
        self, *, phrases: Sequence[str] = (), titles: Sequence[str] = (), seed: int | np.random.Generator | None = None
    ) -> None:
        """Make the space; the arguments shape `sample` only.

        Args:
            phrases: preferences to sample searches from.
            titles: titles to sample recommendations from; without any, only searches are sampled.
            seed: of the sampling.
        """
        super().__init__(shape=None, dtype=None, seed=seed)
        self.phrases = tuple(phrases) or _ASPECTS
        self.titles = tuple(titles)

    @property
    def is_np_flattenable(self) -> bool:
        """Texts have no fixed length."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Return a search with one or two phrases; one time in five a recommendation, if there are titles.

        Raises:
            ValueError: if a mask or probabilities are given.
        """
        if mask is not None or probability is not None:
            raise ValueError("expected neither mask nor probability for a TextSpace, got one; sample without them")
        rng = self.np_random
        if self.titles and rng.random() < 0.2:
            picks = rng.choice(len(self.titles), size=min(10, len(self.titles)), replace=False)
            return render_recommend([self.titles[i] for i in picks], reasoning="I rank what I know.")
        size = min(len(self.phrases), int(rng.integers(1, 3)))
        picks = rng.choice(len(self.phrases), size=size, replace=False)
        return render_search("; ".join(self.phrases[i] for i in picks), reasoning="What might they like?")

    def contains(self, x: Any) -> bool:
        """Return whether x is a string."""
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace)

    def __hash__(self) -> int:
        return hash(TextSpace)

    def __repr__(self) -> str:
        return "TextSpace()"


@create_shared_memory.register(TextSpace)
def _no_shared_memory(space: TextSpace, n: int = 1, ctx: Any = None) -> NoReturn:
    """Refuse: a text has no greatest length, so no block of memory is sure to hold it.

    Raises:
        ValueError: always, with what to pass instead.
    """
    raise ValueError(
        "expected shared_memory=False for observations that are texts, got shared_memory=True; pass "
        "AsyncVectorEnv(env_fns, shared_memory=False) or gym.make_vec(…, vectorization_mode='async', "
        "vector_kwargs={'shared_memory': False}), or leave vectorization_mode out for the faster DeepRecVectorEnv"
    )
