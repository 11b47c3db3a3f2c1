"""Data-parallel processes: who this one is, its share of the work, and what all of them have in common.

Without a process group all of it works as for one process alone. Started by torchrun, `join_ranks` makes the group.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

ItemT = TypeVar("ItemT")
_TIMEOUT = datetime.timedelta(hours=2)
"""Ranks wait for the one whose rollouts take longest."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    """From 0; rank 0 writes logs and checkpoints."""
    size: int = 1
    """How many there are."""

    @classmethod
    def current(cls) -> Ranks:
        """Return this process's place, alone if there is no process group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[ItemT]) -> list[ItemT]:
        """Return this rank's items: every size-th, beginning with its own number."""
        return list(items[self.rank :: self.size])

    def gather(self, value: ItemT) -> list[ItemT]:
        """Return every rank's value, in the order of ranks. All ranks must call it."""
        if self.size == 1:
            return [value]
        values: list[ItemT | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def total(self, value: float) -> float:
        """Return the sum of every rank's value."""
        return float(sum(self.gather(value)))

    def merge(self, parts: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over ranks, of names that end in _max the largest; ranks may lack names."""
        merged: dict[str, float] = {}
        for part in self.gather(dict(parts)):
            add_up(merged, part)
        return merged

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.gather(None)


def add_up(totals: dict[str, float], part: Mapping[str, float]) -> None:
    """Add a part to the totals in place; names that end in _max keep the larger value. A NaN stays one."""
    for name, value in part.items():
        if name not in totals:
            totals[name] = value
        elif name.endswith("_max"):
            totals[name] = float(np.maximum(totals[name], value))
        else:
            totals[name] += value


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Make the process group that torchrun describes in the environment, and leave it at the end.

    Gloo moves what lies in main memory, NCCL what lies on GPUs, one of which becomes the current one. Without torchrun,
    or with one process, nothing is made.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Ranks.current()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield Ranks.current()
    finally:
        # An engine of vLLM in this process leaves the group itself, when the interpreter ends.
        if "vllm" not in sys.modules:
            dist.destroy_process_group()


def local_device() -> torch.device:
    """Return the GPU that is this process's, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
