"""`deeprec play`."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from agents.cli.common import GameChoice, at_least, chosen_game, game_for, named_agent, say


@dataclass(frozen=True)
class Play:
    """Play one episode and print it with its rewards. Without --agent you play it yourself."""

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

        from agents.cli.by_hand import play_by_hand
        from agents.play import play
        from deeprec_env.rendering import render_transcript

        agent = None if self.agent is None else named_agent(self.agent)
        at_least("--seed", self.seed, 0)
        game = chosen_game(self.game if self.game.env or self.game.dataset else _sample(self.game))
        num_users = game.world.splits.num_users
        user = self.user_index
        if user is None:
            user = int(np.random.default_rng(self.seed).integers(num_users))
        elif not 0 <= user < num_users:
            raise ValueError(f"expected --user-index to be in 0..{num_users - 1}, got {user}")
        colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        if agent is None:
            episode = play_by_hand(game, user, self.game.split, colored=colored)
        else:
            (episode,) = play(game_for(game, agent), agent, [user], split=self.game.split, seed=self.seed)
            say(render_transcript(episode, colored=colored))
        if episode.ended:
            say(f"--- the target was: {game.world.display(episode.target).title}")


def _sample(choice: GameChoice) -> GameChoice:
    return dataclasses.replace(choice, dataset="sample")
