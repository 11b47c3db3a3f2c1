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

from agents.base import AgentError
from agents.grpo.attention import choose_attention
from agents.grpo.backend import Backend, OptimizerConfig, build_backend
from agents.grpo.checkpoint import Checkpoint, explain, list_checkpoints, restore_checkpoint, save_checkpoint
from agents.grpo.config import BackendConfig, GrpoConfig
from agents.grpo.engines import Engine
from agents.grpo.failures import FAILURES, Halt, describe
from agents.grpo.policy import Policy, load_policy
from agents.grpo.progress import RunLog
from agents.grpo.ranks import Ranks, local_device
from agents.grpo.rollout import collect_groups
from agents.grpo.status import LiveStatus
from agents.grpo.types import RolloutGroup
from agents.grpo.update import Learner
from agents.llm_agent import LlmAgent, PolicyCard

if TYPE_CHECKING:
    from deeprec_env.game import Game

logger = logging.getLogger(__name__)

_MAY_CHANGE = (
    *("num_steps", "users_per_step", "learning_rate", "max_grad_norm", "warmup_steps", "micro_batch_tokens"),
    *("max_logp_difference", "correction_limit", "checkpoint_every", "transcript_every"),
)
"""What a run may be resumed with another value of: what its failures ask to change, and what changes no number."""


@dataclass(frozen=True, slots=True)
class StageSetup:
    """What one stage is trained on and where it writes."""

    name: str
    """cold or rec."""
    game: Game
    users: Sequence[int]
    """The users of the config's split to draw from, best from easy to hard: see `step_users`."""
    folder: Path
    seed: int
    card: PolicyCard
    """How the policy plays; of `max_tokens` the config's counts."""
    engine: Engine = field(default_factory=Engine)
    """What samples; one for all stages of a run."""
    backend: BackendConfig = field(default_factory=BackendConfig)
    """What trains."""


def train_stage(policy: Policy, config: GrpoConfig, setup: StageSetup, *, progress: bool = True) -> Policy:
    """Return the policy after the last step; a run that was killed goes on from its last checkpoint.

    All ranks call it; the first one writes. The policy that is returned is whole on every rank.

    Raises:
        AgentError: if the run cannot go on; the message says what was saved and what to do.
    """
    trainer = GrpoTrainer(policy, config, setup)
    trainer.resume()
    trainer.run(progress=progress)
    return trainer.policy


