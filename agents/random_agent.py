"""The agent *random*: one search, for form's sake, and then any items of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agents.base import EpisodeView, RuleAgent, Step


class RandomAgent(RuleAgent):
    """Recommends uniformly drawn items that are not in the history."""

    name = "random"

    def plan(self, view: EpisodeView) -> Sequence[Step]:
        """Return one search with an empty preference."""
        return [Step("", "Let me see some items.")]

    def rank(self, view: EpisodeView) -> Iterable[int]:
        """Yield the catalogue in an order drawn by the view's seed, without the history."""
        history = set(view.history)
        for index in view.rng().permutation(view.catalog.num_items):
            if (item_id := int(index) + 1) not in history:
                yield item_id

    def conclude(self, view: EpisodeView) -> str:
        """Return the reasoning that stands before the recommendation."""
        return "Any item may do."
