"""The agent *my_agent*: searches for what the latest choices are like; what several searches find is ranked first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agents.base import AgentError, EpisodeView, first_titles
from deeprec_env.protocol import render_recommend, render_search


class MyAgent:
    """Asks for the attributes of each of the last few choices, the latest first.

    An agent needs no base class: a `name`, and a method `act` that answers many episodes at a time. A view shows the
    prompt, the history, the catalogue and what the searches returned; never the target.
    """

    def __init__(self, *, depth: int = 2) -> None:
        """Take the options that stand behind the name, as in `my_agent?depth=3`.

        Args:
            depth: how many of the last choices are asked for, each by a search.

        Raises:
            AgentError: if depth is below 1; the command shows the sentence and ends.
        """
        if depth < 1:
            raise AgentError(f"my_agent wants a depth of at least 1, got {depth}")
        self._depth = depth
        # The name stands in tables, and keys saved results together with the fingerprint: whoever plays otherwise must
        # differ in one of them, or old results are taken for new ones.
        self.name = "my_agent"
        self.fingerprint = f"depth={depth}"

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return one action text an episode, in their order. A model would answer all of them in one batch here."""
        return [self._turn(view) for view in episodes]

    def _turn(self, view: EpisodeView) -> str:
        latest = view.history[::-1][: min(self._depth, view.config.max_turns)]
        if view.num_turns < len(latest):
            wish = view.catalog.attribute_line(latest[view.num_turns])
            return render_search(wish, reasoning=f"More like {view.catalog.title(latest[view.num_turns])}.")
        if not view.turns:  # a user without a history: an empty preference asks for the recommender's own order
            return render_search("", reasoning="I know nothing of this person yet.")
        found = Counter(item_id for turn in view.turns for item_id in turn.candidate_ids)
        ranked = sorted(view.pool, key=lambda item_id: -found[item_id])  # equal counts keep the order of the searches
        titles = first_titles(view.catalog, ranked, view.config.top_k)
        return render_recommend(titles, reasoning="What several searches agree on comes first.")
