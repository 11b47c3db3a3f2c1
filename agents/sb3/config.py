"""What a training run is told and writes about itself, and the algorithms by name. Imports no Stable-Baselines3."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.base import AgentError
from deeprec_env.errors import unknown_name
from deeprec_env.game import Game
from deeprec_env.numeric_views.base import NumericView
from deeprec_env.numeric_views.menu import MenuView
from deeprec_env.numeric_views.vector import VectorView

RUN_FILE = "run.json"
CHECKPOINT_FOLDER = "checkpoint"
POLICY_FILE = "policy.pt"
"""The policy's weights within a checkpoint: plain tensors."""
_FORMAT = 1

VIEWS: Mapping[str, Callable[..., NumericView]] = {"menu": MenuView, "vector": VectorView}
"""What an action is: a phrase of a menu, or a preference as a vector."""


@dataclass(frozen=True)
class Algorithm:
    """One of Stable-Baselines3's algorithms, and how it is set here."""

    class_name: str
    view: str
    """The view it is trained on unless another is asked for."""
    views: tuple[str, ...]
    """Those that its actions fit."""
    num_envs: int
    settings: Mapping[str, Any]
    """Arguments of the algorithm's constructor."""

    @property
    def keeps_replay(self) -> bool:
        """Whether it learns from a replay buffer."""
        return "buffer_size" in self.settings


_OFF_POLICY: Mapping[str, Any] = {
    "buffer_size": 100_000,
    "learning_starts": 5_000,
    "batch_size": 256,
    "learning_rate": 3e-4,
    "train_freq": 1,
    "gamma": 1.0,
}
ALGORITHMS: Mapping[str, Algorithm] = {
    "sb3_ppo": Algorithm(
        "PPO",
        view="menu",
        views=("menu", "vector"),
        num_envs=128,
        settings={
            "n_steps": 32,
            "batch_size": 512,
            "n_epochs": 4,
            "learning_rate": 3e-4,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "ent_coef": 0.01,
        },
    ),
    "sb3_dqn": Algorithm(
        "DQN",
        view="menu",
        views=("menu",),
        num_envs=64,
        settings={
            **_OFF_POLICY,
            "gradient_steps": 4,
            "target_update_interval": 2_000,
            "exploration_fraction": 0.4,
            "exploration_final_eps": 0.05,
        },
    ),
    "sb3_sac": Algorithm(
        "SAC",
        view="vector",
        views=("vector",),
        num_envs=64,
        settings={
            **_OFF_POLICY,
            "gradient_steps": 2,
        },
    ),
}
"""Gamma is 1 throughout: an episode is at most max_turns + 1 steps long, and its reward comes at the end."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    algorithm: str = "sb3_ppo"
    steps: int = 400_000
    """Steps of the environment, all sub-environments together."""
    seed: int = 0
    split: str = "valid"
    """Whose held-out item is looked for. On "train" the recommender knows the answers by heart."""
    users: str = "all"
    """Who is played; see `users.select_users`."""
    view: str | None = None
    """"menu" or "vector"; None: the algorithm's own."""
    view_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the view."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the algorithm's constructor that differ from `ALGORITHMS`."""
    num_envs: int | None = None
    """Users played at a time; None: the algorithm's own."""
    checkpoint_every: int = 50_000
    """Steps between two checkpoints; episodes that are under way at one are left."""

    def __post_init__(self) -> None:
        """Check what can be checked without a data set.

        Raises:
            ValueError: if a name is unknown or a number too small.
        """
        if self.algorithm not in ALGORITHMS:
            raise unknown_name("algorithm", self.algorithm, ALGORITHMS)
        if self.split == "test":
            raise ValueError("expected --split to be train or valid, got test; agents are evaluated on it")
        if self.view is not None and self.view not in VIEWS:
            raise unknown_name("view", self.view, VIEWS)
        if self.view_name not in self.rules.views:
            raise ValueError(
                f"expected --view to be {' or '.join(self.rules.views)} for {self.algorithm}, got {self.view}"
            )
        for name in ("steps", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} to be at least 1, got {getattr(self, name)}")
        if self.num_envs is not None and self.num_envs < 1:
            raise ValueError(f"expected num_envs to be at least 1, got {self.num_envs}")

    @property
    def rules(self) -> Algorithm:
        """The algorithm."""
        return ALGORITHMS[self.algorithm]

    @property
    def view_name(self) -> str:
        """The view that is trained on."""
        return self.view or self.rules.view

    @property
    def size(self) -> int:
        """How many users are played at a time."""
        return self.num_envs or self.rules.num_envs


@dataclass(frozen=True)
class RunCard:
    """What a run's folder says of it: enough to play its policy, and to know whether another run may go on with it."""

    algorithm: str
    view: str
    view_options: Mapping[str, Any]
    dataset: str
    game: str
    """The rules, as text."""
    training: Mapping[str, Any]
    """The rest of the TrainConfig, but `steps`: a run may be given more."""

    @classmethod
    def of(cls, config: TrainConfig, game: Game) -> RunCard:
        """Return the card of a run."""
        training = {
            "seed": config.seed,
            "split": config.split,
            "users": config.users,
            "num_envs": config.size,
            "checkpoint_every": config.checkpoint_every,
            "settings": {**config.rules.settings, **config.settings},
        }
        return cls(
            config.algorithm, config.view_name, dict(config.view_options), game.world.name, repr(game.config), training
        )

    @classmethod
    def load(cls, folder: Path) -> RunCard:
        """Return the card in a folder.

        Raises:
            AgentError: if there is none, or it is of another version.
        """
        path = folder / RUN_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format", None) != _FORMAT:
                raise AgentError(f"{path}: expected a run of format {_FORMAT}; train it again")
            return cls(**content)
        except FileNotFoundError:
            raise AgentError(
                f"there is no trained policy in {folder}; `deeprec train sb3_ppo --out` makes one"
            ) from None
        except (ValueError, TypeError) as error:
            raise AgentError(f"cannot read {path}: {error}; train it again") from error

    def save(self, folder: Path) -> None:
        """Write the card."""
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{RUN_FILE}.tmp"
        draft.write_text(json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n", encoding="utf-8")
        draft.replace(folder / RUN_FILE)

    def differences(self, other: RunCard) -> list[str]:
        """Return the names of what differs, "" without a difference."""
        mine, others = (_flat(json.loads(json.dumps(dataclasses.asdict(card)))) for card in (self, other))
        return sorted(name for name in mine.keys() | others.keys() if mine.get(name) != others.get(name))

    def build_view(self, game: Game) -> NumericView:
        """Return the view over a game.

        Raises:
            ValueError: if an option is out of its range.
            TypeError: if the recommender is no TRM in this process.
        """
        return VIEWS[self.view](game, **self.view_options)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in record.items() if k != "training"}, **record["training"]}
