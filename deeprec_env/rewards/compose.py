"""Which terms are due after a step, by rules and stage, and what of that is still to be paid.

Every term is a total that may rise and fall while an episode runs; a step pays the difference. All totals lie on one
binary grid, so differences and sums are exact in float64 and the step rewards add up to the trajectory's to the last
digit, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from deeprec_env.episode import Episode, Turn, Verdict
from deeprec_env.rewards import paper, process
from deeprec_env.rewards.config import RewardConfig
from deeprec_env.rewards.outcome import Outcome, hit_reward, mean_similarity

if TYPE_CHECKING:
    from deeprec_env.world import World

_GRID = 2.0**40
_COARSE = 2.0**12
"""For what comes from embeddings: hides the last bits, which depend on how texts were batched."""


class Scorer(Protocol):
    """Says what an episode is worth after a step."""

    def texts(self, episode: Episode, action: str, verdict: Verdict) -> list[str]:
        """Return the texts whose embeddings `due` will look up in `episode.embeddings`."""
        ...

    def due(self, episode: Episode, turn: Turn, outcome: Outcome | None) -> dict[str, float]:
        """Return the total by term that the episode is worth once the turn is recorded.

        To be called once a turn, right before it is recorded. Changes nothing but `episode.preferences`.

        Args:
            episode: without the turn.
            turn: its reward_terms are not filled in yet.
            outcome: set if the episode ends.
        """
        ...


def pay(episode: Episode, due: Mapping[str, float], terms: dict[str, float]) -> None:
    """Put into terms what each pays now: the total due, on the grid, less what has been paid."""
    paid = episode.paid
    for name, total in due.items():
        on_grid = round(total * _GRID) / _GRID if total else 0.0
        terms[name] = on_grid - paid[name] if paid else on_grid


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

    def texts(self, episode: Episode, action: str, verdict: Verdict) -> list[str]:
        """Return the preference of a search, where the stage pays for searching."""
        if self._stage == "cold" and verdict.retrieves and verdict.preference is not None:
            return [verdict.preference]
        return []

    def due(self, episode: Episode, turn: Turn, outcome: Outcome | None) -> dict[str, float]:
        """Return the total by term that the episode is worth once the turn is recorded."""
        config = self._config
        totals = self._zeros.copy()
        if outcome is not None and not outcome.well_formed:
            totals["format"] = -config.format_penalty
            return totals
        if self._stage == "cold":
            share = 1.0 if outcome is None else outcome.grounded_share
            preferences = self._judged(episode, turn)
            totals["invocation"] = share * process.invocation_reward(len(preferences.kept), config)
            totals["diversity"] = share * config.diversity_weight * _coarse(preferences.distance)
        elif outcome is not None:
            totals["outcome"] = hit_reward(outcome.hit_rank, config)
            similarity = mean_similarity(
                outcome,
                episode.target,
                text_vectors=self._world.item_text_vectors,
                id_vectors=self._world.item_id_vectors,
            )
            totals["similarity"] = config.similarity_weight * _coarse(similarity)
        if "progress" in totals and outcome is None:
            answers = [*(earlier.candidate_ids for earlier in episode.turns), turn.candidate_ids]
            ranks = (ids.index(episode.target) + 1 if episode.target in ids else 0 for ids in answers)
            totals["progress"] = config.progress_weight * process.progress_potential(ranks)
        return totals

    def _judged(self, episode: Episode, turn: Turn) -> process.DistinctPreferences:
        """Return the episode's searches as they are judged, the turn's among them."""
        preferences = episode.preferences
        if preferences is None:
            preferences = episode.preferences = process.DistinctPreferences(self._config)
        if turn.is_answered_search:
            text, num_found = turn.preference or "", len(turn.candidate_ids)
            preferences.add(text, episode.embeddings[text], num_new=turn.num_new_candidates, num_found=num_found)
        return preferences


class PaperScorer:
    """The published rules, paid as the episode goes."""

    def __init__(self, world: World, config: RewardConfig, stage: str, top_k: int) -> None:
        self._world = world
        self._config = config
        self._stage = stage
        self._top_k = top_k
        self._terms = config.terms(stage)

    def texts(self, episode: Episode, action: str, verdict: Verdict) -> list[str]:
        """Return the preferences that the action adds, as the published rules cut them."""
        return paper.preferences_of((episode.response + action).strip()) if self._stage == "cold" else []

    def due(self, episode: Episode, turn: Turn, outcome: Outcome | None) -> dict[str, float]:
        """Return the total by term that the episode is worth once the turn is recorded."""
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
