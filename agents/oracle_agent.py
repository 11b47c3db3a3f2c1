"""The agent *oracle*: a ceiling, not a policy. It is told the target, which no view shows (agents.base.SeesTarget)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from agents.base import AgentError, EpisodeView, by_popularity, first_titles
from deeprec_env.protocol import render_recommend, render_search


class OracleAgent:
    """Asks for the target's own attributes, and ranks the target first as soon as a search has found it.

    The first search asks for all attributes at once. While the target has not come up, further ones ask for the
    recommender's own order, and then for each attribute alone. So it bounds what perfect knowledge of a person's wish
    can bring through this recommender; no title is searched, and nothing that was not retrieved is recommended ahead of
    the pool. Tables mark it as one that sees the target.
    """

    def __init__(self, *, max_searches: int = 1, name: str = "oracle") -> None:
        """Build the agent.

        Args:
            max_searches: how many searches it may make; the rules' max_turns bounds it too.
            name: how it is called in tables, before the mark.

        Raises:
            AgentError: if max_searches is below 1.
        """
        if max_searches < 1:
            raise AgentError(f"the oracle wants max_searches of at least 1, got {max_searches}")
        self._max_searches = max_searches
        self.name = name if max_searches == 1 else f"{name}, {max_searches} searches"
        self.fingerprint = str(max_searches)
        self._targets: dict[int, int] = {}

    def reveal(self, key: int, target: int) -> None:
        """Take note of an episode's held-out item."""
        self._targets[key] = target

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return the next search while the target has not come up, and then the best ranking of the pool.

        Raises:
            AgentError: if an episode's target was not revealed.
        """
        return [self._act(view) for view in episodes]

    def _act(self, view: EpisodeView) -> str:
        if view.key not in self._targets:
            raise AgentError("the oracle was not told the target; play it by agents.play.play")
        target = self._targets[view.key]
        pool = view.pool
        allowed = min(self._max_searches, view.config.max_turns)
        if target not in pool and view.num_turns < allowed:
            wishes = list(dict.fromkeys(_wishes(view, target)))
            if view.num_turns < len(wishes):
                return render_search(wishes[view.num_turns], reasoning="I know what they will choose.")
        ranked = chain([target] if target in pool else [], pool, by_popularity(view))
        titles = first_titles(view.catalog, ranked, view.config.top_k)
        return render_recommend(titles, reasoning="I rank what I know they will choose first, if it came up.")


def _wishes(view: EpisodeView, target: int) -> Iterator[str]:
    """Yield preferences that describe the target by its attributes, the fullest first, and the empty one."""
    yield view.catalog.attribute_line(target)
    yield ""
    for values in view.catalog[target].attributes.values():
        yield from values
