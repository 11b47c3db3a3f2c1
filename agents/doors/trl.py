"""The door to TRL: a `rollout_func` and a reward for its GRPOTrainer.

    rollouts = GameRollouts(game)
    GRPOTrainer(
        model=model, processing_class=tokenizer, train_dataset=rollouts.dataset(users),
        rollout_func=rollouts, reward_funcs=episode_reward, args=config,
    )

The episodes are played by the one loop (agents.play), so ids are what was sampled and shown, never encoded again.
TRL optimises the sum of an episode's rewards; advantages per turn are what agents.grpo has beyond it.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from agents.grpo.generation.base import Generator
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.rollout import collect_groups
from agents.grpo.tokenizer import encode, stop_token_ids
from agents.grpo.types import Rollout
from agents.llm_agent import LlmAgent
from deeprec_env.config import SPLITS

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer

    from deeprec_env.game import Game

logger = logging.getLogger(__name__)

_Start = tuple[str, int]
"""Split and user index."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One rollout as TRL takes it; without a rollout, a row that trains nothing."""

    prompt_ids: list[int]
    ids: list[int]
    logps: list[float]
    mask: list[int]
    rollout: Rollout | None

    @classmethod
    def of(cls, rollout: Rollout | None, *, prompt_ids: list[int], filler: int) -> _Row:
        """Return the row; `filler` is the one masked token of a row that would be empty, which TRL does not take."""
        if rollout is None or not rollout.trace.ids:
            return cls(prompt_ids, [filler], [0.0], [0], rollout)
        trace = rollout.trace
        return cls(list(trace.prompt_ids), list(trace.ids), list(trace.logps), list(map(int, trace.loss_mask)), rollout)


class GameRollouts:
    """Plays the users that a batch's prompts name; give it to GRPOTrainer as `rollout_func`."""

    def __init__(
        self,
        game: Game,
        *,
        max_tokens: int = 128,
        max_context: int | None = None,
        seed: int = 0,
        generator: Callable[[GRPOTrainer], Generator] | None = None,
    ) -> None:
        """Bind the game.

        Args:
            game: the rules and the world.
            max_tokens: sampled tokens a turn at most. TRL's `max_completion_length` cuts nothing here.
            max_context: tokens of an episode at most; by default what the model reads.
            seed: another seed gives other rollouts.
            generator: makes the engine of a call; by default transformers samples from the trainer's own model.
        """
        self._game = game
        self._max_tokens, self._max_context, self._seed = max_tokens, max_context, seed
        self._generator = generator or _own_model
        self._num_calls = 0

    def dataset(self, users: Iterable[int], *, split: str = "train") -> Dataset:
        """Return one row a user. Its prompt only names the user; the model reads the environment's prompt.

        (Two users may have the same prompt and different targets, so the text could not name them.)
        """
        return Dataset.from_list([{"prompt": f"{split}/{user}"} for user in users])

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Return one rollout a prompt: `prompt_ids`, `completion_ids`, `logprobs`, `env_mask`, and what rewards read.

        `env_mask` is 1 on sampled tokens, 0 on observations. For rewards: `turn_rewards` (a list of floats, None
        for a rollout that the retriever or the engine failed), `rollout_metrics` and `transcript`.

        Raises:
            ValueError: if a prompt is not of `dataset`, or TRL would mask every completion (see `check_stops`).
            AgentError: if every rollout of a user group failed.
        """
        tokenizer: Any = trainer.processing_class
        check_stops(trainer, stop_token_ids(tokenizer))
        starts = [_parse_prompt(prompt) for prompt in prompts]
        played = self._play(starts, trainer)
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        rows = [
            _Row.of(
                played[start].popleft() if played[start] else None,
                prompt_ids=encode(tokenizer, self._game.start(start[1], start[0]).prompt),
                filler=filler,
            )
            for start in starts
        ]
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.ids for row in rows],
            "logprobs": [row.logps for row in rows],
            "env_mask": [row.mask for row in rows],
            "turn_rewards": [row.rollout and list(row.rollout.turn_rewards) for row in rows],
            "rollout_metrics": [dict(row.rollout.metrics) if row.rollout else {} for row in rows],
            "transcript": [row.rollout.transcript if row.rollout else "" for row in rows],
        }

    def _play(self, starts: Sequence[_Start], trainer: GRPOTrainer) -> dict[_Start, deque[Rollout]]:
        """Return the rollouts of each user; as many as it is named, less those that failed."""
        played: dict[_Start, deque[Rollout]] = {}
        agent = self._agent(trainer)
        counts = Counter(starts)
        # One call for all users of one group size: a process may hold a part of a group only.
        for size, split in sorted({(size, split) for (split, _), size in counts.items()}):
            users = [user for (of, user), count in counts.items() if count == size and of == split]
            seed = self._next_seed(trainer)
            for group in collect_groups(self._game, agent, users, group_size=size, seed=seed, split=split):
                played[split, group.user_index] = deque(group.rollouts)
        return played

    def _agent(self, trainer: GRPOTrainer) -> LlmAgent:
        model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        longest = int(model.config.max_position_embeddings)
        return LlmAgent(
            self._generator(trainer),
            tokenizer,
            max_context=min(longest, self._max_context or longest),
            max_tokens=self._max_tokens,
            temperature=trainer.temperature,
        )

    def _next_seed(self, trainer: GRPOTrainer) -> int:
        """Return a seed that no other call, step or process has."""
        self._num_calls += 1
        numbers = [self._seed, trainer.state.global_step, trainer.accelerator.process_index, self._num_calls]
        return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def episode_reward(
    *,
    turn_rewards: Sequence[Sequence[float] | None],
    rollout_metrics: Sequence[Mapping[str, float]] = (),
    log_metric: Callable[[str, float], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """Return each episode's reward, the sum of its turns'; None where the rollout failed, which TRL leaves out.

    Give it to GRPOTrainer as (one of) `reward_funcs`. It logs the means of the metrics that agents.grpo logs.
    """
    if log_metric is not None:
        for name in sorted({name for metrics in rollout_metrics for name in metrics}):
            log_metric(name, float(np.mean([metrics.get(name, 0.0) for metrics in rollout_metrics if metrics])))
    return [None if rewards is None else float(sum(rewards)) for rewards in turn_rewards]


def check_stops(trainer: GRPOTrainer, stops: frozenset[int]) -> None:
    """Refuse a trainer that would take every episode for a truncated one and mask it.

    Raises:
        ValueError: if `mask_truncated_completions` is on and the trainer does not know the closing tags.
    """
    missing = stops.difference(trainer.eos_token_ids)
    if trainer.mask_truncated_completions and missing:
        raise ValueError(
            f"expected mask_truncated_completions to know the closing tags, got eos tokens {trainer.eos_token_ids} "
            f"without {sorted(missing)}; set model.generation_config.eos_token_id = {sorted(stops)} before the trainer "
            "is built, or turn mask_truncated_completions off"
        )


def _own_model(trainer: GRPOTrainer) -> Generator:
    return HFGenerator(trainer.accelerator.unwrap_model(trainer.model))


def _parse_prompt(prompt: object) -> _Start:
    split, slash, user = str(prompt).partition("/")
    if not isinstance(prompt, str) or not slash or split not in SPLITS or not user.isdecimal():
        raise ValueError(f"expected a prompt such as 'train/17', got {prompt!r}; build the data set by .dataset(users)")
    return split, int(user)
