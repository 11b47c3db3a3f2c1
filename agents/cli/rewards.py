"""`deeprec rewards explain`, `deeprec rewards rescore` and `deeprec rewards tree`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, subcommand

from agents.cli.common import GameChoice, chosen_game, say
from agents.cli.tables import say_markdown

if TYPE_CHECKING:
    from agents.evaluate import AgentResult
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game

Stage = Literal["cold", "rec"]


@dataclass(frozen=True)
class Explain:
    """Print every reward term of an episode, turn by turn, and why it was paid."""

    transcript: Positional[Path]
    """A file of rows that `deeprec evaluate` has kept (or its --out), or a text: what `deeprec play` printed, or prompt
    and response."""
    user: int | None = None
    """Whose episode, by index; of a file of rows the first by default, of a text what it says."""
    agent: str | None = None
    """Whose rows, where a folder holds several agents'."""
    reward: str | None = None
    """strict, paper, or a YAML file of fields; by default as it was played, for a text strict."""
    stage: Stage | None = None
    """cold or rec; by default as it was played, for a text rec."""
    env: str | None = None
    """Of a text: the environment, such as DeepRec-MovieLens100K-v0."""
    dataset: str | None = None
    """Of a text: the data set, instead of --env."""
    category: str | None = None
    """Of a text: the category of the Amazon reviews."""
    split: Literal["train", "valid", "test"] | None = None
    """Of a text: whose held-out item is looked for; by default what it says, else test."""

    def run(self) -> None:
        """Play the episode again and print what was paid."""
        from deeprec_env.rewards.explain import render_explanation

        if not self.transcript.exists():
            raise FileNotFoundError(f"there is no transcript {self.transcript}")
        is_rows = self.transcript.is_dir() or self.transcript.suffix == ".jsonl"
        game, episode = self._from_rows() if is_rows else self._from_text()
        say(render_explanation(game, episode))

    def _from_rows(self) -> tuple[Game, Episode]:
        from agents.rescore import config_of, load_rows, world_of
        from deeprec_env.transcripts import Replayer

        result = _named_result(load_rows(self.transcript), self.agent)
        rows = [row for row in result.rows if self.user is None or row.user_index == self.user]
        if not rows:
            raise ValueError(f"{self.transcript} holds no row of --user {self.user}")
        if not rows[0].turns:
            raise ValueError(f"the row of user {rows[0].user_index} does not hold its actions; evaluate it again")
        replayer = Replayer(world_of(result), config_of(result, reward=_reward(self.reward), stage=self.stage))
        return replayer.game, replayer.replay(rows[0].user_index, result.header.split, rows[0].turns)

    def _from_text(self) -> tuple[Game, Episode]:
        from deeprec_env.config import build_game_config
        from deeprec_env.transcripts import Replayer, read_transcript

        try:
            found = read_transcript(self.transcript.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"expected {self.transcript} to hold text, got other bytes: {error}") from None
        world = chosen_game(GameChoice(self.env, self.dataset, self.category)).world
        user = self.user
        if user is None:
            if found.user_id is None:
                raise ValueError(f"{self.transcript} does not say whose episode it is; give --user")
            user = world.splits.user_index(found.user_id)
        options = {"reward": _reward(self.reward) or "strict", "stage": self.stage or "rec"}
        replayer = Replayer(world, build_game_config(options))
        turns = replayer.turns_of(found.response)
        return replayer.game, replayer.replay(user, self.split or found.split or "test", turns)


@dataclass(frozen=True)
class Rescore:
    """Score saved rollouts again by other rules, without playing them: no agent, no model, no recommender."""

    rows: Positional[Path]
    """What was given to `deeprec evaluate --out`, or one file of its rows."""
    reward: str = "strict"
    """strict, paper, or a YAML file of fields such as {preset: strict, hit_weight: 2}."""
    stage: Stage = "rec"
    """cold or rec."""
    out: Path | None = None
    """Where the rows are written with their new rewards; nothing is written by default."""

    def run(self) -> None:
        """Score, print a table, and write the rows if asked to."""
        from agents.rescore import config_of, load_rows, render_table, rescore, world_of, write_rows

        reward = _reward(self.reward)
        rescored = []
        for result in load_rows(self.rows):
            config = config_of(result, reward=reward, stage=self.stage)
            entry = rescore(result, world_of(result), config)
            rescored.append(entry)
            if entry.num_left_out:
                sys.stderr.write(f"{result.header.agent}: {entry.num_left_out} rows without actions are left out\n")
            if self.out is not None:
                write_rows(entry, self.out)
        say_markdown(render_table(rescored))


@dataclass(frozen=True)
class Tree:
    """Print the terms of a reward by stage, each with its weight and what it pays for."""

    reward: str = "strict"
    """strict, paper, or a YAML file of fields such as {preset: strict, progress_weight: 0.5}."""

    def run(self) -> None:
        """Print the tree."""
        from deeprec_env.rewards.config import build_reward_config
        from deeprec_env.rewards.explain import render_tree

        say(render_tree(build_reward_config(_reward(self.reward))))


@dataclass(frozen=True)
class Rewards:
    """Look at what rewards are made of, and at rewards after the fact."""

    command: Annotated[
        Annotated[Explain, subcommand("explain")]
        | Annotated[Rescore, subcommand("rescore")]
        | Annotated[Tree, subcommand("tree")],
        tyro.conf.arg(name=""),
    ] = field()

    def run(self) -> None:
        """Run the subcommand."""
        self.command.run()


def _named_result(results: list[AgentResult], agent: str | None) -> AgentResult:
    from agents.evaluate import named_result

    if agent is None:
        return results[0]
    name = named_result(agent, [result.header.agent for result in results], what="--agent")
    return next(result for result in results if result.header.agent == name)


def _reward(name: str | None) -> Any:
    """Return a preset's name as it is, and what a YAML file says.

    Raises:
        ValueError: if the file does not hold a mapping.
    """
    if name is None or not name.endswith((".yaml", ".yml")):
        return name
    import yaml

    content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected {name} to map fields of the reward to values, got {type(content).__name__}")
    return content
