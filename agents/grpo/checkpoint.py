"""Atomic checkpoints of a training run: policy, optimizer, every random state, the position in the data.

A checkpoint is a folder `step_000040` that appears under its name only when all of it is on disk, so a run that is
killed at any moment finds either the old one or the new one.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.base import AgentError
from agents.grpo.policy import Policy, save_policy

_NAME = re.compile(r"step_(\d{6,})")
_FORMAT = 1
POLICY_FOLDER = "policy"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that was found on disk."""

    step: int
    """Updates that were finished when it was written."""
    folder: Path

    @property
    def policy_folder(self) -> Path:
        """The policy in Hugging Face format."""
        return self.folder / POLICY_FOLDER


def save_checkpoint(
    root: Path,
    step: int,
    policy: Policy,
    *,
    optimizer: torch.optim.Optimizer,
    position: Mapping[str, Any],
    config: Mapping[str, Any],
    keep: int = 1,
) -> Checkpoint:
    """Write a checkpoint and drop all but the newest `keep`.

    Args:
        root: the folder of all checkpoints of this run.
        step: finished updates.
        policy: what is trained.
        optimizer: with its schedule's learning rate in its groups.
        position: where the run stands in its data; JSON values.
        config: what the run was started with, to be checked at resuming; JSON values.
        keep: how many stay.
    """
    final = root / f"step_{step:06d}"
    partial = root / f".partial_{step:06d}_{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_policy(policy, partial / POLICY_FOLDER)
    torch.save({"optimizer": optimizer.state_dict(), "torch_rng": torch.get_rng_state()}, partial / "trainer.pt")
    version, internal, gauss = random.getstate()
    state = {
        "format": _FORMAT,
        "step": step,
        "position": dict(position),
        "config": dict(config),
        "python_rng": [version, list(internal), gauss],
        "numpy_rng": _numpy_state(),
    }
    (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
    _sync_tree(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    _sync(root)
    for old in list_checkpoints(root)[:-keep]:
        shutil.rmtree(old.folder)
    return Checkpoint(step, final)


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """Return the finished checkpoints, oldest first; unfinished ones of a killed run are removed."""
    if not root.is_dir():
        return []
    found = []
    for folder in root.iterdir():
        if folder.name.startswith(".partial_"):
            shutil.rmtree(folder, ignore_errors=True)
        elif match := _NAME.fullmatch(folder.name):
            found.append(Checkpoint(int(match[1]), folder))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def restore_checkpoint(
    checkpoint: Checkpoint, *, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Load optimizer and random states and return the position in the data. The policy is loaded by `load_policy`.

    Raises:
        AgentError: if the checkpoint is broken, or of a run with another config.
    """
    try:
        state = json.loads((checkpoint.folder / "state.json").read_text(encoding="utf-8"))
        tensors = torch.load(checkpoint.folder / "trainer.pt", weights_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise AgentError(f"cannot read checkpoint {checkpoint.folder}: {error}; remove it to go on") from error
    saved, wanted = state["config"], json.loads(json.dumps(dict(config)))
    if saved != wanted:
        differing = sorted(key for key in saved.keys() | wanted.keys() if saved.get(key) != wanted.get(key))
        raise AgentError(
            f"checkpoint {checkpoint.folder} is of a run with another {', '.join(differing)}; "
            "give the same options to resume it, or another --out to start anew"
        )
    optimizer.load_state_dict(tensors["optimizer"])
    torch.set_rng_state(tensors["torch_rng"])
    version, internal, gauss = state["python_rng"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(_numpy_tuple(state["numpy_rng"]))
    position: dict[str, Any] = state["position"]
    return position


def _numpy_state() -> list[Any]:
    name, keys, place, has_gauss, cached = np.random.get_state()
    return [name, np.asarray(keys).tolist(), place, has_gauss, cached]


def _numpy_tuple(state: list[Any]) -> tuple[str, Any, int, int, float]:
    name, keys, place, has_gauss, cached = state
    return name, np.asarray(keys, dtype=np.uint32), place, has_gauss, cached


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
