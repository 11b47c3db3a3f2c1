"""The agents *sb3_ppo*, *sb3_dqn* and *sb3_sac*: what `deeprec train` has made, played like any other agent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agents.base import AgentError, EpisodeView
from agents.sb3.config import CHECKPOINT_FOLDER, POLICY_FILE, RunCard

if TYPE_CHECKING:
    from stable_baselines3.common.policies import BasePolicy

    from deeprec_env.game import Game
    from deeprec_env.numeric_views.base import NumericView


class Sb3Agent:
    """A policy of Stable-Baselines3 behind the view that it was trained with.

    It reads the recommender's vectors, so it must be told the game before it plays: `game = agent.enter(game)`.
    """

    algorithm = ""

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        """Read what a run's folder says; the policy is loaded by `enter`.

        Args:
            folder: what `deeprec train --out` was given.
            name: how it is called in tables; by default as the algorithm.

        Raises:
            AgentError: if there is no trained policy, or one of another algorithm.
        """
        self._card = RunCard.load(folder)
        if self._card.algorithm != self.algorithm:
            raise AgentError(
                f"{folder} holds a policy of {self._card.algorithm}; name it {self._card.algorithm}:{folder}"
            )
        path = folder / CHECKPOINT_FOLDER / POLICY_FILE
        if not path.is_file():
            raise AgentError(f"there is no checkpoint in {folder} yet; go on with `deeprec train {self.algorithm}`")
        self._folder = folder
        self.name = name or self.algorithm
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        self._view: NumericView | None = None
        self._policy: BasePolicy | None = None

    @classmethod
    def build(cls, folder: str, *, name: str | None = None) -> Self:
        """Return the agent of a folder.

        Args:
            folder: such as runs/sb3_ppo.
            name: how it is called in tables.

        Raises:
            AgentError: if there is no trained policy, or one of another algorithm.
        """
        return cls(Path(folder), name=name)

    def enter(self, game: Game) -> Game:
        """Load the policy for the game's world, and return the game to be played.

        Raises:
            AgentError: if the policy was trained on other data, or the world has no recommender in this process.
        """
        from agents.sb3.checkpoint import load_policy

        if game.world.name != self._card.dataset:
            raise AgentError(f"{self._folder} was trained on {self._card.dataset}, got {game.world.name} to play")
        try:
            self._view = self._card.build_view(game)
        except TypeError as error:
            raise AgentError(f"{self.name} cannot play here: {error}") from error
        self._policy = load_policy(self._folder, self._card, self._view)
        return self._view.game

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return one action text an episode, the policy's likeliest.

        Raises:
            AgentError: if `enter` was not called.
        """
        if self._view is None or self._policy is None:
            raise AgentError(f"expected {self.name} to know its game, got none; call `game = agent.enter(game)` first")
        actions, _ = self._policy.predict(self._view.observe(episodes), deterministic=True)
        return self._view.texts(episodes, actions)


class PpoAgent(Sb3Agent):
    """Plays by a policy that `deeprec train sb3_ppo` made; sb3_ppo:FOLDER."""

    algorithm = "sb3_ppo"


class DqnAgent(Sb3Agent):
    """Plays by a policy that `deeprec train sb3_dqn` made; sb3_dqn:FOLDER."""

    algorithm = "sb3_dqn"


class SacAgent(Sb3Agent):
    """Plays by a policy that `deeprec train sb3_sac` made; sb3_sac:FOLDER."""

    algorithm = "sb3_sac"
