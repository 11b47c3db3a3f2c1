"""Rollouts to padded tensors, and back into micro-batches. Pure tensors: no environment, no engine.

Shape legend: N sequences, T tokens. Padding is on the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.grpo.types import TokenTrace


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Whole sequences, prompt included. `mask`, `logps` and `advantages` at [n, t] speak of token ids[n, t]."""

    ids_NT: Tensor
    """int64, padded by pad_id."""
    lengths_N: Tensor
    """int64, real tokens."""
    mask_NT: Tensor
    """bool, True on sampled tokens; column 0 is always False, for nothing predicts it."""
    logps_NT: Tensor
    """float32, the engine's log-probabilities; 0 where mask is False."""
    advantages_NT: Tensor
    """float32, 0 where mask is False."""

    @property
    def num_tokens(self) -> int:
        """Real tokens of all sequences."""
        return int(self.lengths_N.sum())


def build_batch(traces: Sequence[TokenTrace], advantages: Sequence[NDArray[np.float64]], *, pad_id: int) -> TokenBatch:
    """Return the traces as one batch, in their order.

    Args:
        traces: at least one.
        advantages: one float64 [turns] a trace; each sampled token gets its turn's.
        pad_id: fills up on the right.
    """
    num_rows, width = len(traces), max(len(trace) for trace in traces)
    ids = np.full((num_rows, width), pad_id, dtype=np.int64)
    mask = np.zeros((num_rows, width), dtype=bool)
    logps = np.zeros((num_rows, width), dtype=np.float32)
    spread = np.zeros((num_rows, width), dtype=np.float32)
    for row, (trace, advantages_T) in enumerate(zip(traces, advantages, strict=True)):
        start, end = len(trace.prompt_ids), len(trace)
        ids[row, :end] = trace.context
        mask[row, start:end] = trace.loss_mask
        logps[row, start:end] = trace.logps
        spread[row, start:end] = np.asarray(advantages_T)[trace.turn_of] * np.asarray(trace.loss_mask)
    return TokenBatch(
        ids_NT=torch.from_numpy(ids),
        lengths_N=torch.tensor([len(trace) for trace in traces]),
        mask_NT=torch.from_numpy(mask),
        logps_NT=torch.from_numpy(logps),
        advantages_NT=torch.from_numpy(spread),
    )


def micro_batches(lengths: Sequence[int], *, max_tokens: int, padded: bool = True) -> Iterator[list[int]]:
    """Yield row numbers of micro-batches of max_tokens at most; a longer row makes a micro-batch of its own.

    Padded ones hold rows of like length, and their padding counts. Others hold neighbours, so that the members of a
    group stay together.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row)) if padded else range(len(lengths))
    rows: list[int] = []
    total = 0
    for row in order:
        # Padded rows come by rising length, so this one sets the width.
        total = (len(rows) + 1) * lengths[row] if padded else total + lengths[row]
        if rows and total > max_tokens:
            yield rows
            rows, total = [], lengths[row]
        rows.append(row)
    if rows:
        yield rows