class GrpoTrainer:
    """The loop of one stage, one update a step."""

    def __init__(self, policy: Policy, config: GrpoConfig, setup: StageSetup) -> None:
        """Build the trainer; `policy` is changed in place unless `resume` finds a checkpoint."""
        self._config, self._setup, self._ranks = config, setup, Ranks.current()
        self._start = policy
        self._reference = None
        if config.kl_coef > 0:
            self._reference = copy.deepcopy(policy.model).eval()
            torch.nn.Module.to(self._reference, local_device())
            choose_attention(self._reference, setup.backend.attention, precision="fp32")
        self._parts: tuple[Backend, Learner, LlmAgent] | None = None
        self._status = LiveStatus(setup.name, config.num_steps, show=False)
        self._save_s = 0.0
        """What saving took since the last step."""
        self.next_step = 0

    def _use(self) -> tuple[Backend, Learner, LlmAgent]:
        """Return backend, learner and agent, made when they are first asked for: `resume` may bring another policy."""
        if self._parts is None:
            config, setup, policy = self._config, self._setup, self._start
            optimizer = OptimizerConfig(config.weight_decay, config.max_grad_norm, betas=(0.9, 0.99))
            backend = build_backend(policy.model, setup.backend, optimizer)
            sampled = Policy(backend.sampling_model, policy.tokenizer)
            agent = LlmAgent.of_policy(
                sampled,
                dataclasses.replace(setup.card, max_tokens=config.max_tokens),
                temperature=config.temperature,
                name=setup.name,
                generator=setup.engine.follow(sampled),
            )
            learner = Learner(backend, config, pad_id=policy.pad_id, reference=self._reference)
            self._parts = backend, learner, agent
        return self._parts

    @property
    def policy(self) -> Policy:
        """The policy as it is now, without adapters and whole, whatever the backend."""
        return Policy(self._use()[0].plain_model(), self._start.tokenizer)

    @property
    def _checkpoint_root(self) -> Path:
        return self._setup.folder / "checkpoints"

    def _identity(self) -> dict[str, Any]:
        options = {key: value for key, value in dataclasses.asdict(self._config).items() if key not in _MAY_CHANGE}
        return {
            **options,
            "stage": self._setup.name,
            "seed": self._setup.seed,
            "num_users": len(self._setup.users),
            "lora_rank": self._setup.backend.lora_rank,
        }

    def resume(self) -> Checkpoint | None:
        """Go back to the newest checkpoint, if there is one, and return it."""
        checkpoints = list_checkpoints(self._checkpoint_root)
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        # Adapters adapt the policy that the stage began with; the checkpoint's policy has them merged.
        if not self._setup.backend.lora_rank:
            self._start = load_policy(newest.policy_folder)
        self._parts = None
        backend, _, agent = self._use()
        position = restore_checkpoint(newest, backend=backend, config=self._identity())
        agent.generator.weights_changed()
        self.next_step = int(position["next_step"])
        logger.info("%s: going on at step %d of %d", self._setup.name, self.next_step, self._config.num_steps)
        return newest

    def run(self, *, progress: bool = True) -> None:
        """Do all steps that are left.

        Raises:
            AgentError: if the run cannot go on; what could be saved is, and the message says what to do.
        """
        config, setup = self._config, self._setup
        first = self._ranks.first
        self._status = LiveStatus(setup.name, config.num_steps, self.next_step, show=progress and first)
        log: RunLog | None = None
        try:
            log = RunLog(setup.folder, stage=setup.name, first_step=self.next_step) if first else None
            with self._status:
                while self.next_step < config.num_steps:
                    self._one_more(log)
        except FAILURES as error:
            stopped = self._stopped(error)
            if stopped is None:
                raise
            raise stopped from error
        finally:
            if log is not None:
                log.close()

    def _one_more(self, log: RunLog | None) -> None:
        """Do a step, write down what it measured, and save where it is time to."""
        config, step = self._config, self.next_step
        groups, metrics = self.step()
        if log is not None:
            log.write(step, metrics)
            if step % config.transcript_every == 0:
                _write_transcripts(log, step, groups)
        self._status.update(step, metrics)
        if self.next_step % config.checkpoint_every == 0 and self.next_step < config.num_steps:
            self._status.phase("saving")
            self.save()

    def _stopped(self, error: Exception) -> AgentError | None:
        """Save what can be saved and return the error in words; None if it is no known trouble."""
        together = self._ranks.size == 1 or isinstance(error, Halt)
        changed = self._parts is None or self._parts[1].changed
        where = f"stage {self._setup.name}, step {self.next_step}"
        save = self.save if together and not changed else None
        return explain(error, where=where, root=self._checkpoint_root, save=save)

    def save(self) -> Checkpoint:
        """Write a checkpoint of the state after the last finished step."""
        started = time.perf_counter()
        saved = save_checkpoint(
            self._checkpoint_root,
            self.next_step,
            self._start,
            backend=self._use()[0],
            position={"next_step": self.next_step},
            config=self._identity(),
        )
        self._save_s = time.perf_counter() - started
        return saved

    def step(self) -> tuple[list[RolloutGroup], dict[str, float]]:
        """Play one batch of groups, update the policy on it, and return both this rank's groups and all ranks' metrics.

        Raises:
            AgentError: if sampling failed or the update was refused; the policy is what it was, on all ranks.
        """
        config, ranks = self._config, self._ranks
        backend, learner, agent = self._use()
        started = time.perf_counter()
        self._status.phase("sampling")
        groups = self._play(agent)
        played = time.perf_counter()
        self._status.phase("update")
        useful = [group for group in groups if group.has_signal]
        num_groups, num_useful = int(ranks.total(len(groups))), int(ranks.total(len(useful)))
        metrics = _group_metrics(groups, ranks)
        if num_useful:
            parts = np.array_split(np.arange(len(useful)), min(config.num_minibatches, num_useful))
            rate = config.learning_rate * min(1.0, (self.next_step + 1) / max(1, config.warmup_steps))
            metrics |= learner.learn([[useful[place] for place in part] for part in parts], learning_rate=rate)
        learned = time.perf_counter()
        self._status.phase("weights to the engine")
        backend.follow()
        # The step is taken, and saved as such if the engine does not get the weights.
        self.next_step += 1
        learner.changed = False
        agent.generator.weights_changed()
        finished = time.perf_counter()
        sampled = sum(sum(rollout.trace.loss_mask) for group in groups for rollout in group.rollouts)
        metrics |= {
            "data/zero_variance_groups": float(num_groups - num_useful),
            "time/generate_s": played - started,
            "time/update_s": learned - played,
            "time/weights_s": finished - learned,
            "time/save_s": self._save_s,
            "time/step_s": finished - started + self._save_s,
            "time/sampled_tokens_per_s": ranks.total(sampled) / (played - started),
            "time/trained_tokens_per_s": metrics.get("data/tokens", 0.0) / (learned - played),
        }
        self._save_s = 0.0
        return groups, metrics

    def _play(self, agent: LlmAgent) -> list[RolloutGroup]:
        """Return the groups of this rank's users; if sampling fails on one rank, all raise."""
        config, setup = self._config, self._setup
        users = step_users(setup.users, config.users_per_step, step=self.next_step, seed=setup.seed)
        seed = int(np.random.SeedSequence([setup.seed, self.next_step]).generate_state(1)[0])
        groups: list[RolloutGroup] = []
        failure: Exception | None = None
        try:
            mine = self._ranks.share(users)
            groups = collect_groups(
                setup.game, agent, mine, group_size=config.group_size, seed=seed, split=config.split
            )
        except FAILURES as error:
            failure = error
        if failure is not None and self._ranks.size == 1:
            raise failure
        for rank, problem in enumerate(self._ranks.gather(_in_words(failure))):
            if problem is not None:
                raise Halt(f"sampling failed on rank {rank}: {problem[0]}", problem[1]) from failure
        return groups


