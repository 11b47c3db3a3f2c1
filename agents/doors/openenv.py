"""The door to OpenEnv: the game as an OpenEnv server (reset, step, state over a WebSocket), and its typed client.

    python -m agents.doors.openenv --dataset ml-100k --port 8000

Every session has an episode of its own; all share one loaded world. The target is never sent.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from openenv.core import EnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from pydantic import Field

from deeprec_env.config import SPLITS
from deeprec_env.env import DeepRecEnv, build_game
from deeprec_env.errors import unknown_name

if TYPE_CHECKING:
    from fastapi import FastAPI

    from deeprec_env.game import Game


class TurnAction(Action):
    """What the policy writes in one turn."""

    text: str = Field(description="The text of one turn: a search, or the final recommendation.")


class TurnObservation(Observation):
    """What the policy reads, and what is known of its last turn; `reward` and `done` are OpenEnv's own fields."""

    text: str = Field(description="After reset the prompt; after a step the new text only, empty at the end.")
    turn: int = Field(default=0, description="How many turns are finished.")
    action_kind: str | None = Field(default=None, description="search, recommend or malformed.")
    malformed_reason: str | None = Field(default=None, description="Why the last turn is not well-formed.")
    candidate_ids: list[int] = Field(default_factory=list, description="What the last search found, best first.")
    reward_terms: dict[str, float] = Field(default_factory=dict, description="They sum to the reward.")
    truncated: bool = Field(default=False, description="Whether a budget ended the episode.")
    outcome: dict[str, Any] | None = Field(default=None, description="At the end: hit rank, Recall, NDCG, …")


class GameState(State):
    """Who is played, and what has happened so far."""

    split: str = Field(default="", description="train, valid or test.")
    user_index: int | None = Field(default=None, description="0-based.")
    user_id: str | None = Field(default=None, description="As in the raw data.")
    total_reward: float = Field(default=0.0, description="Of the episode so far.")
    transcript: str = Field(default="", description="Prompt, actions and observations.")


class GameEnvironment(Environment[TurnAction, TurnObservation, GameState]):
    """One session: an episode at a time, of any split."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, game: Game, *, split: str = "train", lock: threading.Lock | None = None) -> None:
        """Bind the game.

        Args:
            game: the rules and the world, shared by all sessions.
            split: whose target is looked for where `reset` does not say.
            lock: held while the game is stepped; to be shared by the sessions of a server, which have threads.
        """
        super().__init__()
        self._game, self._split, self._lock = game, split, lock or threading.Lock()
        self._envs: dict[str, DeepRecEnv] = {}
        self._env = self._env_of(split)
        self._state = GameState()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        *,
        split: str | None = None,
        index: int | None = None,
        user_id: str | None = None,
        **_: Any,
    ) -> TurnObservation:
        """Start an episode and return the prompt.

        Args:
            seed: of the choice of users; the same as for the Gymnasium environment.
            episode_id: how the caller calls it.
            split: train, valid or test.
            index: the user's index, from 0; without it and `user_id` a user is drawn.
            user_id: the user's id.

        Raises:
            ValueError: if there is no such split or user.
        """
        split = self._split if split is None else split
        named = {"user_index": index, "user_id": user_id}
        options = {key: value for key, value in named.items() if value is not None}
        env = self._env_of(split)
        with self._lock:
            text, info = env.reset(seed=seed, options=options)
        self._env = env
        self._state = GameState(
            episode_id=episode_id or str(uuid4()),
            split=split,
            user_index=info["user_index"],
            user_id=info["user_id"],
            transcript=text,
        )
        return _observation(text, info)

    def step(self, action: TurnAction, timeout_s: float | None = None, **_: Any) -> TurnObservation:
        """Play one turn.

        Raises:
            EpisodeEnded: if the episode has ended.
            gymnasium.error.ResetNeeded: if there is none yet.
        """
        with self._lock:
            text, reward, terminated, truncated, info = self._env.step(action.text)
        episode = self._env.episode
        assert episode is not None
        self._state.step_count = len(episode.turns)
        self._state.total_reward += reward
        self._state.transcript = episode.transcript
        return _observation(text, info, reward=reward, done=terminated or truncated, truncated=truncated)

    @property
    def state(self) -> GameState:
        """Who is played and what has happened."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """Return the environment's name and what it is."""
        return EnvironmentMetadata(
            name=f"deeprec-{self._game.world.name}",
            description="A language model explores the item space of a recommender by preferences in words.",
        )

    def list_splits(self) -> list[str]:
        """Return the names of the splits; each holds every user once, with another target."""
        return list(SPLITS)

    def num_tasks(self, split: str) -> int:
        """Return how many users there are."""
        self._env_of(split)
        return self._game.world.splits.num_users

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """Return what `reset(split=…, index=…)` starts.

        Raises:
            IndexError: if there is no such user.
        """
        if not 0 <= index < self.num_tasks(split):
            raise IndexError(f"expected an index in 0..{self.num_tasks(split) - 1}, got {index}")
        user_id = self._game.world.splits.user_ids[index]
        return {"id": f"{split}-{user_id}", "split": split, "index": index, "user_id": user_id}

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """Return the first hundred users; `num_tasks` says how many there are."""
        return [self.get_task(split, index) for index in range(min(100, self.num_tasks(split)))]

    def _env_of(self, split: str) -> DeepRecEnv:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if split not in self._envs:
            config = self._game.config
            options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
            self._envs[split] = DeepRecEnv(world=self._game.world, split=split, **options)
        return self._envs[split]


