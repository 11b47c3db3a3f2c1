"""Warm start: the policy imitates an agent's episodes, with the loss on the actions' tokens only."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from agents.grpo.batch import TokenBatch, build_batch
from agents.grpo.checkpoint import list_checkpoints, restore_checkpoint, save_checkpoint
from agents.grpo.config import SftConfig
from agents.grpo.forward import batch_rows, sampled_logps
from agents.grpo.policy import Policy, load_policy
from agents.grpo.progress import BAR_INTERVAL_S, RunLog
from agents.grpo.tokenizer import encode
from agents.grpo.types import TokenTrace

if TYPE_CHECKING:
    from deeprec_env.episode import Episode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Phase:
    """Dialogues that are learned before the next phase begins."""

    traces: Sequence[TokenTrace]
    num_epochs: int
    batch_size: int


_WARMUP_SHARE, _FINAL_SHARE = 0.05, 0.02
_BUCKET_BATCHES = 16
"""Dialogues are sorted by length within so many batches, so that little is padding."""


def encode_episode(episode: Episode, tokenizer: PreTrainedTokenizerBase) -> TokenTrace:
    """Return the tokens of a played episode, as a policy that had sampled its actions would remember them."""
    trace = TokenTrace(tuple(encode(tokenizer, episode.prompt)))
    for turn in episode.turns:
        ids = encode(tokenizer, turn.action)
        trace.append_turn(ids, [0.0] * len(ids))
        if turn.observation:
            trace.append_observation(encode(tokenizer, turn.observation))
    return trace


def train_sft(
    policy: Policy,
    phases: Sequence[Phase],
    config: SftConfig,
    *,
    folder: Path,
    seed: int,
    progress: bool = True,
) -> Policy:
    """Return the policy after the last phase; a run that was killed goes on from its last checkpoint.

    Args:
        policy: changed in place, unless a checkpoint takes its place.
        phases: one after the other, under one schedule; dialogues longer than the model reads are left out.
        config: learning rate and so on.
        folder: of the stage: checkpoints, metrics and events.
        seed: of the order.
        progress: whether to show a bar.
    """
    batch, schedule = _plan(policy, phases, seed=seed)
    identity = {"sft": dataclasses.asdict(config), "seed": seed, "num_updates": len(schedule)}
    checkpoints = list_checkpoints(folder / "checkpoints")
    if checkpoints:
        policy = load_policy(checkpoints[-1].policy_folder)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )
    first = 0
    if checkpoints:
        first = int(restore_checkpoint(checkpoints[-1], optimizer=optimizer, config=identity)["update"])
        logger.info("sft: going on at update %d of %d", first, len(schedule))
    policy.model.train()
    bar = tqdm(
        total=len(schedule), initial=first, desc="sft", unit="update", disable=not progress, mininterval=BAR_INTERVAL_S
    )
    with closing(RunLog(folder, stage="sft", first_step=first)) as log, bar:
        for update in range(first, len(schedule)):
            started = time.perf_counter()
            rate = _set_learning_rate(optimizer, config.learning_rate, update, len(schedule))
            metrics = _update(policy, optimizer, batch, schedule[update], config)
            metrics["time/update_s"] = time.perf_counter() - started
            log.write(update, {**metrics, "loss/learning_rate": rate})
            bar.update()
            bar.set_postfix(loss=f"{metrics['loss/sft']:.3f}", refresh=False)
            finished = update + 1
            if finished % config.checkpoint_every == 0 and finished < len(schedule):
                position = {"update": finished}
                save_checkpoint(
                    folder / "checkpoints", finished, policy, optimizer=optimizer, position=position, config=identity
                )
    return policy


def _plan(policy: Policy, phases: Sequence[Phase], *, seed: int) -> tuple[TokenBatch, list[list[int]]]:
    """Return all dialogues as one batch, and the rows of each update."""
    traces: list[TokenTrace] = []
    schedule: list[list[int]] = []
    for number, phase in enumerate(phases):
        kept = [trace for trace in phase.traces if len(trace) <= policy.max_length]
        if len(kept) < len(phase.traces):
            logger.warning("%d of %d dialogues are too long", len(phase.traces) - len(kept), len(phase.traces))
        lengths = np.array([len(trace) for trace in kept])
        for epoch in range(phase.num_epochs if kept else 0):
            rows = _epoch_batches(lengths, phase.batch_size, [seed, number, epoch])
            schedule.extend([row + len(traces) for row in update] for update in rows)
        traces.extend(kept)
    return build_batch(traces, [np.zeros(trace.num_turns) for trace in traces], pad_id=policy.pad_id), schedule


def _update(
    policy: Policy, optimizer: torch.optim.Optimizer, batch: TokenBatch, rows: list[int], config: SftConfig
) -> dict[str, float]:
    ids_NT, mask_NT = batch_rows(batch, rows)
    logps_M, entropy_M = sampled_logps(policy.model, ids_NT, mask_NT)
    loss = -logps_M.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.max_grad_norm)
    optimizer.step()
    return {
        "loss/sft": float(loss.detach()),
        "loss/entropy": float(entropy_M.mean()),
        "loss/grad_norm": float(norm),
        "data/tokens": float(batch.lengths_N[rows].sum()),
    }


def _epoch_batches(lengths: NDArray[np.int64], size: int, seed: list[int]) -> list[list[int]]:
    """Return the rows of each update: every row once, like lengths together, the updates in random order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _BUCKET_BATCHES):
        bucket = order[start : start + size * _BUCKET_BATCHES]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches.extend(bucket[place : place + size].tolist() for place in range(0, len(bucket), size))
    return [batches[place] for place in rng.permutation(len(batches))]


def _set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, update: int, num_updates: int) -> float:
    """Set and return the rate of this update: a linear rise, then a cosine down to a fiftieth."""
    warmup = max(1, round(_WARMUP_SHARE * num_updates))
    if update < warmup:
        rate = peak * (update + 1) / warmup
    else:
        done = (update - warmup) / max(1, num_updates - warmup)
        rate = peak * (_FINAL_SHARE + (1 - _FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
