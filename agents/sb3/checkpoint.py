"""Checkpoints that a run goes on from to the same numbers: model, optimizer, replay buffer, every random state.

Environments are not kept: at a checkpoint all episodes start anew, by seeds that come from the run's and the step.
"""

from __future__ import annotations

import inspect
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from agents.base import AgentError
from agents.sb3.config import ALGORITHMS, CHECKPOINT_FOLDER, POLICY_FILE, Algorithm, RunCard, TrainConfig
from agents.sb3.policies import MaskedActorCritic, MaskedDQNPolicy
from deeprec_env.errors import unknown_name
from deeprec_env.numeric_views.base import NumericView
from trm.data.storage import written_folder

_MODEL, _BUFFER, _STATE, _TORCH = "model.zip", "replay.pkl", "state.json", "torch_rng.pt"


def build_model(config: TrainConfig, env: VecEnv) -> BaseAlgorithm:
    """Return a fresh model.

    Raises:
        ValueError: if the algorithm does not take a setting.
    """
    cls = getattr(stable_baselines3, config.rules.class_name)
    settings = {**config.rules.settings, **config.settings}
    known = list(inspect.signature(cls).parameters)
    for name in config.settings:
        if name not in known:
            raise unknown_name(f"a setting of {config.rules.class_name}", name, known)
    try:
        model: BaseAlgorithm = cls(
            _policy_class(config.rules, config.view_name), env, seed=config.seed, device="cpu", **settings
        )
    except TypeError as error:
        raise ValueError(f"expected settings of {config.rules.class_name}, got {settings}: {error}") from error
    return model


def save_checkpoint(out: Path, model: BaseAlgorithm) -> None:
    """Write the checkpoint of a run, in place of the one before."""
    version, internal, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state()
    state = {
        "step": model.num_timesteps,
        "python_rng": [version, list(internal), gauss],
        "numpy_rng": [name, np.asarray(keys).tolist(), place, has_gauss, cached],
        "action_rng": model.action_space.np_random.bit_generator.state,
    }
    with written_folder(out / CHECKPOINT_FOLDER) as draft:
        model.save(draft / _MODEL)
        if isinstance(model, OffPolicyAlgorithm):
            model.save_replay_buffer(draft / _BUFFER)
        torch.save(model.policy.state_dict(), draft / POLICY_FILE)
        torch.save(torch.get_rng_state(), draft / _TORCH)
        (draft / _STATE).write_text(json.dumps(state), encoding="utf-8")


def restore_checkpoint(out: Path, config: TrainConfig, env: VecEnv) -> BaseAlgorithm | None:
    """Return the model of the run's checkpoint and set every random state as it was; None if there is none.

    Raises:
        AgentError: if the checkpoint is damaged.
    """
    folder = out / CHECKPOINT_FOLDER
    if not folder.is_dir():
        return None
    cls = getattr(stable_baselines3, config.rules.class_name)
    try:
        model: BaseAlgorithm = cls.load(folder / _MODEL, env=env, device="cpu")
        if isinstance(model, OffPolicyAlgorithm):
            model.load_replay_buffer(folder / _BUFFER)
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        torch_state = torch.load(folder / _TORCH, weights_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AgentError(f"cannot read checkpoint {folder}: {error}; remove it to start anew") from error
    version, internal, gauss = state["python_rng"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, place, has_gauss, cached = state["numpy_rng"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), place, has_gauss, cached))
    model.action_space.np_random.bit_generator.state = state["action_rng"]
    torch.set_rng_state(torch_state)
    return model


def load_policy(folder: Path, card: RunCard, view: NumericView) -> BasePolicy:
    """Return the policy of a run's newest checkpoint; only tensors are read, no code.

    Raises:
        AgentError: if there is none, or it does not fit the view.
    """
    path = folder / CHECKPOINT_FOLDER / POLICY_FILE
    policy_class = _policy_class(ALGORITHMS[card.algorithm], card.view)
    options: dict[str, Any] = dict(card.training["settings"].get("policy_kwargs") or {})
    try:
        policy: BasePolicy = policy_class(view.observation_space, view.action_space, lambda _: 0.0, **options)
        policy.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except FileNotFoundError:
        raise AgentError(f"there is no checkpoint in {folder} yet; go on with `deeprec train`") from None
    except RuntimeError as error:
        detail = str(error).partition("\n")[0]
        raise AgentError(f"the policy in {folder} does not fit {view.game.world.name}: {detail}") from error
    policy.set_training_mode(False)
    return policy


def _policy_class(rules: Algorithm, view: str) -> type[BasePolicy]:
    masked: dict[str, type[BasePolicy]] = {"PPO": MaskedActorCritic, "DQN": MaskedDQNPolicy}
    if view == "menu":
        return masked[rules.class_name]
    policy_class: type[BasePolicy] = getattr(stable_baselines3, rules.class_name).policy_aliases["MultiInputPolicy"]
    return policy_class
