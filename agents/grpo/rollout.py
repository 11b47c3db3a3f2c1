"""Users to groups of rollouts: plays them through the one loop and pairs each episode with its tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agents.base import AgentError
from agents.grpo.types import Rollout, RolloutGroup
from agents.llm_agent import LlmAgent
from agents.play import play
from deeprec_env.protocol import MalformedReason
from trm.metrics import ndcg_at_k

if TYPE_CHECKING:
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game

logger = logging.getLogger(__name__)
LIMITS = (
    MalformedReason.TURN_TOKENS,
    MalformedReason.EPISODE_TOKENS,
    MalformedReason.SEARCH_BUDGET,
    MalformedReason.TEXT_BUDGET,
)
"""What truncates a rollout: tokens of a turn, tokens in all, turns, text; each is counted under its own name."""


def collect_groups(
    game: Game, agent: LlmAgent, users: Sequence[int], *, group_size: int, seed: int, split: str = "train"
) -> list[RolloutGroup]:
    """Return one group a user, in the order of `users`; every rollout has a seed of its own.

    A rollout that the retriever or the engine failed is counted in its group and left out, never replaced.

    Args:
        game: the rules and the world.
        agent: the policy; its traces are forgotten first.
        users: user indices.
        group_size: rollouts a user.
        seed: another seed gives other rollouts, the same seed and weights the same ones.
        split: whose target is looked for.

    Raises:
        AgentError: if every rollout failed.
    """
    agent.forget()
    failures: dict[int, Exception] = {}
    episodes = play(
        game,
        agent,
        users,
        split=split,
        seed=seed,
        batch_size=max(1, len(users) * group_size),
        num_samples=group_size,
        on_failure=failures.__setitem__,
    )
    if failures:
        key, error = next(iter(failures.items()))
        logger.warning("%d of %d rollouts failed; number %d: %s", len(failures), len(episodes), key, error)
        if len(failures) == len(episodes):
            raise AgentError(f"every one of {len(episodes)} rollouts failed: {error}") from error
    return [
        _group(user, episodes[first : first + group_size], agent, first=first, failures=failures)
        for user, first in zip(users, range(0, len(episodes), group_size), strict=True)
    ]


def _group(
    user: int, episodes: Sequence[Episode], agent: LlmAgent, *, first: int, failures: Mapping[int, Exception]
) -> RolloutGroup:
    kept = [(key, episode) for key, episode in enumerate(episodes, first) if key not in failures]
    return RolloutGroup(
        user,
        tuple(_rollout(episode, agent, key) for key, episode in kept),
        num_failed=len(episodes) - len(kept),
    )


def _rollout(episode: Episode, agent: LlmAgent, key: int) -> Rollout:
    trace = agent.trace(key)
    drift = agent.drift(key)
    return Rollout(
        trace=trace,
        turn_rewards=tuple(float(turn.reward) for turn in episode.turns),
        metrics={
            **rollout_metrics(episode),
            "rollout/drift_tokens": float(drift),
            "rollout/drift_rate": drift / max(1, sum(trace.loss_mask)),
        },
        transcript=episode.transcript,
    )


def rollout_metrics(episode: Episode) -> dict[str, float]:
    """Return what is logged of an episode, `group/name` -> value."""
    ended_by = episode.turns[-1].malformed_reason if episode.turns else None
    outcome = episode.outcome
    hit_rank = outcome.hit_rank if outcome is not None and episode.well_formed else 0
    metrics = {
        "rollout/num_searches": float(episode.num_searches),
        "rollout/format_ok_rate": float(episode.well_formed),
        "rollout/truncated_rate": float(episode.truncated),
        **{f"rollout/truncated_{limit}": float(ended_by is limit) for limit in LIMITS},
        "rollout/hit_rate": float(hit_rank > 0),
        "rollout/pool_recall": float(episode.target_in_pool),
        "rollout/ndcg_at_10": _ndcg(hit_rank),
    }
    for turn in episode.turns:
        for name, amount in turn.reward_terms.items():
            metrics[f"reward/{name}"] = metrics.get(f"reward/{name}", 0.0) + amount
    return metrics


def _ndcg(rank: int, k: int = 10) -> float:
    return float(ndcg_at_k([rank], k)[0])
