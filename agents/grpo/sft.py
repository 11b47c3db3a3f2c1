"""Warm start: the policy imitates an agent's episodes, with the loss on the actions' tokens only."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from agents.grpo.backend import Backend, OptimizerConfig, build_backend
from agents.grpo.batch import TokenBatch, build_batch, micro_batches
from agents.grpo.checkpoint import Checkpoint, explain, list_checkpoints, restore_checkpoint, save_checkpoint
from agents.grpo.config import BackendConfig, SftConfig
from agents.grpo.failures import FAILURES, Halt
from agents.grpo.forward import NOTHING, batch_rows
from agents.grpo.policy import Policy, load_policy
from agents.grpo.progress import RunLog
from agents.grpo.ranks import Ranks, add_up
from agents.grpo.status import LiveStatus
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


_MAY_CHANGE = ("learning_rate", "max_grad_norm", "micro_batch_tokens", "checkpoint_every", "num_checked")
"""What a run may be resumed with another value of."""
_PLAIN = BackendConfig()
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
    backend: BackendConfig = _PLAIN,
) -> Policy:
    """Return the policy after the last phase; a run that was killed goes on from its last checkpoint.

    All ranks call it with the same dialogues and share each update's among them; the first one writes.

    Args:
        policy: changed in place, unless a checkpoint takes its place.
        phases: one after the other, under one schedule; dialogues longer than the model reads are left out.
        config: learning rate and so on.
        folder: of the stage: checkpoints, metrics and events.
        seed: of the order.
        progress: whether to show a bar.
        backend: what trains.

    Raises:
        AgentError: if the run cannot go on; the message says what is saved and what to do.
    """
    batch, schedule = _plan(policy, phases, seed=seed, by_length=config.by_length)
    checkpoints, ranks = list_checkpoints(folder / "checkpoints"), Ranks.current()
    if checkpoints and not backend.lora_rank:
        policy = load_policy(checkpoints[-1].policy_folder)
    trained = build_backend(
        policy.model, backend, OptimizerConfig(config.weight_decay, config.max_grad_norm, betas=(0.9, 0.98))
    )
    options = {key: value for key, value in dataclasses.asdict(config).items() if key not in _MAY_CHANGE}
    identity = {"sft": options, "seed": seed, "num_updates": len(schedule), "lora_rank": backend.lora_rank}
    first = 0
    if checkpoints:
        first = int(restore_checkpoint(checkpoints[-1], backend=trained, config=identity)["update"])
        logger.info("sft: going on at update %d of %d", first, len(schedule))
    finished = first

    def save() -> Checkpoint:
        position = {"update": finished}
        return save_checkpoint(
            folder / "checkpoints", finished, policy, backend=trained, position=position, config=identity
        )

    status = LiveStatus(*("sft", len(schedule), first), unit="update", show=progress and ranks.first, curve="loss/sft")
    with _log(folder, first) as log, status, trained.training():
        try:
            for update in range(first, len(schedule)):
                started = time.perf_counter()
                rate = _learning_rate(config.learning_rate, update, len(schedule))
                metrics = _update(trained, batch, schedule[update], rate, micro_batch_tokens=config.micro_batch_tokens)
                finished = update + 1
                metrics["time/update_s"] = time.perf_counter() - started
                if log is not None:
                    log.write(update, {**metrics, "loss/learning_rate": rate})
                status.update(update, metrics)
                if finished % config.checkpoint_every == 0 and finished < len(schedule):
                    save()
        except FAILURES as error:
            together = ranks.size == 1 or isinstance(error, Halt)
            where, root = f"sft, update {finished}", folder / "checkpoints"
            stopped = explain(error, where=where, root=root, save=save if together else None)
            if stopped is None:
                raise
            raise stopped from error
    return Policy(trained.plain_model(), policy.tokenizer)


@contextlib.contextmanager
def _log(folder: Path, first_step: int) -> Iterator[RunLog | None]:
    """Open the log on the first rank."""
    if not Ranks.current().first:
        yield None
        return
    with contextlib.closing(RunLog(folder, stage="sft", first_step=first_step)) as log:
        yield log


def _plan(policy: Policy, phases: Sequence[Phase], *, seed: int, by_length: bool) -> tuple[TokenBatch, list[list[int]]]:
    """Return all dialogues as one batch, and the rows of each update."""
    traces: list[TokenTrace] = []
    schedule: list[list[int]] = []
    for number, phase in enumerate(phases):
        kept = [trace for trace in phase.traces if len(trace) <= policy.max_length]
        if len(kept) < len(phase.traces):
            logger.warning("%d of %d dialogues are too long", len(phase.traces) - len(kept), len(phase.traces))
        lengths = np.array([len(trace) for trace in kept])
        for epoch in range(phase.num_epochs if kept else 0):
            rows = _epoch_batches(lengths, phase.batch_size, [seed, number, epoch], by_length=by_length)
            schedule.extend([row + len(traces) for row in update] for update in rows)
        traces.extend(kept)
    return build_batch(traces, [np.zeros(trace.num_turns) for trace in traces], pad_id=policy.pad_id), schedule


def _update(
    backend: Backend, batch: TokenBatch, rows: list[int], learning_rate: float, *, micro_batch_tokens: int
) -> dict[str, float]:
    """Take a step on these dialogues, this rank computing its share of them.

    Raises:
        Halt: if loss or gradient is not a number; then nothing was changed.
    """
    ranks = Ranks.current()
    num_tokens = float(batch.mask_NT[rows].sum())
    mine = ranks.share(rows)
    parts = list(micro_batches(batch.lengths_N[mine].tolist(), max_tokens=micro_batch_tokens)) if mine else []
    totals: dict[str, float] = {}
    for number in range(max(ranks.gather(len(parts)))):
        # A rank that is through goes on without dialogues, for all take the same number of passes.
        places = parts[number] if number < len(parts) else []
        ids_NT, mask_NT = batch_rows(batch, [mine[place] for place in places]) if places else NOTHING
        logps_M, entropy_M = backend.score(ids_NT, mask_NT)
        loss = -logps_M.sum() / num_tokens * (1.0 if places else 0.0)
        backend.accumulate(loss)
        add_up(totals, {"loss/sft": float(loss.detach()), "loss/entropy": float(entropy_M.sum()) * bool(places)})
    totals = ranks.merge(totals)
    norm = backend.step(learning_rate) if math.isfinite(totals["loss/sft"]) else math.nan
    if not math.isfinite(norm):
        raise Halt("loss or gradient is not a number", "lower learning_rate, then start again")
    return {
        "loss/sft": totals["loss/sft"],
        "loss/entropy": totals["loss/entropy"] / num_tokens,
        "loss/grad_norm": norm,
        "data/tokens": float(batch.lengths_N[rows].sum()),
    }


def _epoch_batches(lengths: NDArray[np.int64], size: int, seed: list[int], *, by_length: bool) -> list[list[int]]:
    """Return the rows of each update: every row once, like lengths together if wanted, the updates in random order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), size * _BUCKET_BATCHES):
        bucket = order[start : start + size * _BUCKET_BATCHES]
        if by_length:
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches.extend(bucket[place : place + size].tolist() for place in range(0, len(bucket), size))
    return [batches[place] for place in rng.permutation(len(batches))]


def _learning_rate(peak: float, update: int, num_updates: int) -> float:
    """Return the rate of this update: a linear rise, then a cosine down to a fiftieth."""
    warmup = max(1, round(_WARMUP_SHARE * num_updates))
    if update < warmup:
        return peak * (update + 1) / warmup
    done = (update - warmup) / max(1, num_updates - warmup)
    return peak * (_FINAL_SHARE + (1 - _FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2)
