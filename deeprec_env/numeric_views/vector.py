"""The vector: an action is a preference as numbers, which go straight to the recommender, or recommends.

Shapes: N episodes, C components of a preference, P the text dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from deeprec_env.game import Game
from deeprec_env.numeric_views.base import (
    OWN_ORDER,
    OWN_WEIGHT,
    RECENT,
    TREND_WEIGHT,
    NumericObs,
    NumericView,
    SeenEpisode,
    clipped,
)
from deeprec_env.protocol import render_search
from deeprec_env.spoken_vectors import spoken_world
from trm.preferences import PreferenceWriter
from trm.types import FloatArray


class VectorView(NumericView):
    """Actions are preferences as vectors. See `wrappers.PreferenceVector`. The game to be played is `view.game`."""

    action_space: Box

    def __init__(
        self,
        game: Game,
        *,
        num_components: int | None = None,
        own_weight: float = OWN_WEIGHT,
        recent: int | None = RECENT,
        trend_weight: float = TREND_WEIGHT,
    ) -> None:
        """Make the game's like whose recommender hears vectors.

        Args:
            game: as for NumericView.
            num_components: length of a preference; the text encoder's dimension if None.
            own_weight: as for NumericView.
            recent: as for NumericView.
            trend_weight: as for NumericView.

        Raises:
            TypeError: if the recommender is no TRM in this process.
            ValueError: if a number is out of its range.
        """
        world = spoken_world(game.world)
        super().__init__(Game(world, game.config), own_weight=own_weight, recent=recent, trend_weight=trend_weight)
        self._encoder = world.encoder
        self._basis_CP = _main_directions(world.item_text_vectors[1:], num_components)
        self._phrases = PreferenceWriter(world.catalog).phrases(64)
        self._phrase_vectors = world.encoder.encode(self._phrases)
        size = len(self._basis_CP)
        self.action_space = Box(-1.0, 1.0, (size + 1,), np.float32)
        mean = Box(-1.0, 1.0, (size,), np.float32)
        self.observation_space = Dict({**self._common_spaces(), "asked": mean, "missing": mean})

    def observe(self, episodes: Sequence[SeenEpisode]) -> NumericObs:
        """Return fresh arrays, the N observations one a row."""
        observed, missing = self._common(episodes)
        asked = [[turn.preference or OWN_ORDER for turn in e.turns if turn.candidate_ids] for e in episodes]
        texts = self.game.world.item_text_vectors
        return {
            **observed,
            "asked": np.stack([self._mean(self._encoder.encode(preferences)) for preferences in asked]),
            "missing": np.stack([self._mean(texts[item_ids]) for item_ids in missing]),
        }

    def check(self, action: Any) -> None:
        """Do nothing.

        Raises:
            ValueError: if the shape is wrong or a number is not finite.
        """
        numbers = np.asarray(action, dtype=np.float32)
        if numbers.shape != self.action_space.shape or not np.isfinite(numbers).all():
            raise ValueError(f"expected {self.action_space.shape} finite numbers, got {action!r}")

    def search_text(self, action: Any) -> str | None:
        """Return the text of the search that the action stands for; None if it recommends."""
        # Rounded, so that a policy's last bits, which depend on how episodes were batched, give no other preference.
        numbers = np.asarray(action, dtype=np.float32).round(3)
        if numbers[-1] > 0:
            return None
        vector = numbers[:-1] @ self._basis_CP
        near = self._phrases[int(np.argmax(self._phrase_vectors @ vector))] if self._phrases else ""
        return render_search(self._encoder.speak(vector, near=near), reasoning="Let me look.")

    def _mean(self, vectors_XP: FloatArray) -> FloatArray:
        """Return the mean of the rows in components, float32 [C]; zeros without rows."""
        if len(vectors_XP) == 0:
            return np.zeros(len(self._basis_CP), dtype=np.float32)
        return clipped(self._basis_CP @ vectors_XP.mean(axis=0))


def _main_directions(vectors: FloatArray, count: int | None) -> FloatArray:
    """Return orthonormal rows float32 [count, P], those along which the vectors spread most; all axes if None.

    Raises:
        ValueError: if count is not in 1..P.
    """
    size = vectors.shape[1]
    if count is None:
        return np.eye(size, dtype=np.float32)
    if not 1 <= count <= size:
        raise ValueError(f"expected num_components to be in 1..{size}, got {count}")
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    rows = np.ascontiguousarray(directions.T[::-1][:count])
    signs = np.sign(rows[np.arange(count), np.abs(rows).argmax(axis=1)])
    return np.asarray(rows * signs[:, None], dtype=np.float32)
