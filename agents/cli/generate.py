"""`deeprec generate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from agents.cli.common import GameChoice, at_least, chosen_game, game_for, named_agent, say, writable_folder


@dataclass(frozen=True)
class Generate:
    """Let one agent play users START to END and write a JSON line each; users that are there are not played again.

    Several commands may play different users into one folder at a time. `scripts/metric_calc_rec.py` reads it.
    """

    agent: Positional[str]
    """Who plays, such as heuristic or llm:runs/a/rec; see `deeprec agents`."""
    game: Annotated[GameChoice, tyro.conf.arg(name="")] = field(default_factory=GameChoice)
    start: int = 0
    """The first user, from 0."""
    end: int = 10**9
    """The user behind the last one; beyond the last means all."""
    out: Path = Path("runs/generated")
    """The folder."""
    seed: int = 0
    """Seeds the agent."""
    batch_size: int = 256
    """How many episodes are played at a time."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> None:
        """Play and print where the lines are."""
        from agents.shards import play_shard

        agent = named_agent(self.agent)
        for option, value, least in (
            ("--start", self.start, 0),
            ("--seed", self.seed, 0),
            ("--batch-size", self.batch_size, 1),
        ):
            at_least(option, value, least)
        writable_folder("--out", self.out)
        path = play_shard(
            game_for(chosen_game(self.game), agent),
            agent,
            range(self.start, self.end),
            out=self.out,
            split=self.game.split,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=not self.quiet,
        )
        say(f"{agent.name}: {path}")
