"""The `deeprec` command: prepare, train-trm, evaluate, report, play and agents. Parses and prints; computes nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, subcommand

if TYPE_CHECKING:
    from agents.base import Agent
    from agents.evaluate import AgentSummary
    from deeprec_env.game import Game
    from trm.data.prepare import DatasetRef

DatasetName = Literal["ml-100k", "ml-1m", "amazon"]
AnyDatasetName = Literal["sample", "ml-100k", "ml-1m", "amazon"]


@dataclass(frozen=True)
class Prepare:
    """Read a data set's raw files, or fetch them, and write it in the project's own form."""

    dataset: Positional[DatasetName]
    """Which data set."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""

    def run(self) -> None:
        """Prepare the data set and print where it lies."""
        from trm.data.prepare import prepare_dataset, prepared_folder

        ref = _ref(self.dataset, self.category)
        dataset = prepare_dataset(ref)
        num_users, num_items = dataset.interactions.num_users, dataset.catalog.num_items
        _say(f"{ref.key}: {num_users} users, {num_items} items; in {prepared_folder(ref)}")


@dataclass(frozen=True)
class TrainTRM:
    """Train the preference-aware recommender of a data set and print its full-ranking metrics."""

    dataset: Positional[DatasetName]
    """Which data set; it is prepared first if need be."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    fast: bool = False
    """Train briefly; enough to see every step work."""
    log_dir: Path | None = None
    """Where TensorBoard events go."""

    def run(self) -> None:
        """Train, or load what has been trained, and print the metrics."""
        from trm.data.prepare import prepare_dataset
        from trm.evaluate import render_metrics
        from trm.prepare_trm import prepare_trm, trm_folder
        from trm.train import METRICS_FILE

        ref = _ref(self.dataset, self.category)
        prepare_trm(ref, prepare_dataset(ref), fast=self.fast, log_dir=self.log_dir)
        folder = trm_folder(ref)
        _say(render_metrics(json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))))
        _say(f"{ref.key}: the recommender is in {folder}")


@dataclass(frozen=True)
class GameChoice:
    """Which environment is played, and by which rules."""

    env: str | None = None
    """An id of envs.yaml, e.g. DeepRec-MovieLens100K-v0. Give this or --dataset."""
    dataset: AnyDatasetName | None = None
    """A data set; "sample" needs no preparation."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    stage: Literal["cold", "rec"] = "rec"
    """What the reward pays for: searching (cold) or the final ranking (rec)."""
    reward: Literal["strict", "paper"] = "strict"
    """The reward's preset."""
    split: Literal["train", "valid", "test"] = "test"
    """Whose held-out item is looked for."""


@dataclass(frozen=True)
class Evaluate:
    """Let agents play the same users and print one table. Users that were played before are not played again."""

    game: Annotated[GameChoice, tyro.conf.arg(name="")] = field(default_factory=GameChoice)
    agents: str = "random,popularity,trm,heuristic"
    """Names, separated by commas, such as trm,heuristic?num_searches=2,llm:runs/a/rec (options after "?", a checkpoint
    after a colon)."""
    users: str = "all"
    """"all", or how many: a fixed sample of that size."""
    out: Path = Path("runs/evaluation")
    """Where rows and tables are written."""
    seed: int = 0
    """Seeds the agents."""
    batch_size: int = 256
    """How many episodes are played at a time."""
    quiet: bool = False
    """Show no progress bars."""

    def run(self) -> None:
        """Evaluate, write the table and print it."""
        from agents.evaluate import evaluate, sample_users
        from agents.report import write_report

        players = [_make_agent(spec) for spec in self.agents.split(",") if spec.strip()]
        if not players:
            raise ValueError("--agents names no agent; `deeprec agents` lists them")
        num_users = None if self.users == "all" else _positive("--users", self.users)
        game = _build_game(self.game)
        users = sample_users(game.world.splits.num_users, num_users)
        summaries: list[AgentSummary] = []
        for agent in players:
            result = evaluate(
                _game_of(game, agent),
                [agent],
                users,
                split=self.game.split,
                seed=self.seed,
                batch_size=self.batch_size,
                out=self.out,
                progress=not self.quiet,
            )
            summaries.extend(result.summaries())
        _say(write_report(summaries, [], self.out))


@dataclass(frozen=True)
class Report:
    """Draw the table and the reward curves of everything that was evaluated and trained under a folder."""

    folder: Positional[Path]
    """What was given to `deeprec evaluate --out`; training runs in it are found as well."""
    runs: tuple[Path, ...] = ()
    """Folders of further training runs."""

    def run(self) -> None:
        """Write table.md, table.csv and curves.png, and print the Markdown."""
        from agents.evaluate import load_results
        from agents.report import load_curves, write_report

        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"there is no folder {self.folder}; `deeprec evaluate --out {self.folder}` makes it"
            )
        summaries = [result.summary() for result in load_results(self.folder)]
        curves = [curve for run in (self.folder, *self.runs) for curve in load_curves(run)]
        if not summaries and not curves:
            raise ValueError(f"{self.folder} holds neither evaluated agents nor training runs; nothing to report")
        _say(write_report(summaries, curves, self.folder))


