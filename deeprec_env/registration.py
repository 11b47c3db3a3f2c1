"""Reads envs.yaml and registers its environments with Gymnasium, by names only: nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml

ENVS_FILE = Path(__file__).parent / "envs.yaml"

_ENTRY_POINT = "deeprec_env.env:DeepRecEnv"
_VECTOR_ENTRY_POINT = "deeprec_env.vector_env:DeepRecVectorEnv"


def read_envs(path: Path = ENVS_FILE) -> dict[str, dict[str, Any]]:
    """Return the arguments by environment id.

    Raises:
        ValueError: if the file is not a mapping of ids to mappings.
    """
    with path.open(encoding="utf-8") as file:
        entries = yaml.safe_load(file)
    if not isinstance(entries, dict) or not all(isinstance(kwargs, dict) for kwargs in entries.values()):
        raise ValueError(f"expected {path} to map environment ids to their arguments, got {type(entries).__name__}")
    return entries


def register_envs(path: Path = ENVS_FILE) -> list[str]:
    """Register what is not registered yet and return all ids of the file."""
    entries = read_envs(path)
    for env_id, kwargs in entries.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=_ENTRY_POINT, vector_entry_point=_VECTOR_ENTRY_POINT, kwargs=kwargs)
    return list(entries)
