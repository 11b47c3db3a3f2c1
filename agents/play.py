"""THE one loop: an agent plays users of a game, many at a time. Evaluation, SFT data and GRPO rollouts all use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from tqdm import tqdm

from agents.base import Agent, AgentError, EngineError, EpisodeView, SeesTarget, StreamingAgent, valid_text
from deeprec_env.episode import judge
from trm.errors import RetrieverError, RetrieverUnavailable

if TYPE_CHECKING:
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game
    from trm.types import IntArray


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """An episode that has ended."""

    key: int
    """Its place in the list that `play` returns."""
    episode: Episode
    seconds: float
    """Wall time; the time of a round is shared equally among the episodes that were live in it."""


@dataclass(slots=True)
class _Live:
    episode: Episode
    view: EpisodeView
    seconds: float = 0.0


def episode_seed(seed: int, user_index: int, sample: int) -> int:
    """Return the seed of one episode's view: it depends on the three numbers alone, not on the batch."""
    return int(np.random.SeedSequence([seed, user_index, sample]).generate_state(1)[0])


def play(
    game: Game,
    agent: Agent,
    users: Sequence[int],
    *,
    split: str,
    seed: int = 0,
    batch_size: int = 256,
    num_samples: int = 1,
    progress: bool = False,
    on_end: Callable[[PlayedEpisode], None] | None = None,
    on_failure: Callable[[int, Exception], None] | None = None,
) -> list[Episode]:
    """Return the ended episodes of all users, `num_samples` each, in the order of `users`.

    Up to `batch_size` episodes are live at a time, and whoever ends gives its place to the next. A round is one answer
    of the agent and one `game.step`: over all live episodes, or, for a StreamingAgent, over those that it has finished
    with, while the others go on being sampled. Episode i of the result is sample `i % num_samples` of user
    `users[i // num_samples]`, and was played under `view.key == i`.

    Args:
        game: the rules and the world.
        agent: the policy.
        users: user indices, 0-based; a user may stand in it more than once.
        split: whose target is looked for, "train", "valid" or "test".
        seed: seeds the views, see `episode_seed`.
        batch_size: how many episodes are live at most.
        num_samples: episodes a user.
        progress: whether to show a progress bar.
        on_end: called with each episode as it ends, in the order of ending.
        on_failure: called with key and error of an episode that the retriever or the engine failed; it is returned as
            it was then, not ended, and the others go on. Without it the error is raised.

    Raises:
        AgentError: if the agent does not answer one string an episode.
        RetrieverError: if the recommender is broken, without `on_failure`.
        ValueError: if batch_size or num_samples is below 1.
    """
    if batch_size < 1 or num_samples < 1:
        raise ValueError(f"batch_size and num_samples must be at least 1, got {batch_size} and {num_samples}")
    num_episodes = len(users) * num_samples
    popularity = _popularity(game)
    source = agent if isinstance(agent, StreamingAgent) else _LockStep(agent)
    ended: dict[int, Episode] = {}
    live: dict[int, _Live] = {}
    next_key = 0
    with tqdm(total=num_episodes, desc=agent.name, unit="episode", disable=not (progress and num_episodes)) as bar:
        while len(ended) < num_episodes:
            started = time.perf_counter()
            fresh = []
            while next_key < num_episodes and len(live) < batch_size:
                user, sample = users[next_key // num_samples], next_key % num_samples
                view_seed = episode_seed(seed, user, sample)
                live[next_key] = _start(game, user, split, key=next_key, seed=view_seed, popularity=popularity)
                fresh.append(live[next_key].view)
                if isinstance(agent, SeesTarget):
                    agent.reveal(next_key, live[next_key].episode.target)
                next_key += 1
            if fresh:
                source.submit(fresh)
            stepped, failed = _play_round(game, source, live, tolerant=on_failure is not None)
            share = (time.perf_counter() - started) / len(live)
            for entry in live.values():
                entry.seconds += share
            for entry in stepped:
                if entry.episode.ended:
                    del live[entry.view.key]
                    ended[entry.view.key] = entry.episode
                    bar.update()
                    if on_end is not None:
                        on_end(PlayedEpisode(entry.view.key, entry.episode, entry.seconds))
            for key, error in failed.items():
                ended[key] = live.pop(key).episode
                bar.update()
                if on_failure is not None:
                    on_failure(key, error)
            going_on = [entry.view for entry in stepped if not entry.episode.ended]
            if going_on:
                source.submit(going_on)
    return [ended[key] for key in range(num_episodes)]


def _popularity(game: Game) -> IntArray:
    counts = np.array(game.world.splits.train_counts(), dtype=np.int64)
    counts.flags.writeable = False
    return counts


def _start(game: Game, user: int, split: str, *, key: int, seed: int, popularity: IntArray) -> _Live:
    episode = game.start(user, split)
    return _Live(episode, EpisodeView(episode, game, key=key, seed=seed, popularity=popularity))


def _play_round(
    game: Game, source: _Source, live: Mapping[int, _Live], *, tolerant: bool
) -> tuple[list[_Live], dict[int, Exception]]:
    """Step the episodes that have an answer and return them, and what befell the others by key."""
    try:
        answers = source.collect()
    except EngineError as error:
        if not tolerant or not error.keys:
            raise
        return [], dict.fromkeys(error.keys, error)
    if not answers or any(key not in live for key, _ in answers):
        raise AgentError(f"expected answers to {len(live)} episodes that are under way, got {answers!r}")
    actions = [valid_text(action) if isinstance(action, str) else action for _, action in answers]
    return _step([live[key] for key, _ in answers], actions, game, tolerant=tolerant)


def _step(
    entries: list[_Live], actions: list[str], game: Game, *, tolerant: bool
) -> tuple[list[_Live], dict[int, Exception]]:
    try:
        game.step([entry.episode for entry in entries], actions)
    except RetrieverError as error:
        if not tolerant:
            raise
        searching: list[tuple[_Live, str]] = []
        rest: list[tuple[_Live, str]] = []
        for entry, action in zip(entries, actions, strict=True):
            retrieves = judge(entry.episode, action, game.config).retrieves
            (searching if retrieves else rest).append((entry, action))
        # A service that is down fails all searches; one that refuses may refuse a single query.
        if isinstance(error, RetrieverUnavailable) or len(searching) == 1:
            parts: list[tuple[list[_Live], dict[int, Exception]]] = [
                ([], {one.view.key: error for one, _ in searching})
            ]
        else:
            parts = [_step([one], [action], game, tolerant=True) for one, action in searching]
        parts.append(_step([one for one, _ in rest], [action for _, action in rest], game, tolerant=True))
        failed = {key: problem for _, problems in parts for key, problem in problems.items()}
        return [entry for stepped, _ in parts for entry in stepped], failed
    return entries, {}


class _Source(Protocol):
    """What hands out actions: the two methods of a StreamingAgent."""

    def submit(self, episodes: Sequence[EpisodeView]) -> None: ...

    def collect(self) -> list[tuple[int, str]]: ...


class _LockStep:
    """Any agent as a source of actions: all episodes that wait are answered together."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._waiting: list[EpisodeView] = []

    def submit(self, episodes: Sequence[EpisodeView]) -> None:
        self._waiting.extend(episodes)

    def collect(self) -> list[tuple[int, str]]:
        views, self._waiting = sorted(self._waiting, key=lambda view: view.key), []
        actions = self._agent.act(views)
        if len(actions) != len(views) or not all(isinstance(action, str) for action in actions):
            raise AgentError(
                f"agent {self._agent.name!r} must answer {len(views)} strings, one an episode, got {len(actions)} of "
                f"types {sorted({type(action).__name__ for action in actions})}"
            )
        return [(view.key, action) for view, action in zip(views, actions, strict=True)]
