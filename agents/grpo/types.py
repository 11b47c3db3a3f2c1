"""Records of what a policy sampled and earned. Plain data: no tensors, no environment, no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenTrace:
    """The tokens of one episode as they were sampled or given; grows turn by turn and is never encoded anew.

    After a prompt [5, 6], a turn that sampled [7, 8] and an observation [9], `prompt_ids` is (5, 6) and
    `ids`, `loss_mask`, `turn_of` are [7, 8, 9], [True, True, False], [0, 0, 0].
    """

    prompt_ids: tuple[int, ...]
    ids: list[int] = field(default_factory=list)
    """All tokens after the prompt."""
    loss_mask: list[bool] = field(default_factory=list)
    """True on sampled tokens."""
    logps: list[float] = field(default_factory=list)
    """The engine's log-probability in nats of each sampled token; 0.0 on the others."""
    turn_of: list[int] = field(default_factory=list)
    """The 0-based turn of each token; an observation belongs to the turn that it answers."""
    num_turns: int = 0
    """Turns sampled so far."""
    cut_turns: list[int] = field(default_factory=list)
    """Turns that ended because a token limit was hit."""

    @property
    def context(self) -> list[int]:
        """Prompt and all that followed."""
        return [*self.prompt_ids, *self.ids]

    def __len__(self) -> int:
        """Return how many tokens prompt and the rest have together."""
        return len(self.prompt_ids) + len(self.ids)

    def append_turn(self, ids: Sequence[int], logps: Sequence[float], *, cut: bool = False) -> None:
        """Append a sampled turn.

        Raises:
            ValueError: if the two sequences differ in length.
        """
        if len(ids) != len(logps):
            raise ValueError(f"expected one log-probability a token, got {len(ids)} ids and {len(logps)} logps")
        if cut:
            self.cut_turns.append(self.num_turns)
        self._append(ids, logps, sampled=True)
        self.num_turns += 1

    def append_observation(self, ids: Sequence[int]) -> None:
        """Append the environment's answer to the last turn."""
        self._append(ids, [0.0] * len(ids), sampled=False)

    def _append(self, ids: Sequence[int], logps: Sequence[float], *, sampled: bool) -> None:
        turn = self.num_turns if sampled else max(self.num_turns - 1, 0)
        self.ids.extend(ids)
        self.logps.extend(logps)
        self.loss_mask.extend([sampled] * len(ids))
        self.turn_of.extend([turn] * len(ids))


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished episode as the trainer needs it."""

    trace: TokenTrace
    turn_rewards: tuple[float, ...]
    """One a turn; they sum to the trajectory's reward."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What is averaged for the log, such as num_searches or reward/similarity."""
    transcript: str = ""
    """Prompt, actions and observations as text, to be read."""

    @property
    def reward(self) -> float:
        """The trajectory's reward."""
        return float(sum(self.turn_rewards))


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The rollouts of one user."""

    user_index: int
    rollouts: tuple[Rollout, ...]
    num_failed: int = 0
    """Rollouts that broke down; they are left out, never replaced."""

    @property
    def rewards(self) -> tuple[float, ...]:
        """One trajectory reward a rollout."""
        return tuple(rollout.reward for rollout in self.rollouts)

    @property
    def has_signal(self) -> bool:
        """Whether its turns' rewards differ between members, so that an advantage can differ from 0."""
        return len({rollout.turn_rewards for rollout in self.rollouts}) > 1
