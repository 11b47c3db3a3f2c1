"""Atomic checkpoints of a training run: policy, optimizer, every random state, the position in the data.

A checkpoint is a folder `step_000040` that appears under its name only when all of it is on disk, so a run that is
killed at any moment finds either the old one or the new one. The first rank writes; all ranks call the same functions.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from agents.base import AgentError
from agents.grpo.backend import Backend
from agents.grpo.failures import Halt, describe
from agents.grpo.policy import Policy, save_policy
from agents.grpo.ranks import Ranks

logger = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d{6,})")
_FORMAT = 2
_PARTIAL = ".partial_"
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
    backend: Backend,
    position: Mapping[str, Any],
    config: Mapping[str, Any],
    keep: int = 1,
) -> Checkpoint:
    """Write a checkpoint, unless there is one of this step, and drop all but the newest `keep`.

    Args:
        root: the folder of all checkpoints of this run.
        step: finished updates.
        policy: names the tokenizer and the model's kind; the weights are the backend's.
        backend: what is trained, with its optimizer.
        position: where the run stands in its data; JSON values.
        config: what the run was started with, to be checked at resuming; JSON values.
        keep: how many stay.

    Raises:
        Halt: if it cannot be written, on all ranks; what was saved before is kept.
    """
    final = root / f"step_{step:06d}"
    weights, state = backend.policy_weights(), backend.state()
    problem = ""
    if weights is not None and not final.exists():
        partial = root / f"{_PARTIAL}{step:06d}_{os.getpid()}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_policy(Policy(backend.sampling_model, policy.tokenizer), partial / POLICY_FOLDER, weights=weights)
            torch.save({"optimizer": state, "torch_rng": torch.get_rng_state()}, partial / "trainer.pt")
            record = {"format": _FORMAT, "step": step, "position": dict(position), "config": dict(config)}
            (partial / "state.json").write_text(json.dumps({**record, **_random_state()}), encoding="utf-8")
            _sync_tree(partial)
            partial.replace(final)
            _sync(root)
            for old in list_checkpoints(root)[:-keep]:
                _remove(old.folder)
        # torch and safetensors have errors of their own for a full disk.
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            problem = str(error)
    problem = next(filter(None, Ranks.current().gather(problem)), "")
    if problem:
        raise Halt(
            f"cannot write the checkpoint of step {step} into {root} ({problem})",
            "make room there, then start the same command again",
        )
    return Checkpoint(step, final)


def explain(error: Exception, *, where: str, root: Path, save: Callable[[], Checkpoint] | None) -> AgentError | None:
    """Save what can be saved after a failure and return it in a sentence: what happened, what is saved, what to do.

    Args:
        error: one of FAILURES.
        where: such as "stage cold, step 7".
        root: the folder of all checkpoints of this run.
        save: writes the state; None if that is half changed, or if other ranks do not take part.

    Returns:
        None for an error that is no known trouble; the state is saved all the same.
    """
    found, saved = describe(error), None
    if save is not None:
        try:
            saved = save()
        except Halt as unsaved:
            logger.warning("%s", unsaved)
    if saved is None:
        saved = next(reversed(list_checkpoints(root)), None)
    state = "nothing is saved" if saved is None else f"the state after {saved.step} steps is saved in {saved.folder}"
    if found is None:
        logger.error("%s failed; %s", where, state)
        return None
    return AgentError(f"{where}: {found[0]}; {state}; {found[1]}")


def _remove(folder: Path) -> None:
    """Remove a checkpoint, at no moment leaving half of one under its name."""
    doomed = folder.with_name(f"{_PARTIAL}{folder.name}")
    folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """Return the finished checkpoints, oldest first; the first rank removes unfinished ones of a killed run."""
    if not root.is_dir():
        return []
    found = []
    for folder in root.iterdir():
        if folder.name.startswith(_PARTIAL):
            if Ranks.current().first:
                shutil.rmtree(folder, ignore_errors=True)
        elif match := _NAME.fullmatch(folder.name):
            found.append(Checkpoint(int(match[1]), folder))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def restore_checkpoint(checkpoint: Checkpoint, *, backend: Backend, config: Mapping[str, Any]) -> dict[str, Any]:
    """Load optimizer and random states and return the position in the data. The policy is loaded by `load_policy`.

    Raises:
        AgentError: if the checkpoint is broken, or of a run with another config.
    """
    try:
        state = json.loads((checkpoint.folder / "state.json").read_text(encoding="utf-8"))
        tensors = torch.load(checkpoint.folder / "trainer.pt", weights_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise AgentError(f"cannot read checkpoint {checkpoint.folder}: {error}; remove it to go on") from error
    if state["format"] != _FORMAT:
        raise AgentError(
            f"expected a checkpoint of format {_FORMAT}, got {state['format']} in {checkpoint.folder}; finish that run "
            "with the version that began it, or give another --out"
        )
    saved, wanted = state["config"], json.loads(json.dumps(dict(config)))
    if saved != wanted:
        differing = sorted(key for key in saved.keys() | wanted.keys() if saved.get(key) != wanted.get(key))
        raise AgentError(
            f"checkpoint {checkpoint.folder} is of a run with another {', '.join(differing)}; "
            "give the same options to resume it, or another --out to start anew"
        )
    backend.load_state(tensors["optimizer"])
    torch.set_rng_state(tensors["torch_rng"])
    version, internal, gauss = state["python_rng"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(_numpy_tuple(state["numpy_rng"]))
    position: dict[str, Any] = state["position"]
    return position


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    return {"python_rng": [version, list(internal), gauss], "numpy_rng": _numpy_state()}


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
