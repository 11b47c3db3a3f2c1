"""GRPO: rollouts, advantages, clipped loss, AdamW; then the same again.

What differs from GRPO as published: the clip is asymmetric and the loss normalised by token (DAPO, arXiv:2503.14476),
no KL by default (DeepRec has none), advantages may differ between the turns of a rollout, and groups without variance
are left out of the update rather than averaged in as zeros.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from agents.base import AgentError
from agents.grpo.advantage import group_advantages
from agents.grpo.batch import TokenBatch, build_batch, micro_batches
from agents.grpo.checkpoint import Checkpoint, list_checkpoints, restore_checkpoint, save_checkpoint
from agents.grpo.config import GrpoConfig
from agents.grpo.engines import Engine
from agents.grpo.forward import batch_rows, sampled_logps
from agents.grpo.loss import grpo_loss, token_weights
from agents.grpo.policy import Policy, load_policy
from agents.grpo.progress import BAR_INTERVAL_S, RunLog
from agents.grpo.rollout import collect_groups
from agents.grpo.types import RolloutGroup
from agents.llm_agent import LlmAgent, PolicyCard

if TYPE_CHECKING:
    from deeprec_env.game import Game

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StageSetup:
    """What one stage is trained on and where it writes."""

    name: str
    """cold or rec."""
    game: Game
    users: Sequence[int]
    """The users of split "train" to draw from, best from easy to hard: see `step_users`."""
    folder: Path
    seed: int
    card: PolicyCard
    """How the policy plays; of `max_tokens` the config's counts."""
    engine: Engine = field(default_factory=Engine)
    """What samples; one for all stages of a run."""


def train_stage(policy: Policy, config: GrpoConfig, setup: StageSetup, *, progress: bool = True) -> Policy:
    """Return the policy after the last step; a run that was killed goes on from its last checkpoint.

    Raises:
        AgentError: if the loss is not a number (what was saved last is kept), or a checkpoint is of another run.
    """
    trainer = GrpoTrainer(policy, config, setup)
    trainer.resume()
    trainer.run(progress=progress)
    return trainer.policy


