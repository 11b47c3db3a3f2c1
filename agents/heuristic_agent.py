"""The agent *heuristic*: preferences from the history, several searches, one fused ranking."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from agents.base import AgentError, EpisodeView, RuleAgent, Step, by_popularity
from deeprec_env.protocol import display_item
from trm.data.catalog import Catalog

NUM_SEARCHES = 3
"""An episode, unless told otherwise."""

_RANGE = re.compile(r"(\d+)-(\d+)")


class HeuristicAgent(RuleAgent):
    """Searches with an empty preference and with what stands out in the history, and fuses the answers.

    The answers are fused by reciprocal rank: an item scores, for each search that found it, that search's weight
    divided by (`rank_offset` + its rank there). The defaults were chosen on the validation split of MovieLens-100K.
    """

    def __init__(
        self,
        *,
        num_searches: int | str | Sequence[int] = NUM_SEARCHES,
        empty_weight: float = 4.0,
        rank_offset: float = 5.0,
        recent: int = 10,
        trend_weight: float = 0.0,
        name: str | None = None,
    ) -> None:
        """Build the agent.

        Args:
            num_searches: how many searches an episode; a range, "2-4" or (2, 4), is drawn from by the view's seed.
            empty_weight: the weight of the search with an empty preference; every other search has 1.
            rank_offset: above 0; the larger, the more agreement counts and the less the first places.
            recent: how many of the last items are the recent choices.
            trend_weight: besides, an item scores this times log(1 + its share of all users' latest choices, per mille).
            name: how it is called in tables; by default from the options that differ.

        Raises:
            AgentError: if an option is out of its range.
        """
        self._low, self._high = _parse_range(num_searches)
        if empty_weight < 0 or rank_offset <= 0 or recent < 1 or trend_weight < 0:
            raise AgentError(
                "the heuristic agent wants empty_weight >= 0, rank_offset > 0, recent >= 1 and trend_weight >= 0, "
                f"got {empty_weight}, {rank_offset}, {recent} and {trend_weight}"
            )
        self._empty_weight, self._rank_offset, self._recent = empty_weight, rank_offset, recent
        self._trend_weight = trend_weight
        searches = str(self._low) if self._low == self._high else f"{self._low}-{self._high}"
        differs = [f"{searches} searches"] * (searches != str(NUM_SEARCHES)) + ["trend"] * (trend_weight > 0)
        self.name = name or ("heuristic" + (f" ({', '.join(differs)})" if differs else ""))
        self.fingerprint = f"{searches} {empty_weight} {rank_offset} {recent} {trend_weight}"

    def plan(self, view: EpisodeView) -> Sequence[Step]:
        """Return the empty preference first, and then different facets of the history."""
        count = int(np.random.default_rng(view.seed).integers(self._low, self._high + 1))
        steps = {"": Step("", "First I see what fits the whole history.")}
        for step in self._facets(view):
            if len(steps) == count:
                break
            steps.setdefault(step.preference, step)
        return list(steps.values())

    def rank(self, view: EpisodeView) -> Iterable[int]:
        """Return the pool by falling fused score, equal scores by first appearance; popular items after it."""
        trend = self._trend_weight * np.log1p(view.trend) if self._trend_weight else np.zeros(len(view.popularity))
        scores = {item_id: float(trend[item_id]) for item_id in view.pool}
        for turn in view.turns:
            weight = 1.0 if turn.preference else self._empty_weight
            for place, item_id in enumerate(turn.candidate_ids, start=1):
                scores[item_id] += weight / (self._rank_offset + place)
        return chain(sorted(scores, key=lambda item_id: -scores[item_id]), by_popularity(view))

    def conclude(self, view: EpisodeView) -> str:
        """Return the reasoning that stands before the recommendation."""
        return f"I rank first what {len(view.turns)} searches agree on."

    def _facets(self, view: EpisodeView) -> Iterator[Step]:
        """Yield different sides of the history, the most useful first."""
        catalog, history = view.catalog, view.history
        if not history:
            return
        recent = history[-self._recent :]
        for values, reasoning in (
            (_telling_values(catalog, recent)[:4], "Lately they chose much {}."),
            (_common_values(catalog, history[-1:]), "The last choice was {}."),
            ([display_item(catalog.title(item_id)).title for item_id in history[-2:]], "They have just chosen {}."),
            (_common_values(catalog, recent)[:1], "The recent choices are mostly {}."),
            (_telling_values(catalog, history)[:2], "Their taste stands out by {}."),
            (_common_values(catalog, recent)[1:3], "There was also {}."),
            (_common_values(catalog, history)[1:3], "All in all they like {}."),
            (_common_values(catalog, history)[3:5], "Now and then it was {}."),
        ):
            if values:
                yield Step("; ".join(values), reasoning.format(" and ".join(values)))


def _counts(catalog: Catalog, item_ids: Iterable[int]) -> Counter[tuple[str, str]]:
    """Return how many of the items have each attribute, by (kind, value)."""
    return Counter(
        (kind, value)
        for item_id in item_ids
        for kind, values in catalog[item_id].attributes.items()
        for value in values
    )


def _common_values(catalog: Catalog, item_ids: Iterable[int]) -> list[str]:
    """Return the items' values of all kinds, the commonest first, equal ones in order of appearance."""
    return [value for (_, value), _ in _counts(catalog, item_ids).most_common()]


def _telling_values(catalog: Catalog, item_ids: Iterable[int]) -> list[str]:
    """Return the items' values of all kinds, first those that are common here and rare in the catalogue."""
    counts = _counts(catalog, item_ids)
    known = catalog.attribute_values
    surprise = {
        (kind, value): count * math.log(catalog.num_items / known[kind][value])
        for (kind, value), count in counts.items()
    }
    return [value for _, value in sorted(surprise, key=lambda attribute: -surprise[attribute])]


def _parse_range(num_searches: int | str | Sequence[int]) -> tuple[int, int]:
    match num_searches:
        case bool():
            pass
        case int() if num_searches >= 1:
            return num_searches, num_searches
        case str() if found := _RANGE.fullmatch(num_searches.strip()):
            return _parse_range((int(found[1]), int(found[2])))
        case (int(low), int(high)) if 1 <= low <= high:
            return low, high
    raise AgentError(f"num_searches must be a number of at least 1 or a range like '2-4', got {num_searches!r}")
