"""The agent *popularity*: what most users of the training part took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from agents.base import EpisodeView, RuleAgent, Step


class PopularityAgent(RuleAgent):
    """Recommends the items of most training interactions that are not in the history; equal counts by id."""

    name = "popularity"

    def plan(self, view: EpisodeView) -> Sequence[Step]:
        """Return one search with an empty preference."""
        return [Step("", "Let me see some items.")]

    def rank(self, view: EpisodeView) -> Iterable[int]:
        """Yield the catalogue by falling popularity, without the history."""
        history = set(view.history)
        for index in np.argsort(-view.popularity[1:], kind="stable"):
            if (item_id := int(index) + 1) not in history:
                yield item_id

    def conclude(self, view: EpisodeView) -> str:
        """Return the reasoning that stands before the recommendation."""
        return "What most people take is a safe guess."
