"""From groups of rollouts to one step of the policy: advantages, old log-probabilities, clipped loss, backend.

Every rank brings its own groups. Token weights are those of all ranks' tokens together, so that how groups are spread
over ranks and micro-batches changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.grpo.advantage import group_advantages
from agents.grpo.backend import Backend
from agents.grpo.batch import TokenBatch, build_batch, micro_batches
from agents.grpo.config import GrpoConfig
from agents.grpo.failures import Halt
from agents.grpo.forward import NOTHING, batch_rows, sampled_logps
from agents.grpo.loss import engine_correction, grpo_loss, token_weights
from agents.grpo.ranks import Ranks, add_up
from agents.grpo.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class _Part:
    """One optimizer step's share of this rank."""

    batch: TokenBatch | None
    """None if this rank has no rollout in it."""
    weights_NT: Tensor
    """Of `token_weights`, over all ranks."""
    rows: list[list[int]]
    """Micro-batches, as many on every rank: [] stands for one without rollouts."""
    num_tokens: float
    """Sampled tokens of all ranks."""


class Learner:
    """Updates a policy by the clipped loss."""

    def __init__(
        self, backend: Backend, config: GrpoConfig, *, pad_id: int, reference: PreTrainedModel | None = None
    ) -> None:
        """Bind the backend.

        Args:
            backend: holds the policy.
            config: of the stage.
            pad_id: fills up batches.
            reference: the frozen model of the KL, on the backend's device; needed if kl_coef > 0.
        """
        self._backend, self._config = backend, config
        self._pad_id, self._reference = pad_id, reference
        self.changed = False
        """Whether the last `learn` took a step before it ended or failed."""

    def learn(self, groups: Sequence[Sequence[RolloutGroup]], *, learning_rate: float) -> dict[str, float]:
        """Take one step on each element of `groups` and return the metrics, those of the last step where steps differ.

        Args:
            groups: this rank's groups of each step, possibly none; as many steps on every rank.
            learning_rate: of all steps.

        Raises:
            Halt: if loss or gradient is not a number, or engine and trainer disagree; that step is not taken.
        """
        self.changed = False
        parts = [self._part(groups_of_step) for groups_of_step in groups]
        with self._backend.training():
            # Before the first step the log-probabilities of its own forward pass are the old ones.
            olds = [None, *(self._old_logps(part) for part in parts[1:])]
            metrics: dict[str, float] = {}
            for part, old_NT in zip(parts, olds, strict=True):
                found = self._step(part, old_NT, learning_rate)
                worst = max(metrics.get("loss/logp_difference_max", 0.0), found["loss/logp_difference_max"])
                metrics = {**found, "loss/logp_difference_max": worst}
        return {**metrics, "loss/learning_rate": learning_rate}

    def _part(self, groups: Sequence[RolloutGroup]) -> _Part:
        config, ranks = self._config, Ranks.current()
        traces = [rollout.trace for group in groups for rollout in group.rollouts]
        batch, weights, rows = None, torch.zeros((1, 2)), []
        num_tokens = num_rows = 0.0
        if traces:
            advantages = [
                of_turns
                for group in groups
                for of_turns in group_advantages(config.advantage, [rollout.turn_rewards for rollout in group.rollouts])
            ]
            batch = build_batch(traces, advantages, pad_id=self._pad_id)
            weights = token_weights(batch.mask_NT, config.normalization, constant=config.max_tokens)
            lengths, padded = batch.lengths_N.tolist(), not self._backend.packs
            rows = list(micro_batches(lengths, max_tokens=config.micro_batch_tokens, padded=padded))
            num_tokens, num_rows = float(batch.mask_NT.sum()), float(batch.mask_NT.any(dim=1).sum())
            if config.normalization == "constant":
                num_rows = float(len(traces))
        everyone = ranks.gather((num_tokens, num_rows, len(rows)))
        # Each rank's weights divide by its own tokens or sequences: make that all ranks' together.
        place = 0 if config.normalization == "token" else 1
        share = (num_tokens, num_rows)[place] / max(1.0, sum(counts[place] for counts in everyone))
        missing = max(counts[2] for counts in everyone) - len(rows)
        return _Part(batch, weights * share, rows + [[]] * missing, sum(counts[0] for counts in everyone))

    def _step(self, part: _Part, old_NT: Tensor | None, learning_rate: float) -> dict[str, float]:
        totals: dict[str, float] = {}
        for rows in part.rows:
            add_up(totals, self._accumulate(part, old_NT, rows))
        totals = Ranks.current().merge(totals)
        self._check(totals)
        norm = self._backend.step(learning_rate)
        if not math.isfinite(norm):
            raise Halt("the gradient is not a number", _CALMER)
        self.changed = True
        for name in ("loss/entropy", "loss/is_ratio_mean"):
            totals[name] /= part.num_tokens
        return {**totals, "loss/grad_norm": norm, "data/sampled_tokens": part.num_tokens}

    def _check(self, totals: dict[str, float]) -> None:
        if not math.isfinite(totals["loss/policy"] + totals["loss/kl"]):
            raise Halt("the loss is not a number", _CALMER)
        limit, difference = self._config.max_logp_difference, totals["loss/logp_difference_max"]
        if limit and not difference <= limit:
            raise Halt(
                f"the log-probabilities of engine and trainer differ by up to {difference:.2g} nats, more than "
                f"max_logp_difference {limit:g}: the engine does not sample from this policy",
                "take the engine hf, or, if engine or backend compute in bf16, set max_logp_difference to 0; then "
                "start again",
            )

    @torch.no_grad()
    def _old_logps(self, part: _Part) -> Tensor:
        """Return the trainer's log-probabilities before any step, float32 [N, T], 0 where nothing was sampled."""
        old_NT = torch.zeros_like(part.weights_NT)
        for rows in part.rows:
            if part.batch is None or not rows:
                self._backend.score(*NOTHING)
                continue
            ids_NT, mask_NT = batch_rows(part.batch, rows)
            logps_M, _ = self._backend.score(ids_NT, mask_NT)
            found_NT = torch.zeros(mask_NT.shape)
            found_NT[mask_NT] = logps_M.cpu()
            old_NT[rows, : mask_NT.shape[1]] = found_NT
        return old_NT

    def _accumulate(self, part: _Part, old_NT: Tensor | None, rows: list[int]) -> dict[str, float]:
        """Accumulate the gradient of some rows and return their share of the loss's terms."""
        backend, config = self._backend, self._config
        if part.batch is None or not rows:
            logps_M, _ = backend.score(*NOTHING)
            backend.accumulate(logps_M.sum() * 0.0)
            return {}
        ids_NT, mask_NT = batch_rows(part.batch, rows)
        width, device = ids_NT.shape[1], backend.device
        logps_M, entropy_M = backend.score(ids_NT, mask_NT)
        engine_M = part.batch.logps_NT[rows, :width][mask_NT].to(device)
        old_M = logps_M.detach() if old_NT is None else old_NT[rows, :width][mask_NT].to(device)
        limit = config.correction_limit
        terms = grpo_loss(
            logps_M,
            old_M,
            part.batch.advantages_NT[rows, :width][mask_NT].to(device),
            part.weights_NT[rows, :width][mask_NT].to(device),
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            ref_logps_NT=self._reference_logps(ids_NT, mask_NT),
            kl_coef=config.kl_coef,
            correction_NT=engine_correction(old_M, engine_M, limit=limit) if limit else None,
        )
        backend.accumulate(terms.loss)
        ratio_M = torch.exp(old_M - engine_M)
        return {
            "loss/policy": float(terms.policy),
            "loss/kl": float(terms.kl),
            "loss/clip_fraction": float(terms.clip_fraction),
            "loss/entropy": float(entropy_M.sum()),
            "loss/is_ratio_mean": float(ratio_M.sum()),
            "loss/is_ratio_max": float(ratio_M.max()),
            "loss/logp_difference_max": float((old_M - engine_M).abs().max()),
            "data/tokens": float(part.batch.lengths_N[rows].sum()),
        }

    @torch.no_grad()
    def _reference_logps(self, ids_NT: Tensor, mask_NT: Tensor) -> Tensor | None:
        if self._reference is None:
            return None
        device = self._backend.device
        logps_M, _ = sampled_logps(self._reference, ids_NT.to(device), mask_NT.to(device))
        return logps_M


_CALMER = "lower learning_rate or max_grad_norm, then start again"
