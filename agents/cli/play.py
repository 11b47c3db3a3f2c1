"""`deeprec play`."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from agents.cli.common import GameChoice, chosen_game, game_for, named_agent, say

if TYPE_CHECKING:
    from deeprec_env.game import Game


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

        agent = None if self.agent is None else named_agent(self.agent)
        game = chosen_game(self.game if self.game.env or self.game.dataset else _sample(self.game))
        num_users = game.world.splits.num_users
        user = self.user_index
        if user is None:
            user = int(np.random.default_rng(self.seed).integers(num_users))
        if agent is None:
            _play_by_hand(game, user, self.game.split)
            return
        (episode,) = play(game_for(game, agent), agent, [user], split=self.game.split, seed=self.seed)
        say(render_transcript(episode, colored=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        titles = game.world.catalog.find(game.world.catalog.title(episode.target))
        say(f"--- the target was: {game.world.display(titles[0]).title}")


def _sample(choice: GameChoice) -> GameChoice:
    return dataclasses.replace(choice, dataset="sample")


def _play_by_hand(game: Game, user: int, split: str) -> None:
    from deeprec_env.protocol import STOP_STRINGS
    from deeprec_env.rendering import render_opening, render_turn

    episode = game.start(user, split)
    say(render_opening(episode))
    say(f"\nType an action; it ends with the line that holds {' or '.join(STOP_STRINGS)}, or with an empty line.")
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
                say("--- no more input; the episode was left")
                return
        game.step([episode], ["".join(lines)])
        say(render_turn(episode, len(episode.turns) - 1))
