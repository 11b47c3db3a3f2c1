"""Advantages from the rewards of one group. Pure NumPy: no environment, no engine.

Shape legend: G rollouts of a group, T turns (rollouts may differ in it).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
TurnRewards = Sequence[Sequence[float]]
"""One sequence a rollout, one reward a turn."""

_STD_FLOOR = 1e-6


def group_relative(rewards_G: FloatArray, *, std_normalize: bool = False) -> FloatArray:
    """Return each reward minus the group's mean; they sum to 0.

    Source: REINFORCE++-baseline as DeepRec uses it (arXiv:2505.16810); GRPO (arXiv:2402.03300) also divides by the
    standard deviation (over G - 1), which Dr.GRPO (arXiv:2503.20783) leaves out again.

    Raises:
        ValueError: if the group has fewer than 2 members.
    """
    _check_group(len(rewards_G))
    centred = rewards_G - rewards_G.mean()
    if std_normalize:
        return centred / (rewards_G.std(ddof=1) + _STD_FLOOR)
    return centred


def leave_one_out(rewards_G: FloatArray) -> FloatArray:
    """Return each reward minus the mean of the others' (RLOO, arXiv:2402.14740); an unbiased baseline.

    Raises:
        ValueError: if the group has fewer than 2 members.
    """
    num_members = len(rewards_G)
    _check_group(num_members)
    return (rewards_G - rewards_G.mean()) * (num_members / (num_members - 1))


def returns_to_go(rewards_T: Sequence[float]) -> FloatArray:
    """Return float64 [T]: the sum of the rewards from each turn on."""
    return np.cumsum(np.asarray(rewards_T, dtype=np.float64)[::-1])[::-1]


def per_turn(turn_rewards: TurnRewards) -> list[FloatArray]:
    """Return, for every turn, its return-to-go minus the mean return-to-go of the others still playing at that turn.

    The baseline of a rollout never depends on what that rollout did, so it leaves the gradient unbiased even where
    the policy itself decides when to stop. (The mean over *all* members alive at t does not: the member is in its own
    baseline with a weight that depends on how many others went on.) Where no other member plays turn t, the others'
    returns-to-go at their last turns stand in; they do not depend on the member either.

    Args:
        turn_rewards: one sequence a rollout.

    Returns:
        One float64 [T] a rollout.

    Raises:
        ValueError: if the group has fewer than 2 members.
    """
    _check_group(len(turn_rewards))
    togo = [returns_to_go(rewards) for rewards in turn_rewards]
    advantages = []
    for member, own in enumerate(togo):
        others = [other for index, other in enumerate(togo) if index != member and len(other)]
        baseline = [_baseline(others, turn) for turn in range(len(own))]
        advantages.append(own - np.asarray(baseline, dtype=np.float64))
    return advantages


def _baseline(others: Sequence[FloatArray], turn: int) -> float:
    playing = [float(other[turn]) for other in others if len(other) > turn]
    if not playing:
        playing = [float(other[-1]) for other in others]
    return float(np.mean(playing)) if playing else 0.0


def _every_turn(estimate: Callable[[FloatArray], FloatArray]) -> Callable[[TurnRewards], list[FloatArray]]:
    """Return a function that gives every turn of a rollout the rollout's one advantage."""

    def spread(turn_rewards: TurnRewards) -> list[FloatArray]:
        totals_G = np.asarray([float(sum(rewards)) for rewards in turn_rewards], dtype=np.float64)
        advantages_G = estimate(totals_G)
        return [np.full(len(rewards), advantages_G[member]) for member, rewards in enumerate(turn_rewards)]

    return spread


_ESTIMATORS: dict[str, Callable[[TurnRewards], list[FloatArray]]] = {
    "group_mean": _every_turn(group_relative),
    "grpo": _every_turn(lambda rewards_G: group_relative(rewards_G, std_normalize=True)),
    "dr_grpo": _every_turn(group_relative),
    "leave_one_out": _every_turn(leave_one_out),
    "per_turn": per_turn,
}
ADVANTAGES = tuple(_ESTIMATORS)
"""Names of the estimators. dr_grpo equals group_mean here; it differs in the loss (normalization "constant")."""


def group_advantages(name: str, turn_rewards: TurnRewards) -> list[FloatArray]:
    """Return one float64 [T] a rollout by the named estimator.

    Raises:
        ValueError: if there is no such estimator, or the group has fewer than 2 members.
    """
    if name not in _ESTIMATORS:
        close = difflib.get_close_matches(name, ADVANTAGES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"expected an advantage out of {', '.join(ADVANTAGES)}, got {name!r}; {hint}".rstrip("; "))
    return _ESTIMATORS[name](turn_rewards)


def _check_group(num_members: int) -> None:
    if num_members < 2:
        raise ValueError(f"expected a group of at least 2 rollouts, got {num_members}; raise group_size")
