"""The menu: an action asks for one of a few preferences, or recommends.

Shapes: N episodes, M phrases of the menu, I items with PAD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray

from deeprec_env.game import Game
from deeprec_env.numeric_views.base import (
    OWN_ORDER,
    OWN_WEIGHT,
    RECENT,
    TREND_WEIGHT,
    NumericObs,
    NumericView,
    SeenEpisode,
)
from deeprec_env.protocol import render_search
from trm.data.catalog import Catalog
from trm.preferences import PreferenceWriter
from trm.types import FloatArray


class MenuView(NumericView):
    """Actions are numbers: ask for one of the menu's preferences, or recommend. See `wrappers.PreferenceMenu`."""

    action_space: Discrete

    def __init__(
        self,
        game: Game,
        *,
        num_phrases: int = 32,
        own_weight: float = OWN_WEIGHT,
        recent: int | None = RECENT,
        trend_weight: float = TREND_WEIGHT,
    ) -> None:
        """Write the menu.

        Args:
            game: as for NumericView.
            num_phrases: entries of the menu, the empty one included; fewer where the catalogue has fewer attributes.
            own_weight: as for NumericView.
            recent: as for NumericView.
            trend_weight: as for NumericView.

        Raises:
            TypeError: if the recommender is no TRM in this process.
            ValueError: if a number is too small.
        """
        if num_phrases < 1:
            raise ValueError(f"expected num_phrases to be at least 1, got {num_phrases}")
        super().__init__(game, own_weight=own_weight, recent=recent, trend_weight=trend_weight)
        catalog = game.world.catalog
        self.phrases: tuple[str, ...] = (OWN_ORDER, *PreferenceWriter(catalog).phrases(num_phrases - 1))
        self._carries_IM = _phrase_table(catalog, self.phrases)
        share = Box(0.0, 1.0, (len(self.phrases),), np.float32)
        self.action_space = Discrete(len(self.phrases) + 1)
        shares = dict.fromkeys(("asked", "liked", "lately", "missing"), share)
        allowed = Box(0.0, 1.0, (len(self.phrases) + 1,), np.float32)
        self.observation_space = Dict({**self._common_spaces(), **shares, "allowed": allowed})

    def observe(self, episodes: Sequence[SeenEpisode]) -> NumericObs:
        """Return fresh arrays, the N observations one a row."""
        observed, missing = self._common(episodes)
        histories = [episode.history for episode in episodes]
        return {
            **observed,
            "asked": np.stack([self._asked(episode) for episode in episodes]),
            "liked": np.stack([self._share(history) for history in histories]),
            "lately": np.stack([self._share(history[-RECENT:]) for history in histories]),
            "missing": np.stack([self._share(item_ids) for item_ids in missing]),
            "allowed": np.stack([self.masks(episode) for episode in episodes]).astype(np.float32),
        }

    def check(self, action: Any) -> None:
        """Do nothing.

        Raises:
            ValueError: if there is no such action.
        """
        if not 0 <= int(action) <= len(self.phrases):
            raise ValueError(f"expected an action in 0..{len(self.phrases)}, got {action!r}")

    def search_text(self, action: Any) -> str | None:
        """Return the text of the search that the action stands for; None if it recommends."""
        if int(action) == len(self.phrases):
            return None
        return render_search(self.phrases[int(action)], reasoning="Let me look.")

    def masks(self, episode: SeenEpisode) -> NDArray[np.bool_]:
        """Return which actions make sense now: phrases not asked for yet, and recommending once there is a pool."""
        mask = np.append(self._asked(episode) == 0.0, bool(episode.pool))
        if sum(bool(turn.candidate_ids) for turn in episode.turns) >= self.game.config.max_turns:
            mask[:-1] = False
        return mask

    def _asked(self, episode: SeenEpisode) -> FloatArray:
        asked = {turn.preference for turn in episode.turns if turn.candidate_ids}
        return np.array([phrase in asked for phrase in self.phrases], dtype=np.float32)

    def _share(self, item_ids: Sequence[int]) -> FloatArray:
        """Return the share of the items that have each phrase, float32 [M]."""
        if not item_ids:
            return np.zeros(len(self.phrases), dtype=np.float32)
        return np.asarray(self._carries_IM[list(item_ids)].mean(axis=0), dtype=np.float32)


def _phrase_table(catalog: Catalog, phrases: tuple[str, ...]) -> FloatArray:
    """Return which item has which phrase among its attributes, float32 [I, M] of 0 and 1."""
    place = {phrase: column for column, phrase in enumerate(phrases)}
    table = np.zeros((catalog.num_items + 1, len(phrases)), dtype=np.float32)
    for item in catalog:
        columns = [place[value] for values in item.attributes.values() for value in values if value in place]
        table[item.item_id, columns] = 1.0
    return table
