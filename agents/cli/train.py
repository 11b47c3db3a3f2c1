"""`deeprec train`: policies of Stable-Baselines3. (`deeprec train llm` and `deeprec sft` are `agents/llm_grpo.py`.)"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from agents.cli.common import GameChoice, chosen_game, say


def _no_test_split() -> GameChoice:
    return GameChoice(split="valid")


@dataclass(frozen=True)
class Train:
    """Train a policy by Stable-Baselines3 on the menu of preferences, or on preferences as vectors.

    A language model is trained by `deeprec train llm PRESET`, which is `python agents/llm_grpo.py PRESET`.

    The same command goes on with a run that was stopped, and with more --steps makes it longer. The policy plays as
    ALGORITHM:FOLDER, such as sb3_ppo:runs/sb3_ppo, in `deeprec evaluate --agents`.
    """

    algorithm: Positional[Literal["sb3_ppo", "sb3_dqn", "sb3_sac"]]
    """Which algorithm."""
    game: Annotated[GameChoice, tyro.conf.arg(name="")] = field(default_factory=_no_test_split)
    steps: int = 400_000
    """Steps of the environment, all users together."""
    out: Path | None = None
    """The run's folder; by default runs/ALGORITHM."""
    seed: int = 0
    """Seeds the weights, the actions and the order of the users."""
    users: str = "all"
    """Who is played: "all", or by the recommender's rank of the target, such as top0_100."""
    view: Literal["menu", "vector"] | None = None
    """What an action is; by default a phrase of the menu, for sb3_sac a vector."""
    view_options: str = "{}"
    """Options of the view as JSON, such as {"num_phrases": 16, "own_weight": 10}."""
    settings: str = "{}"
    """Settings of the algorithm as JSON, in Stable-Baselines3's names, such as {"n_steps": 64}."""
    num_envs: int | None = None
    """Users played at a time."""
    checkpoint_every: int = 50_000
    """Steps between two checkpoints."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> None:
        """Train and print where the policy is."""
        from agents.sb3.config import TrainConfig

        config = TrainConfig(
            algorithm=self.algorithm,
            steps=self.steps,
            seed=self.seed,
            split=self.game.split,
            users=self.users,
            view=self.view,
            view_options=_options("--view-options", self.view_options),
            settings=_options("--settings", self.settings),
            num_envs=self.num_envs,
            checkpoint_every=self.checkpoint_every,
        )
        game = chosen_game(self.game)
        train = _trainer()
        out = self.out or Path("runs") / self.algorithm
        try:
            steps = train(config, game, out, progress=not self.quiet)
        except TypeError as error:
            raise ValueError(str(error)) from error
        say(f"{out}: {steps} steps; `deeprec evaluate --agents {self.algorithm}:{out},heuristic` plays the policy")


@dataclass(frozen=True)
class Sft:
    """Warm-start a language model: it imitates the episodes of an agent, such as heuristic or llm:runs/a/rec.

    deeprec sft PRESET --teacher AGENT is stage sft of `deeprec train llm PRESET`. Fields of the preset's part `sft`
    need no prefix; --num-samples 8 --keep-best 1 --min-reward 1 imitates each user's best of eight, if it earned 1.
    `deeprec sft PRESET --help` lists all fields. Stages cold and rec go on from there, given the same --out.
    """

    def run(self) -> None:
        """Never called: the command's options are those of a preset, see `llm_arguments`."""
        raise AssertionError("deeprec sft is started by llm_arguments")


def llm_arguments(given: Sequence[str]) -> list[str] | None:
    """Return the arguments of `agents/llm_grpo.py` that a command of a language model stands for; None for others.

    Their options are the fields of a preset, which tyro can only offer once the preset is known.
    """
    if list(given[:2]) == ["train", "llm"]:
        return list(given[2:])
    if list(given[:1]) != ["sft"]:
        return None
    from agents.grpo.config import SftConfig

    short = {f"--{item.name.replace('_', '-')}" for item in fields(SftConfig)}
    arguments = []
    for argument in given[1:]:
        name, equals, value = argument.partition("=")
        is_short = name.replace("_", "-") in short
        arguments.append((f"--sft.{name[2:]}" if is_short else name) + equals + value)
    return [*arguments, "--stages", "sft"]


def _options(option: str, text: str) -> Mapping[str, Any]:
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected {option} to be JSON, got {text!r}: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"expected {option} to be a JSON object, got {text!r}")
    return options


def _trainer() -> Any:
    try:
        from agents.sb3.trainer import train
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}; `pip install 'deeprec-env[agents,trm,sb3]'` brings what `deeprec train` needs"
        ) from error
    return train
