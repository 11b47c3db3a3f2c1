"""Which terms are due after a step, by rules and stage, and what of that is still to be paid.

Every term is a total that may rise and fall while an episode runs; a step pays the difference. All totals lie on one
binary grid, so differences and sums are exact in float64 and the step rewards add up to the trajectory's to the last
digit, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from deeprec_env.episode import RETRIEVES, Episode, Turn, Verdict
from deeprec_env.rewards import paper, process
from deeprec_env.rewards.config import RewardConfig
from deeprec_env.rewards.outcome import Outcome, hit_reward, mean_similarities

if TYPE_CHECKING:
    from deeprec_env.world import World

_GRID = 2.0**40
_COARSE = 2.0**12
"""For what comes from embeddings: hides the last bits, which depend on how texts were batched."""


class Scorer(Protocol):
    """Says what an episode is worth after a step."""

    def texts(
        self, episodes: Sequence[Episode], actions: Sequence[str], verdicts: Sequence[Verdict]
    ) -> list[tuple[Episode, str]]:
        """Return the texts whose embeddings `due` will look up in `episode.embeddings`, with the episodes."""
        ...

    def due(
        self, episodes: Sequence[Episode], turns: Sequence[Turn], outcomes: Sequence[Outcome | None]
    ) -> list[dict[str, float]]:
        """Return for each episode the total by term that it is worth once the turn is recorded.

        To be called once a turn, right before it is recorded. Changes nothing but `episode.preferences`. What an
        episode is worth does not depend on the others.

        Args:
            episodes: without the turns.
            turns: one an episode; their reward_terms are not filled in yet.
            outcomes: set where the episode ends.
        """
        ...


def pay(episode: Episode, due: Mapping[str, float], terms: dict[str, float]) -> None:
    """Put into terms what each pays now, the total due, on the grid, less what has been paid; note it as paid."""
    paid = episode.paid
    for name, total in due.items():
        if total:
            total = round(total * _GRID) / _GRID
        terms[name] = total - paid[name] if name in paid else total
        paid[name] = total


def _coarse(value: float) -> float:
    return round(value * _COARSE) / _COARSE


class StrictScorer:
    """The rules on item ids and turns.

    Process terms are worth the share of the final ranking that was retrieved: all of it for an honest ranking, nothing
    for a malformed end, a truncation or a list of invented titles.
    """

    def __init__(self, world: World, config: RewardConfig, stage: str) -> None:
        self._world = world
        self._config = config
        self._stage = stage
        self._zeros = dict.fromkeys(config.terms(stage), 0.0)
        self._pays_progress = "progress" in self._zeros
        self._invocation = [process.invocation_reward(n, config) for n in range(config.invocation_max + 1)]

    def texts(
        self, episodes: Sequence[Episode], actions: Sequence[str], verdicts: Sequence[Verdict]
    ) -> list[tuple[Episode, str]]:
        """Return the preferences of the searches, where the stage pays for searching."""
        if self._stage != "cold":
            return []
        searching = zip(episodes, verdicts, strict=True)
        return [(episode, verdict.preference or "") for episode, verdict in searching if verdict.effect is RETRIEVES]

    def due(
        self, episodes: Sequence[Episode], turns: Sequence[Turn], outcomes: Sequence[Outcome | None]
    ) -> list[dict[str, float]]:
        """Return for each episode the total by term that it is worth once the turn is recorded."""
        totals = [self._zeros.copy() for _ in episodes]
        ranked: list[tuple[dict[str, float], int, Outcome]] = []
        for total, episode, turn, outcome in zip(totals, episodes, turns, outcomes, strict=True):
            if outcome is not None and not outcome.well_formed:
                total["format"] = -self._config.format_penalty
            elif self._stage == "cold":
                self._add_process(total, episode, turn, outcome)
            elif outcome is not None:
                ranked.append((total, episode.target, outcome))
            if self._pays_progress and outcome is None:
                total["progress"] = self._progress(episode, turn)
        if ranked:
            self._add_ranking(*zip(*ranked))
        return totals

    def _add_process(self, total: dict[str, float], episode: Episode, turn: Turn, outcome: Outcome | None) -> None:
        preferences, share = episode.preferences, 1.0
        if preferences is None:
            preferences = episode.preferences = process.DistinctPreferences(self._config)
        if outcome is None:
            text, num_found = turn.preference or "", len(turn.candidate_ids)
            preferences.add(text, episode.embeddings[text], num_new=turn.num_new_candidates, num_found=num_found)
        else:
            share = outcome.grounded_share
        num_different = len(preferences.kept)
        if num_different > 1:
            config = self._config
            total["invocation"] = share * self._invocation[min(num_different, config.invocation_max)]
            total["diversity"] = share * config.diversity_weight * _coarse(preferences.distance)

    def _add_ranking(
        self, totals: Sequence[dict[str, float]], targets: Sequence[int], outcomes: Sequence[Outcome]
    ) -> None:
        world, config = self._world, self._config
        similarities = mean_similarities(
            outcomes, targets, text_vectors=world.item_text_vectors, id_vectors=world.item_id_vectors
        )
        for total, outcome, similarity in zip(totals, outcomes, similarities, strict=True):
            total["outcome"] = hit_reward(outcome.hit_rank, config)
            total["similarity"] = config.similarity_weight * _coarse(similarity)

    def _progress(self, episode: Episode, turn: Turn) -> float:
        answers = [*(earlier.candidate_ids for earlier in episode.turns), turn.candidate_ids]
        ranks = (ids.index(episode.target) + 1 if episode.target in ids else 0 for ids in answers)
        return self._config.progress_weight * process.progress_potential(ranks)


class PaperScorer:
    """The published rules, paid as the episode goes."""

    def __init__(self, world: World, config: RewardConfig, stage: str, top_k: int) -> None:
        self._world = world
        self._config = config
        self._stage = stage
        self._top_k = top_k
        self._terms = config.terms(stage)

    def texts(
        self, episodes: Sequence[Episode], actions: Sequence[str], verdicts: Sequence[Verdict]
    ) -> list[tuple[Episode, str]]:
        """Return the preferences that the actions add, as the published rules cut them."""
        if self._stage != "cold":
            return []
        return [
            (episode, text)
            for episode, action in zip(episodes, actions, strict=True)
            for text in paper.preferences_of((episode.response + action).strip())
            if text not in episode.embeddings
        ]

    def due(
        self, episodes: Sequence[Episode], turns: Sequence[Turn], outcomes: Sequence[Outcome | None]
    ) -> list[dict[str, float]]:
        """Return for each episode the total by term that it is worth once the turn is recorded."""
        return list(map(self._due, episodes, turns, outcomes))

    def _due(self, episode: Episode, turn: Turn, outcome: Outcome | None) -> dict[str, float]:
        response = (episode.response + turn.action).strip()
        n_calls = episode.num_searches + turn.is_answered_search
        if outcome is not None or self._stage == "cold":
            scores = paper.score_paper_response(
                response,
                n_calls,
                self._world.display(episode.target).title,
                stage=self._stage,
                row_by_title=self._world.row_by_lower_title,
                text_vectors=self._world.item_text_vectors,
                id_vectors=self._world.item_id_vectors,
                preference_vectors=episode.embeddings,
                top_k=self._top_k,
                config=self._config,
            )
            totals = {name: scores[name] for name in self._terms}
        else:
            totals = dict.fromkeys(self._terms, 0.0)
        if outcome is None:
            totals["format"] = 0.0
        return totals


def build_scorer(world: World, config: RewardConfig, *, stage: str, top_k: int) -> Scorer:
    """Return the rules that the configuration names."""
    if config.rules == "paper":
        return PaperScorer(world, config, stage, top_k)
    return StrictScorer(world, config, stage)
