"""Which terms are due after a step, by rules and stage, and what of that is still to be paid.

Every term is a total that may rise and fall while an episode runs; a step pays the difference. All totals lie on one
binary grid, so differences and sums are exact in float64 and the step rewards add up to the trajectory's to the last
digit, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from deeprec_env.episode import Episode, Verdict
from deeprec_env.rewards import paper, process
from deeprec_env.rewards.config import RewardConfig
from deeprec_env.rewards.outcome import Outcome, hit_reward, mean_similarity

if TYPE_CHECKING:
    from deeprec_env.world import World

_GRID = 2.0**40
_COARSE = 2.0**12
"""For what comes from embeddings: hides the last bits, which depend on how texts were batched."""


@dataclass(frozen=True, slots=True)
class Step:
    """A turn that is about to be recorded."""

    action: str
    verdict: Verdict
    candidate_ids: tuple[int, ...]
    num_new_candidates: int
    outcome: Outcome | None
    """Set if the episode ends."""


class Scorer(Protocol):
    """Says what an episode is worth after a step."""

    def texts(self, episode: Episode, action: str, verdict: Verdict) -> list[str]:
        """Return the texts whose embeddings `due` will look up in `episode.embeddings`."""
        ...

    def due(self, episode: Episode, step: Step) -> dict[str, float]:
        """Return the total by term that the episode is worth once the step is recorded. Changes nothing."""
        ...


def pay(episode: Episode, due: Mapping[str, float]) -> dict[str, float]:
    """Return what each term pays now: the total due, on the grid, less what has been paid."""
    return {name: round(total * _GRID) / _GRID - episode.paid.get(name, 0.0) for name, total in due.items()}


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
        self._terms = config.terms(stage)

    def texts(self, episode: Episode, action: str, verdict: Verdict) -> list[str]:
        """Return the preference of a search, where the stage pays for searching."""
        wanted = self._stage == "cold" and verdict.retrieves and verdict.preference is not None
        return [verdict.preference] if wanted and verdict.preference is not None else []

    def due(self, episode: Episode, step: Step) -> dict[str, float]:
        """Return the total by term that the episode is worth once the step is recorded."""
        outcome, config = step.outcome, self._config
        totals = dict.fromkeys(self._terms, 0.0)
        if outcome is not None and not outcome.well_formed:
            totals["format"] = -config.format_penalty
            return totals
        if self._stage == "cold":
            share = 1.0 if outcome is None else outcome.grounded_share
            totals["invocation"], totals["diversity"] = (share * total for total in self._process(episode, step))
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
            answers = [*(turn.candidate_ids for turn in episode.turns), step.candidate_ids]
            ranks = (ids.index(episode.target) + 1 if episode.target in ids else 0 for ids in answers)
            totals["progress"] = config.progress_weight * process.progress_potential(ranks)
        return totals

    def _process(self, episode: Episode, step: Step) -> tuple[float, float]:
        searches = [(turn.preference or "", turn.num_new_candidates) for turn in episode.turns]
        if step.verdict.retrieves:
            searches.append((step.verdict.preference or "", step.num_new_candidates))
        config, vectors = self._config, episode.embeddings
        distinct = process.distinct_preferences(searches, vectors, near_duplicate=config.near_duplicate)
        distance = _coarse(process.mean_distance([vectors[p] for p in distinct], cap=config.diversity_cap))
        return process.invocation_reward(len(distinct), config), config.diversity_weight * distance


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

    def due(self, episode: Episode, step: Step) -> dict[str, float]:
        """Return the total by term that the episode is worth once the step is recorded."""
        response = (episode.response + step.action).strip()
        n_calls = episode.num_searches + step.verdict.retrieves
        if step.outcome is not None or self._stage == "cold":
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
        if step.outcome is None:
            totals["format"] = 0.0
        return totals


def build_scorer(world: World, config: RewardConfig, *, stage: str, top_k: int) -> Scorer:
    """Return the rules that the configuration names."""
    if config.rules == "paper":
        return PaperScorer(world, config, stage, top_k)
    return StrictScorer(world, config, stage)
