"""The door to verifiers: the game as one of its environments (tasks, the episode's control flow, reward and metrics).

verifiers finds an environment by the name of an installed top-level module, so a small package of one's own exports
what `__all__` names here: see examples/doors/verifiers_environment.

The model is asked by verifiers, which keeps its tokens; turn by turn this module steps the Game with what it wrote. The
conversation is the one that the agent *chat* has with an endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import numpy as np
import verifiers.v1 as vf
from pydantic import Field

from agents.base import EpisodeView
from agents.chat_agent import build_messages, read_action
from agents.chat_client import ChatReply
from deeprec_env.env import build_game
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from deeprec_env.protocol import STOP_STRINGS
from trm.metrics import ndcg_at_k

__all__ = ["DirectHarness", "GameEnv", "GameTaskset"]

REWARD = "episode_reward"
"""The name of the reward in traces: the sum of the environment's step rewards."""


class GameData(vf.TaskData):
    """One user of one split; prompt and system prompt are the conversation's beginning."""

    user_index: int
    user_id: str
    split: str


class GameTask(vf.Task[GameData]):
    """A user to recommend to. Its reward is recorded by GameEnv, which has stepped the game."""

    @property
    def key(self) -> str:
        """The user and the split, whatever is asked for beside them."""
        return f"{self.data.split}/{self.data.user_id}"


class GameConfig(vf.TasksetConfig):
    """Which users are played, on which data, by which rules."""

    dataset: str = "sample"
    """A data set: sample, or any that `deeprec prepare` takes."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    split: Literal["train", "valid", "test"] = "train"
    """Whose held-out item is looked for."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the game's configuration, such as {"stage": "cold", "prompt_style": "compact"}."""


class GameTaskset(vf.Taskset[GameTask, GameConfig]):
    """All users of a split, in the data set's order."""

    def __init__(self, config: GameConfig) -> None:
        """Load the world; it is shared within the process."""
        super().__init__(config)
        self.game: Game = build_game(config.dataset, config.options, category=config.category)

    def load(self) -> Iterator[GameTask]:
        """Yield one task a user."""
        popularity = np.zeros(0, dtype=np.int64)  # the view is asked for its prompt only
        for user, user_id in enumerate(self.game.world.splits.user_ids):
            episode = self.game.start(user, self.config.split)
            view = EpisodeView(episode, self.game, key=user, seed=0, popularity=popularity)
            rules, question = build_messages(view, "turns")
            yield GameTask(
                GameData(
                    id=f"{self.config.split}/{user_id}",
                    name=f"{self.config.dataset}/{self.config.split}/{user_id}",
                    system_prompt=rules["content"],
                    prompt=question["content"],
                    user_index=user,
                    user_id=user_id,
                    split=self.config.split,
                ),
                self.config.task,
            )


class DirectHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the model in this process: a conversation of texts needs neither a program nor a sandbox."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Ask for one message; a refusal is the run's error, which verifiers has recorded."""
        system, prompt = self.resolve_prompt(data)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages.extend(message.model_dump(mode="json", exclude_none=True) for message in prompt or [])
        async with httpx.AsyncClient(timeout=None) as client:  # the agent's own timeouts bound it
            answer = await client.post(
                f"{endpoint}/chat/completions",
                json={"model": ctx.model, "messages": messages},
                headers={"Authorization": f"Bearer {secret}"},
            )
        if answer.is_success:
            return vf.ProgramResult(exit_code=0, stdout="", stderr="")
        return vf.ProgramResult(exit_code=1, stdout="", stderr=f"{answer.status_code}: {answer.text}")


class GameEnvConfig(vf.EnvConfig):
    """The environment's one seat."""

    player: vf.AgentConfig = vf.AgentConfig(
        runtime=vf.SubprocessConfig(), sampling={"stop": list(STOP_STRINGS), "max_tokens": 2048}
    )
    """The policy; a turn ends at a closing tag."""


class GameEnv(vf.Env[GameEnvConfig]):
    """One task is one episode: the model's messages are the actions, the game's observations the user's messages."""

    taskset: GameTaskset

    async def run(self, task: vf.Task, agents: vf.Agents) -> None:
        """Play the episode and record its reward and metrics.

        A limit of turns or tokens ends the episode as malformed, like an action that says nothing. An error of the
        model is no episode: it stands on the trace, without a reward.
        """
        data = task.data
        assert isinstance(data, GameData)
        game = self.taskset.game
        episode = game.start(data.user_index, data.split)
        async with agents.player.interaction(task) as interaction:
            trace, segment = interaction.trace, await interaction.turn()
            while not segment.terminated:
                observation = await self._step(episode, _action(segment, trace))
                if episode.ended:
                    break
                segment = await interaction.turn(observation.strip())
        if not episode.ended and not trace.errors:
            await self._step(episode, "")
        if episode.ended:
            trace.record_reward(REWARD, sum(turn.reward for turn in episode.turns))
            trace.record_metrics(episode_metrics(episode))

    async def _step(self, episode: Episode, action: str) -> str:
        """Return the observation; the recommender is asked beside the event loop, by one episode at a time."""
        async with self._stepping:
            (result,) = await asyncio.to_thread(self.taskset.game.step, [episode], [action])
        return result.observation

    def __init__(self, config: GameEnvConfig) -> None:
        """Load what the configuration names."""
        super().__init__(config)
        self._stepping = asyncio.Lock()


def episode_metrics(episode: Episode) -> dict[str, float]:
    """Return what is recorded beside the reward."""
    hit_rank = episode.outcome.hit_rank if episode.outcome is not None and episode.well_formed else 0
    metrics = {
        "num_searches": float(episode.num_searches),
        "format_ok": float(episode.well_formed),
        "hit": float(hit_rank > 0),
        "ndcg_at_10": float(ndcg_at_k([hit_rank], 10)[0]),
        "in_pool": float(episode.target_in_pool),
    }
    for turn in episode.turns:
        for name, amount in turn.reward_terms.items():
            metrics[f"reward/{name}"] = metrics.get(f"reward/{name}", 0.0) + amount
    return metrics


def _action(segment: vf.Segment, trace: vf.Trace) -> str:
    """Return the action that the model's message is; a stop string that the endpoint has cut off is put back."""
    finish = trace.calls[-1].finish_reason if trace.calls else None
    return read_action(ChatReply(segment.last_reply, finish=finish or "stop"))
