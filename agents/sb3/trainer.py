"""The training run: builds the parts or takes them from a checkpoint, learns, logs, keeps. Holds no algorithm."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from agents.base import AgentError
from agents.grpo.progress import RunLog
from agents.sb3.checkpoint import build_model, restore_checkpoint, save_checkpoint
from agents.sb3.config import RUN_FILE, RunCard, TrainConfig
from agents.sb3.vec_env import EndedEpisode, ViewVecEnv
from deeprec_env.game import Game

logger = logging.getLogger(__name__)

_BAR_INTERVAL_S = 1.0
LOG_EVERY = 4096
"""Steps between two lines of the log."""
_NAMES = {
    "train/policy_gradient_loss": "loss/policy",
    "train/value_loss": "loss/value",
    "train/approx_kl": "loss/kl",
    "train/clip_fraction": "loss/clip_fraction",
    "train/loss": "loss/total",
    "train/actor_loss": "loss/policy",
    "train/critic_loss": "loss/value",
}
"""Stable-Baselines3's names in the project's words; others stay."""


def train(config: TrainConfig, game: Game, out: Path, *, progress: bool = False) -> int:
    """Train a policy, or go on with one, until it has had `config.steps` steps; return how many it has had.

    Args:
        config: the run.
        game: the rules and the world.
        out: the run's folder: run.json, checkpoint/, metrics.jsonl and tensorboard/.
        progress: whether to show a progress bar.

    Raises:
        AgentError: if the folder holds a run with other settings, or a damaged checkpoint.
        ValueError: if users, a setting or an option of the view is wrong.
        TypeError: if the recommender is no TRM in this process.
    """
    card = RunCard.of(config, game)
    if (out / RUN_FILE).exists() and (differing := card.differences(RunCard.load(out))):
        raise AgentError(
            f"{out} holds a run with another {', '.join(differing)}; "
            "give the same options to go on with it, or another --out to start anew"
        )
    env = ViewVecEnv(card.build_view(game), config.size, split=config.split, users=config.users)
    model = restore_checkpoint(out, config, env)
    if model is None:
        model = build_model(config, env)
    elif model.num_timesteps >= config.steps:
        logger.info("%s: has had %d steps already", out, model.num_timesteps)
        return model.num_timesteps
    else:
        logger.info("%s: going on after step %d", out, model.num_timesteps)
    card.save(out)  # only now: options that are refused leave the folder free for the right ones
    env.seed(_seed(config.seed, model.num_timesteps))
    model.set_logger(Logger(folder=None, output_formats=[]))
    log = RunLog(out, stage=game.config.stage, first_step=model.num_timesteps + 1)
    recorder = _Recorder(config, out, env, log, progress=progress)
    try:
        model.learn(
            config.steps - model.num_timesteps,
            callback=recorder,
            reset_num_timesteps=False,
            log_interval=None,  # type: ignore[arg-type]
        )
    finally:
        recorder.close()
        log.close()
        env.close()
    return model.num_timesteps


def _seed(seed: int, step: int) -> int:
    """Return what seeds the episodes after a checkpoint."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


class _Recorder(BaseCallback):
    """Between collecting and learning, the one moment when a run may be cut: logs and keeps."""

    def __init__(self, config: TrainConfig, out: Path, env: ViewVecEnv, log: RunLog, *, progress: bool) -> None:
        super().__init__()
        self._config, self._out, self._env, self._log = config, out, env, log
        self._bar = tqdm(
            total=config.steps,
            desc=config.algorithm,
            unit="step",
            disable=not progress,
            mininterval=_BAR_INTERVAL_S,
        )
        self._logged = self._kept = 0
        self._since = time.perf_counter()

    def close(self) -> None:
        """Close the progress bar."""
        self._bar.close()

    def _on_training_start(self) -> None:
        self._logged = self._kept = self.model.num_timesteps
        self._bar.update(self.model.num_timesteps)

    def _on_step(self) -> bool:
        self._bar.update(self._env.num_envs)
        return True

    def _on_rollout_start(self) -> None:
        step = self.model.num_timesteps
        if step - self._kept >= self._config.checkpoint_every:
            self._keep()
            self._env.seed(_seed(self._config.seed, step))
            self.model._last_obs = self._env.reset()
            if hasattr(self.model, "_last_episode_starts"):
                self.model._last_episode_starts = np.ones(self._env.num_envs, dtype=bool)
        elif step - self._logged >= LOG_EVERY:
            self._write()

    def _on_training_end(self) -> None:
        self._keep()

    def _keep(self) -> None:
        self._write()
        save_checkpoint(self._out, self.model)
        self._kept = self.model.num_timesteps

    def _write(self) -> None:
        step, now = self.model.num_timesteps, time.perf_counter()
        metrics = {
            **_episode_metrics(self._env.drain()),
            **_learning_metrics(self.model),
            "time/steps_per_s": (step - self._logged) / max(now - self._since, 1e-9),
        }
        self._log.write(step, metrics)
        if "rollout/reward_mean" in metrics:
            self._bar.set_postfix(reward=f"{metrics['rollout/reward_mean']:.3f}", refresh=False)
        self._logged, self._since = step, now


def _episode_metrics(episodes: list[EndedEpisode]) -> dict[str, float]:
    if not episodes:
        return {}
    names = {
        "reward_mean": "reward",
        "num_searches": "num_searches",
        "format_ok_rate": "well_formed",
        "hit_rate": "hit",
        "pool_recall": "in_pool",
        "ndcg_at_10": "ndcg_at_10",
    }
    means = {name: float(np.mean([getattr(episode, key) for episode in episodes])) for name, key in names.items()}
    return {**{f"rollout/{name}": mean for name, mean in means.items()}, "rollout/num_episodes": float(len(episodes))}


def _learning_metrics(model: BaseAlgorithm) -> dict[str, float]:
    metrics = {}
    for name, value in model.logger.name_to_value.items():
        if name == "train/entropy_loss":
            metrics["loss/entropy"] = -float(value)
        elif name.startswith(("train/", "rollout/exploration")):
            metrics[_NAMES.get(name, name)] = float(value)
    model.logger.name_to_value.clear()
    return metrics
