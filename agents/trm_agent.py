"""The agent *trm*: the recommender alone, in the form of the game."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from agents.base import EpisodeView, RuleAgent, Step, by_popularity


class TRMAgent(RuleAgent):
    """Makes one search with an empty preference and recommends the answer in the recommender's own order."""

    name = "trm"

    def plan(self, view: EpisodeView) -> Sequence[Step]:
        """Return one search with an empty preference."""
        return [Step("", "Let me see what the recommender offers by itself.")]

    def rank(self, view: EpisodeView) -> Iterable[int]:
        """Return what the search found, best first; popular items after it, should k be below top_k."""
        return chain(view.turns[0].candidate_ids, by_popularity(view))

    def conclude(self, view: EpisodeView) -> str:
        """Return the reasoning that stands before the recommendation."""
        return "I keep the recommender's order."
