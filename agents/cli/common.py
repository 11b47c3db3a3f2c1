"""What several subcommands share: naming a data set, an environment, an agent."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from agents.base import Agent
    from deeprec_env.game import Game
    from trm.data.prepare import DatasetRef


@dataclass(frozen=True)
class GameChoice:
    """Which environment is played, and by which rules."""

    env: str | None = None
    """An id of envs.yaml, e.g. DeepRec-MovieLens100K-v0. Give this or --dataset."""
    dataset: str | None = None
    """A data set: sample (which needs no preparation), or any that `deeprec prepare` takes."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    stage: Literal["cold", "rec"] = "rec"
    """What the reward pays for: searching (cold) or the final ranking (rec)."""
    reward: Literal["strict", "paper"] = "strict"
    """The reward's preset."""
    split: Literal["train", "valid", "test"] = "test"
    """Whose held-out item is looked for."""
    retriever: str | None = None
    """The address of a retrieval service (`deeprec serve recall`); by default the recommender in this process."""
    record: Path | None = None
    """Keep every retrieval in this file."""
    replay: Path | None = None
    """Answer every retrieval from this file, and fail on one that is not in it."""


def chosen_game(choice: GameChoice) -> Game:
    """Return the game of --env or --dataset.

    Raises:
        ValueError: if neither or both are given, or the environment does not exist.
    """
    from deeprec_env.env import build_game
    from deeprec_env.errors import unknown_name
    from deeprec_env.registration import read_envs
    from trm.retrievers import source_of

    if (choice.env is None) == (choice.dataset is None):
        raise ValueError("give either --env or --dataset, e.g. --env DeepRec-Sample-v0")
    if choice.env is None:
        arguments = {"dataset": choice.dataset}
    else:
        envs = read_envs()
        if choice.env not in envs:
            raise unknown_name("--env", choice.env, envs)
        arguments = dict(envs[choice.env])
    category = choice.category or arguments.pop("category", None)
    dataset = arguments.pop("dataset", None)
    dataset_ref(str(dataset), category)  # refuses a category where there is none, before anything is loaded
    options = {**arguments, "stage": choice.stage, "reward": choice.reward}
    source = source_of(retriever=choice.retriever, record=choice.record, replay=choice.replay)
    return build_game(dataset, options, category=category, retriever=source)


def game_for(game: Game, agent: Agent) -> Game:
    """Return the game as the agent wants to read it: a model plays with the prompts that it was trained on.

    An agent with a method `enter` is shown the game, and says itself which is played.
    """
    from deeprec_env.game import Game

    enter: Callable[[Game], Game] | None = getattr(agent, "enter", None)
    if enter is not None:
        return enter(game)
    options = getattr(agent, "game_options", None)
    return Game(game.world, dataclasses.replace(game.config, **options)) if options else game


def named_agent(spec: str) -> Agent:
    """Return the agent of that name; modules of the folder that the person works in are found."""
    from agents.registry import make_agent

    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    return make_agent(spec)


def dataset_ref(dataset: str, category: str | None) -> DatasetRef:
    """Return the data set of that name; refuses a category where there is none."""
    from trm.data.prepare import DatasetRef

    return DatasetRef(dataset, category)


def positive(option: str, text: str) -> int:
    """Return the option's text as a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{option} must be 'all' or a number of at least 1, got {text!r}")
    return int(text)


def at_least(option: str, value: int, least: int) -> int:
    """Return the option's value, which must not be below `least`."""
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {value}")
    return value


def writable_folder(option: str, folder: Path) -> None:
    """Make the folder, so that what cannot be written is known before anything is computed.

    Raises:
        ValueError: if it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"expected {option} to be a folder, got {folder}: {error.strerror}; name another") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"expected {option} to be a folder that can be written to, got {folder}; name another")


def say(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