@dataclass(frozen=True)
class Play:
    """Play one episode and print it with its rewards. Without --agent you type the actions."""

    game: Annotated[GameChoice, tyro.conf.arg(name="")] = field(default_factory=GameChoice)
    agent: str | None = None
    """Who plays; see `deeprec agents`."""
    user_index: int | None = None
    """Which user; by default one drawn by the seed."""
    seed: int = 0
    """Draws the user and seeds the agent."""

    def run(self) -> None:
        """Play and print."""
        import numpy as np

        from agents.play import play
        from deeprec_env.rendering import render_transcript

        agent = None if self.agent is None else _make_agent(self.agent)
        game = _build_game(self.game if self.game.env or self.game.dataset else _sample(self.game))
        num_users = game.world.splits.num_users
        user = self.user_index
        if user is None:
            user = int(np.random.default_rng(self.seed).integers(num_users))
        if agent is None:
            _play_by_hand(game, user, self.game.split)
            return
        (episode,) = play(_game_of(game, agent), agent, [user], split=self.game.split, seed=self.seed)
        _say(render_transcript(episode, colored=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        titles = game.world.catalog.find(game.world.catalog.title(episode.target))
        _say(f"--- the target was: {game.world.display(titles[0]).title}")


@dataclass(frozen=True)
class Agents:
    """List the agents that can be named."""

    def run(self) -> None:
        """Print a line an agent."""
        from agents.registry import describe_agent, registered_agents

        for name, target in registered_agents().items():
            _say(f"{name:12} {target:40} {describe_agent(target)}")


Command = (
    Annotated[Prepare, subcommand("prepare")]
    | Annotated[TrainTRM, subcommand("train-trm")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Play, subcommand("play")]
    | Annotated[Agents, subcommand("agents")]
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake ends it with one sentence and exit status 2."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    command = tyro.cli(Command, prog="deeprec", description="DeepRec as a text environment, and its agents.", args=args)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        command.run()
    except _user_errors() as error:
        logging.getLogger(__name__).debug("details", exc_info=True)
        sys.stderr.write(f"deeprec: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("\ndeeprec: stopped; the same command goes on where it was\n")
        raise SystemExit(130) from None


def _user_errors() -> tuple[type[Exception], ...]:
    from agents.base import AgentError
    from deeprec_env.errors import DeepRecError
    from trm.errors import TRMError

    return AgentError, DeepRecError, TRMError, ValueError, OSError


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _ref(dataset: str, category: str | None) -> DatasetRef:
    from trm.data.prepare import DatasetRef

    return DatasetRef(dataset, category)


def _positive(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{option} must be 'all' or a number of at least 1, got {text!r}")
    return int(text)


def _sample(choice: GameChoice) -> GameChoice:
    return dataclasses.replace(choice, dataset="sample")


def _make_agent(spec: str) -> Agent:
    from agents.registry import make_agent

    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # so that "my_module:MyAgent" is found where the person works
    return make_agent(spec)


def _build_game(choice: GameChoice) -> Game:
    from deeprec_env.env import build_game
    from deeprec_env.errors import unknown_name
    from deeprec_env.registration import read_envs

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
    _ref(str(dataset), category)  # refuses a category where there is none, before anything is loaded
    options = {**arguments, "stage": choice.stage, "reward": choice.reward}
    return build_game(dataset, options, category=category)


def _game_of(game: Game, agent: Agent) -> Game:
    """Return the game as the agent wants to read it: a model plays with the prompts that it was trained on."""
    from deeprec_env.game import Game

    options = getattr(agent, "game_options", None)
    return Game(game.world, dataclasses.replace(game.config, **options)) if options else game


def _play_by_hand(game: Game, user: int, split: str) -> None:
    from deeprec_env.protocol import STOP_STRINGS
    from deeprec_env.rendering import render_opening, render_turn

    episode = game.start(user, split)
    _say(render_opening(episode))
    _say(f"\nType an action; it ends with the line that holds {' or '.join(STOP_STRINGS)}, or with an empty line.")
    while not episode.ended:
        lines: list[str] = []
        for line in sys.stdin:
            if not line.strip():
                break
            lines.append(line)
            if any(stop in line for stop in STOP_STRINGS):
                break
        else:
            if not lines:
                _say("--- no more input; the episode was left")
                return
        game.step([episode], ["".join(lines)])
        _say(render_turn(episode, len(episode.turns) - 1))


if __name__ == "__main__":
    main()