class GrpoTrainer:
    """The loop of one stage, one update a step."""

    def __init__(self, policy: Policy, config: GrpoConfig, setup: StageSetup) -> None:
        """Build the trainer; `policy` is changed in place unless `resume` finds a checkpoint."""
        self._config, self._setup = config, setup
        self._reference = copy.deepcopy(policy.model).eval() if config.kl_coef > 0 else None
        self.next_step = 0
        self._use(policy)

    def _use(self, policy: Policy) -> None:
        config = self._config
        self.policy = policy
        self._optimizer = torch.optim.AdamW(
            policy.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        card = dataclasses.replace(self._setup.card, max_tokens=config.max_tokens)
        self._agent = LlmAgent.of_policy(
            policy,
            card,
            temperature=config.temperature,
            name=self._setup.name,
            generator=self._setup.engine.follow(policy),
        )

    @property
    def _checkpoint_root(self) -> Path:
        return self._setup.folder / "checkpoints"

    def _identity(self) -> dict[str, Any]:
        options = {key: value for key, value in dataclasses.asdict(self._config).items() if key != "num_steps"}
        return {**options, "stage": self._setup.name, "seed": self._setup.seed, "num_users": len(self._setup.users)}

    def resume(self) -> Checkpoint | None:
        """Go back to the newest checkpoint, if there is one, and return it."""
        checkpoints = list_checkpoints(self._checkpoint_root)
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        self._use(load_policy(newest.policy_folder))
        position = restore_checkpoint(newest, optimizer=self._optimizer, config=self._identity())
        self.next_step = int(position["next_step"])
        logger.info("%s: going on at step %d of %d", self._setup.name, self.next_step, self._config.num_steps)
        return newest

    def run(self, *, progress: bool = True) -> None:
        """Do all steps that are left."""
        config, setup = self._config, self._setup
        log = RunLog(setup.folder, stage=setup.name, first_step=self.next_step)
        bar = tqdm(
            total=config.num_steps,
            initial=self.next_step,
            desc=setup.name,
            unit="step",
            disable=not progress,
            mininterval=BAR_INTERVAL_S,
        )
        try:
            while self.next_step < config.num_steps:
                step = self.next_step
                groups, metrics = self.step()
                log.write(step, metrics)
                if step % config.transcript_every == 0:
                    _write_transcripts(log, step, groups)
                bar.update()
                bar.set_postfix(reward=f"{metrics['rollout/reward_mean']:.3f}", refresh=False)
                if self.next_step % config.checkpoint_every == 0 and self.next_step < config.num_steps:
                    self.save()
        finally:
            bar.close()
            log.close()

    def save(self) -> Checkpoint:
        """Write a checkpoint of the state after the last finished step."""
        return save_checkpoint(
            self._checkpoint_root,
            self.next_step,
            self.policy,
            optimizer=self._optimizer,
            position={"next_step": self.next_step},
            config=self._identity(),
        )

    def step(self) -> tuple[list[RolloutGroup], dict[str, float]]:
        """Play one batch of groups, update the policy on it, and return both groups and metrics."""
        config, setup = self._config, self._setup
        started = time.perf_counter()
        users = step_users(setup.users, config.users_per_step, step=self.next_step, seed=setup.seed)
        seed = int(np.random.SeedSequence([setup.seed, self.next_step]).generate_state(1)[0])
        groups = collect_groups(setup.game, self._agent, users, group_size=config.group_size, seed=seed)
        played = time.perf_counter()
        useful = [group for group in groups if group.has_signal]
        metrics = _group_metrics(groups)
        if useful:
            self._set_learning_rate()
            for number, part in enumerate(
                np.array_split(np.arange(len(useful)), min(config.num_minibatches, len(useful)))
            ):
                metrics |= self._update([useful[place] for place in part], on_policy=number == 0)
        self._agent.generator.weights_changed()
        self.next_step += 1
        finished = time.perf_counter()
        metrics |= {
            "data/zero_variance_groups": float(len(groups) - len(useful)),
            "time/generate_s": played - started,
            "time/update_s": finished - played,
        }
        return groups, metrics

    def _update(self, groups: Sequence[RolloutGroup], *, on_policy: bool) -> dict[str, float]:
        """Take one optimizer step on these groups; `on_policy` if the weights are still those that sampled them."""
        config, model = self._config, self.policy.model
        advantages = [
            advantages_T
            for group in groups
            for advantages_T in group_advantages(config.advantage, [rollout.turn_rewards for rollout in group.rollouts])
        ]
        traces = [rollout.trace for group in groups for rollout in group.rollouts]
        batch = build_batch(traces, advantages, pad_id=self.policy.pad_id)
        weights_NT = token_weights(batch.mask_NT, config.normalization, constant=config.max_tokens)
        model.train()
        self._optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for rows in micro_batches(batch.lengths_N.tolist(), max_tokens=config.micro_batch_tokens):
            for name, value in self._backward(batch, weights_NT, rows).items():
                totals[name] = (
                    max(totals.get(name, 0.0), value) if name.endswith("_max") else totals.get(name, 0) + value
                )
        if on_policy:
            self._check_engine(totals["loss/logp_difference_max"])
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        if not torch.isfinite(norm):
            raise AgentError(
                f"stage {self._setup.name}, step {self.next_step}: the gradient is not a number; the policy was not "
                "changed, the last checkpoint stands: lower learning_rate and start again"
            )
        self._optimizer.step()
        num_tokens = float(batch.mask_NT.sum())
        return {
            **{name: value / num_tokens if name == "loss/entropy" else value for name, value in totals.items()},
            "loss/grad_norm": float(norm),
            "loss/learning_rate": float(self._optimizer.param_groups[0]["lr"]),
            "data/tokens": float(batch.num_tokens),
            "data/sampled_tokens": num_tokens,
        }

    def _check_engine(self, difference: float) -> None:
        limit = self._config.max_logp_difference
        if limit and not difference <= limit:
            engine = self._setup.engine.name
            raise AgentError(
                f"stage {self._setup.name}, step {self.next_step}: log-probabilities of engine {engine} and trainer "
                f"differ by up to {difference:.2g} nats, more than max_logp_difference {limit:g}; the engine does not "
                "sample from this policy (old weights, another precision?); the last checkpoint stands"
            )

    def _backward(self, batch: TokenBatch, weights_NT: torch.Tensor, rows: list[int]) -> dict[str, float]:
        """Accumulate the gradient of some rows and return their share of the loss's terms."""
        config = self._config
        ids_NT, mask_NT = batch_rows(batch, rows)
        width = ids_NT.shape[1]
        logps_M, entropy_M = sampled_logps(self.policy.model, ids_NT, mask_NT)
        reference_M = None
        if self._reference is not None:
            with torch.no_grad():
                reference_M, _ = sampled_logps(self._reference, ids_NT, mask_NT)
        engine_M = batch.logps_NT[rows, :width][mask_NT]
        terms = grpo_loss(
            logps_M,
            engine_M,
            batch.advantages_NT[rows, :width][mask_NT],
            weights_NT[rows, :width][mask_NT],
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            ref_logps_NT=reference_M,
            kl_coef=config.kl_coef,
        )
        terms.loss.backward()
        return {
            "loss/policy": float(terms.policy),
            "loss/kl": float(terms.kl),
            "loss/clip_fraction": float(terms.clip_fraction),
            "loss/is_ratio_mean": float(terms.ratio),
            "loss/entropy": float(entropy_M.sum()),
            "loss/logp_difference_max": float((logps_M.detach() - engine_M).abs().max()),
        }

    def _set_learning_rate(self) -> None:
        rise = min(1.0, (self.next_step + 1) / max(1, self._config.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * rise


def step_users(users: Sequence[int], count: int, *, step: int, seed: int) -> list[int]:
    """Return the users of a step, one out of each of `count` equal stretches of `users`.

    Where `users` goes from easy to hard, every step is as easy as the next: what changes from step to step is the
    policy, less so the luck of the draw. A stretch's users come in endless shuffles, each equally often.
    """
    stretched = np.repeat(np.asarray(users), -(-count // len(users)))
    picked = []
    for number, stretch in enumerate(np.array_split(stretched, count)):
        epoch, offset = divmod(step, len(stretch))
        order = np.random.default_rng([seed, number, epoch]).permutation(len(stretch))
        picked.append(int(stretch[order[offset]]))
    return picked


def _group_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.metrics)
    rewards = np.array([rollout.reward for rollout in rollouts])
    return {
        "rollout/reward_mean": float(rewards.mean()),
        "rollout/reward_std": float(rewards.std()),
        **{name: float(np.mean([rollout.metrics.get(name, 0.0) for rollout in rollouts])) for name in names},
        "data/failed_rollouts": float(sum(group.num_failed for group in groups)),
    }


def _write_transcripts(log: RunLog, step: int, groups: Sequence[RolloutGroup]) -> None:
    rollouts = sorted((rollout for group in groups for rollout in group.rollouts), key=lambda rollout: rollout.reward)
    for name, rollout in (("worst", rollouts[0]), ("median", rollouts[len(rollouts) // 2]), ("best", rollouts[-1])):
        lines = [f"reward {rollout.reward:.3f}; a turn: {', '.join(f'{paid:.3f}' for paid in rollout.turn_rewards)}"]
        log.write_text(step, f"transcript/{name}", "\n".join([*lines, "", rollout.transcript]))
