"""N users at a time as a `gymnasium.vector.VectorEnv`, with one retriever call a step for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from deeprec_env.config import SPLITS
from deeprec_env.env import build_action_space, build_game
from deeprec_env.episode import Episode
from deeprec_env.errors import unknown_name
from deeprec_env.infos import Columns, VectorInfo, outcome_columns, put_columns, reset_columns, step_columns
from deeprec_env.rendering import render_transcript
from deeprec_env.spaces import TextSpace
from deeprec_env.users import RESET_OPTIONS, UserOrder, check_options, chosen_user, select_users
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
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"expected num_envs to be an integer of at least 1, got {num_envs!r}")
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
        self._spec: EnvSpec | None = None
        self.num_envs = int(num_envs)
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

    @property
    def spec(self) -> EnvSpec | None:
        """What `make_vec` made it from; goes through JSON, as the spec of a single environment does."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None and isinstance(mode := spec.kwargs.get("autoreset_mode"), AutoresetMode):
            spec.kwargs["autoreset_mode"] = mode.value
        self._spec = spec

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Texts, dict[str, Any]]:
        """Start all episodes, or those of the mask, and return all current observations.

        Args:
            seed: a number s gives the sub-environments s, s + 1, …; a sequence gives each its own.
            options: `user_index` or `user_id`, one for all or a sequence; `reset_mask`, a bool array [num_envs].

        Raises:
            ValueError: if a length does not fit, an option is unknown, or there is no such user.
            TypeError: if the mask is not an array of bools, or the options are no mapping.
        """
        seeds = self._seeds(seed)
        check_options(options or {}, (*RESET_OPTIONS, "reset_mask"))
        choices = dict(options or {})
        mask = self._mask(choices.pop("reset_mask", None))
        users = [chosen_user(self.game.world, chosen) for chosen in self._spread(choices)]
        places = np.flatnonzero(mask).tolist()
        for place in places:
            if seeds[place] is not None:
                self._rngs[place], _ = seeding.np_random(seeds[place])
                self._orders[place].restart()
        info: VectorInfo = {}
        self._start(places, [users[place] for place in places], info)
        return tuple(self._observations), info

    def step(self, actions: Sequence[str]) -> tuple[Texts, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Play one turn in every episode.

        In mode NEXT_STEP an episode that ended in the step before is started anew instead, and its action ignored. In
        mode SAME_STEP it is started anew at once; its last texts are in `final_obs` and `final_info`.

        Raises:
            TypeError: if the actions are no sequence, or one is not a string.
            ValueError: if there is not one action an environment.
            EpisodeEnded: in mode DISABLED, if an episode has ended and was not reset.
            ResetNeeded: if there was no reset yet.
        """
        if isinstance(actions, str) or not isinstance(actions, Sequence | np.ndarray):
            raise TypeError(f"expected a sequence of {self.num_envs} texts as actions, got {actions!r}")
        if len(actions) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} actions, one an environment, got {len(actions)}")
        episodes, places, starting = self._running(), list(range(self.num_envs)), []
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            starting = [place for place in places if episodes[place].ended]
            places = [place for place in places if not episodes[place].ended]
            episodes = [episodes[place] for place in places]
        turns = self.game.play(episodes, [actions[place] for place in places])
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=np.bool_)
        played = np.array(places, dtype=np.intp)
        rewards[played] = [turn.reward for turn in turns]
        terminated[played] = [episode.terminated for episode in episodes]
        truncated[played] = [episode.truncated for episode in episodes]
        for place, turn in zip(places, turns, strict=True):
            self._observations[place] = turn.observation
        ended = np.flatnonzero(terminated | truncated).tolist()
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            starting = ended
        info = self._turn_info(places, ended)
        self._start(starting, [None] * len(starting), info)
        return tuple(self._observations), rewards, terminated, truncated, info

    def render(self) -> tuple[str, ...] | None:
        """Return the transcripts in mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        return tuple("" if episode is None else render_transcript(episode) for episode in self._episodes)

    def _turn_info(self, places: Sequence[int], ended: Sequence[int]) -> VectorInfo:
        """Return the info of the turns that were played; in mode SAME_STEP that of last turns is in `final_info`."""
        info: VectorInfo = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            last = {"final_obs": [self._observations[place] for place in ended]}
            self._put(
                info, lambda episodes: {**last, "final_info": step_columns(episodes) | outcome_columns(episodes)}, ended
            )
            self._put(info, step_columns, sorted(set(places).difference(ended)))
        else:
            self._put(info, step_columns, places)
            self._put(info, outcome_columns, ended)
        return info

    def _put(self, info: VectorInfo, columns_of: Callable[[Sequence[Episode]], Columns], places: Sequence[int]) -> None:
        """Write what the episodes of these places say into the info."""
        if places:
            columns = columns_of([episode for place in places if (episode := self._episodes[place]) is not None])
            put_columns(info, columns, places, num_envs=self.num_envs)

    def _start(self, places: Sequence[int], users: Sequence[int | None], info: VectorInfo) -> None:
        """Start episodes, of the next user where none is named, and write what they say into the info."""
        for place, user in zip(places, users, strict=True):
            chosen = self._orders[place].draw(self._rng(place)) if user is None else user
            episode = self.game.start(chosen, self.split)
            self._episodes[place], self._observations[place] = episode, episode.prompt
        self._put(info, reset_columns, places)

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
        if isinstance(seed, str) or not isinstance(seed, Sequence | np.ndarray):
            raise TypeError(f"expected a seed or {self.num_envs} of them, got {seed!r}")
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