class GameClient(EnvClient[TurnAction, TurnObservation, GameState]):
    """A session with a server: `async with GameClient(base_url=…)`, or `GameClient(base_url=…).sync()`."""

    def _step_payload(self, action: TurnAction) -> dict[str, Any]:
        return {"text": action.text}

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[TurnObservation]:
        reward, done = payload.get("reward"), bool(payload.get("done"))
        observation = TurnObservation(**{**payload["observation"], "reward": reward, "done": done})
        return StepResult(observation=observation, reward=reward, done=done)

    def _parse_state(self, payload: dict[str, Any]) -> GameState:
        return GameState(**payload)


def build_app(game: Game, *, split: str = "train", max_sessions: int = 64) -> FastAPI:
    """Return the server's app; its routes are OpenEnv's (/ws, /schema, /health, /{name}/tasks, …).

    Args:
        game: the rules and the world.
        split: whose target is looked for where `reset` does not say.
        max_sessions: sessions at a time; a further one is refused.
    """
    lock = threading.Lock()
    return create_fastapi_app(
        lambda: GameEnvironment(game, split=split, lock=lock),
        TurnAction,
        TurnObservation,
        max_concurrent_envs=max_sessions,
        env_name="deeprec",
        state_cls=GameState,
    )


def _observation(
    text: str, info: Mapping[str, Any], *, reward: float | None = None, done: bool = False, truncated: bool = False
) -> TurnObservation:
    """Return what may be sent of a step: all of `info` but the oracle."""
    return TurnObservation(
        text=text,
        reward=reward,
        done=done,
        truncated=truncated,
        turn=info["turn"],
        action_kind=info["action_kind"],
        malformed_reason=info["malformed_reason"],
        candidate_ids=list(info["candidate_ids"] or ()),
        reward_terms=dict(info["reward_terms"]),
        outcome=info.get("outcome"),
    )


@dataclass(frozen=True)
class Serve:
    """Serve the game as an OpenEnv environment."""

    dataset: str = "sample"
    """A data set: sample, or any that `deeprec prepare` takes."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    stage: str = "rec"
    """What the reward pays for: searching (cold) or the final ranking (rec)."""
    prompt_style: str = "full"
    """full, or compact for micro models."""
    split: str = "train"
    """Whose held-out item is looked for where `reset` does not say."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """The port."""
    max_sessions: int = 64
    """Sessions at a time."""

    def run(self) -> None:
        """Serve until a signal to end."""
        import uvicorn

        game = build_game(
            self.dataset, {"stage": self.stage, "prompt_style": self.prompt_style}, category=self.category
        )
        uvicorn.run(build_app(game, split=self.split, max_sessions=self.max_sessions), host=self.host, port=self.port)


if __name__ == "__main__":
    import tyro

    tyro.cli(Serve, description=__doc__).run()