def _in_words(error: Exception | None) -> tuple[str, str] | None:
    if error is None:
        return None
    return describe(error) or (f"{type(error).__name__}: {error}", "see to that, then start the same command again")


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


def _group_metrics(groups: Sequence[RolloutGroup], ranks: Ranks) -> dict[str, float]:
    """Return the means over all ranks' rollouts; failed ones are counted and are in no mean."""
    mine = [(rollout.reward, dict(rollout.metrics)) for group in groups for rollout in group.rollouts]
    rollouts = [rollout for of_rank in ranks.gather(mine) for rollout in of_rank]
    names = dict.fromkeys(name for _, metrics in rollouts for name in metrics)
    means = {name: float(np.mean([metrics.get(name, 0.0) for _, metrics in rollouts])) for name in names}
    rewards = np.array([reward for reward, _ in rollouts])
    return {
        "rollout/reward_mean": float(rewards.mean()),
        "rollout/reward_std": float(rewards.std()),
        **means,
        # What a perfect ranking of the same pools would add to NDCG@10, and what no ranking of them could.
        "rollout/ranking_loss": means.get("rollout/pool_recall", 0.0) - means.get("rollout/ndcg_at_10", 0.0),
        "rollout/retrieval_loss": 1.0 - means.get("rollout/pool_recall", 0.0),
        "data/failed_rollouts": ranks.total(sum(group.num_failed for group in groups)),
    }


def _write_transcripts(log: RunLog, step: int, groups: Sequence[RolloutGroup]) -> None:
    """Write the worst, the median and the best of the first rank's rollouts."""
    rollouts = sorted((rollout for group in groups for rollout in group.rollouts), key=lambda rollout: rollout.reward)
    for name, rollout in (("worst", rollouts[0]), ("median", rollouts[len(rollouts) // 2]), ("best", rollouts[-1])):
        lines = [f"reward {rollout.reward:.3f}; a turn: {', '.join(f'{paid:.3f}' for paid in rollout.turn_rewards)}"]
        log.write_text(step, f"transcript/{name}", "\n".join([*lines, "", rollout.transcript]))
