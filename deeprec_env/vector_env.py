"""N users at a time as a `gymnasium.vector.VectorEnv`, with one retriever call a step for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from deeprec_env.config import SPLITS
from deeprec_env.env import build_action_space, build_game
from deeprec_env.episode import Episode
from deeprec_env.errors import unknown_name
from deeprec_env.game import StepResult
from deeprec_env.rendering import render_transcript
from deeprec_env.spaces import TextSpace
from deeprec_env.users import UserOrder, chosen_user, select_users
from deeprec_env.world import World

Texts = tuple[str, ...]
BoolArray = NDArray[np.bool_]


class DeepRecVectorEnv(VectorEnv[Texts, Sequence[str], NDArray[Any]]):
    """The same transcripts and rewards as N `DeepRecEnv`; observations and actions are N strings.

    Each sub-environment has its own generator, so `reset(seed=[s] * G)` gives G equal episodes.
    """

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | None = None,
        *,
        split: str = "train",
        users: str | Sequence[int] = "all",
        category: str | None = None,
        data_home: str | Path | None = None,
        auto_prepare: bool = True,
        world: World | None = None,
        retriever: str | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        """Load the world (shared within the process) and fix the rules.

        Args:
            num_envs: how many episodes are played at a time.
            dataset: as for DeepRecEnv, like all that follow but the last.
            split: whose item is held out.
            users: who is played.
            category: of the Amazon reviews.
            data_home: where prepared data lie.
            auto_prepare: whether a data set that is not prepared yet is prepared now.
            world: to be played instead of a data set.
            retriever: where candidates come from.
            render_mode: "ansi" or None.
            autoreset_mode: when an ended episode gives way to the next.
            **options: fields of GameConfig.

        Raises:
            ValueError: if an argument is unknown or wrong.
            DatasetNotPrepared: if the data set is not at hand.
        """
        if num_envs < 1:
            raise ValueError(f"expected num_envs to be at least 1, got {num_envs}")
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if render_mode not in (None, "ansi"):
            raise unknown_name("render_mode", render_mode, ("ansi",))
        self.game = build_game(
            dataset,
            options,
            category=category,
            data_home=data_home,
            auto_prepare=auto_prepare,
            world=world,
            retriever=retriever,
        )
        self.num_envs = num_envs
        self.split = split
        self.render_mode = render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": ["ansi"], "render_fps": 4, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = TextSpace()
        self.single_action_space = build_action_space(self.game.world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        chosen = select_users(self.game.world, users, split)
        self._orders = [UserOrder(chosen) for _ in range(num_envs)]
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._episodes: list[Episode | None] = [None] * num_envs
        self._observations: list[str] = [""] * num_envs

    @property
    def episodes(self) -> tuple[Episode | None, ...]:
        """The episodes in play; they hold the targets: not for policies."""
        return tuple(self._episodes)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each sub-environment."""
        return tuple(self._rng(place) for place in range(self.num_envs))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Texts, dict[str, Any]]:
        """Start all episodes, or those of the mask, and return all current observations.

        Args:
            seed: a number s gives the sub-environments s, s + 1, …; a sequence gives each its own.
            options: `user_index` or `user_id`, one for all or a sequence; `reset_mask`, a bool array [num_envs].

        Raises:
            ValueError: if a length does not fit, an option is unknown, or there is no such user.
            TypeError: if the mask is not an array of bools.
        """
        seeds = self._seeds(seed)
        choices = dict(options or {})
        mask = self._mask(choices.pop("reset_mask", None))
        users = [chosen_user(self.game.world, chosen) for chosen in self._spread(choices)]
        infos: list[dict[str, Any] | None] = [None] * self.num_envs
        for place in np.flatnonzero(mask).tolist():
            if seeds[place] is not None:
                self._rngs[place], _ = seeding.np_random(seeds[place])
                self._orders[place].restart()
            infos[place] = self._start(place, users[place])
        return tuple(self._observations), batch_infos(infos)

    def step(self, actions: Sequence[str]) -> tuple[Texts, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Play one turn in every episode.

        In mode NEXT_STEP an episode that ended in the step before is started anew instead, and its action ignored. In
        mode SAME_STEP it is started anew at once; its last texts are in `final_obs` and `final_info`.

        Raises:
            TypeError: if an action is not a string.
            ValueError: if there is not one action an environment.
            EpisodeEnded: in mode DISABLED, if an episode has ended and was not reset.
            ResetNeeded: if there was no reset yet.
        """
        if isinstance(actions, str) or len(actions) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} actions, one an environment, got {len(actions)}")
        episodes = self._running()
        results: list[StepResult | None] = [None] * self.num_envs
        live: Sequence[int] = range(self.num_envs)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            live = [place for place, episode in enumerate(episodes) if not episode.ended]
        played = self.game.step([episodes[place] for place in live], [actions[place] for place in live])
        for place, result in zip(live, played, strict=True):
            results[place] = result
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=np.bool_)
        rewards[live] = [result.reward for result in played]
        terminated[live] = [result.terminated for result in played]
        truncated[live] = [result.truncated for result in played]
        infos = [self._after(place, result) for place, result in enumerate(results)]
        return tuple(self._observations), rewards, terminated, truncated, batch_infos(infos)

    def render(self) -> tuple[str, ...] | None:
        """Return the transcripts in mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        return tuple("" if episode is None else render_transcript(episode) for episode in self._episodes)

    def _after(self, place: int, result: StepResult | None) -> dict[str, Any]:
        """Take over a result and return its info, with the next episode's in mode SAME_STEP; start one without it."""
        if result is None:
            return self._start(place, None)
        self._observations[place] = result.observation
        if self.autoreset_mode is AutoresetMode.SAME_STEP and (result.terminated or result.truncated):
            final = {"final_obs": result.observation, "final_info": result.info}
            return final | self._start(place, None)
        return result.info

    def _start(self, place: int, user: int | None) -> dict[str, Any]:
        if user is None:
            user = self._orders[place].draw(self._rng(place))
        episode = self.game.start(user, self.split)
        self._episodes[place], self._observations[place] = episode, episode.prompt
        return self.game.reset_info(episode)

    def _running(self) -> list[Episode]:
        episodes = [episode for episode in self._episodes if episode is not None]
        if len(episodes) < self.num_envs:
            place = self._episodes.index(None)
            raise ResetNeeded(f"expected an episode in sub-environment {place}, got none; call reset first")
        return episodes

    def _rng(self, place: int) -> np.random.Generator:
        rng = self._rngs[place]
        if rng is None:
            rng, _ = seeding.np_random()
            self._rngs[place] = rng
        return rng

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + place for place in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} seeds, one an environment, got {len(seed)}")
        return list(seed)

    def _mask(self, mask: object) -> BoolArray:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"expected reset_mask to be an array of bools, got {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"expected reset_mask to have shape ({self.num_envs},) and a True in it, got {mask}")
        return mask

    def _spread(self, choices: Mapping[str, Any]) -> list[dict[str, object]]:
        """Return the options of each sub-environment."""
        spread: list[dict[str, object]] = [{} for _ in range(self.num_envs)]
        for name, value in choices.items():
            each = value.tolist() if isinstance(value, np.ndarray) else value
            if not isinstance(each, list | tuple):
                each = [each] * self.num_envs
            if len(each) != self.num_envs:
                raise ValueError(f"expected {name} to be one value or {self.num_envs} of them, got {len(each)}")
            for options, single in zip(spread, each, strict=True):
                options[name] = single
        return spread


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    by_name = {str(member.value): member for member in AutoresetMode} | {m.name: m for m in AutoresetMode}
    if mode not in by_name:
        raise unknown_name("autoreset_mode", mode, by_name)
    return by_name[mode]


def batch_infos(infos: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Return the infos of N environments as one, in Gymnasium's layout but built column by column.

    A key holds an array [N] (numbers and bools as such, all else as objects; dicts again as such a dict), and `_key` a
    bool array of who has it.
    """
    alike = None not in infos and len(set(map(tuple, infos))) == 1  # type: ignore[arg-type]
    names = infos[0] or {} if alike else dict.fromkeys(name for info in infos if info is not None for name in info)
    batched: dict[str, Any] = {}
    for name in names:
        has_value = np.ones(len(infos), dtype=np.bool_)
        if alike:
            column = [info[name] for info in infos]  # type: ignore[index]
        else:
            column = [None if info is None else info.get(name) for info in infos]
            has_value[:] = [info is not None and name in info for info in infos]
        batched[name] = _batch_column(column, has_value)
        batched[f"_{name}"] = has_value
    return batched


def _batch_column(column: Sequence[Any], has_value: BoolArray) -> Any:
    kind = type(column[int(has_value.argmax())])
    if kind is dict:
        return batch_infos(column)
    if kind in (int, float, bool):
        return np.array([0 if value is None else value for value in column], dtype=kind)
    return np.fromiter(column, dtype=object, count=len(column))
