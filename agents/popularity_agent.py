"""The agent *popularity*: what most users of the training part took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agents.base import EpisodeView, RuleAgent, Step, by_popularity


class PopularityAgent(RuleAgent):
    """Recommends the items of most training interactions that are not in the history; equal counts by id."""

    name = "popularity"

    def plan(self, view: EpisodeView) -> Sequence[Step]:
        """Return one search with an empty preference."""
        return [Step("", "Let me see some items.")]

    def rank(self, view: EpisodeView) -> Iterable[int]:
        """Return the catalogue by falling popularity, without the history."""
        return by_popularity(view)

    def conclude(self, view: EpisodeView) -> str:
        """Return the reasoning that stands before the recommendation."""
        return "What most people take is a safe guess."
