"""Many episodes seen through a view, as Stable-Baselines3 wants them: one retriever call a step for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from deeprec_env.episode import Episode
from deeprec_env.numeric_views.base import NumericObs, NumericView
from deeprec_env.vector_env import DeepRecVectorEnv


@dataclass(frozen=True, slots=True)
class EndedEpisode:
    """What is logged of an episode."""

    reward: float
    num_searches: int
    well_formed: bool
    hit: bool
    in_pool: bool
    ndcg_at_10: float


class ViewVecEnv(VecEnv):
    """A DeepRecVectorEnv behind a view. An episode that ends gives way to the next at once.

    A truncation (more searches than allowed) is told as an end like any other, not as a time limit: it has been paid
    for, and what would come after it is nothing.
    """

    def __init__(self, view: NumericView, num_envs: int, *, split: str, users: str = "all") -> None:
        """Start nothing yet; `reset` does.

        Args:
            view: what is observed and acted.
            num_envs: how many episodes are played at a time.
            split: whose held-out item is looked for.
            users: who is played.

        Raises:
            ValueError: if split or users is unknown.
        """
        config = view.game.config
        rules = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(config)}
        self._view = view
        self._env = DeepRecVectorEnv(
            num_envs, world=view.game.world, split=split, users=users, autoreset_mode="Disabled", **rules
        )
        self._texts: list[str] = []
        self._ended: list[EndedEpisode] = []
        super().__init__(num_envs, view.observation_space, view.action_space)

    def reset(self) -> NumericObs:
        """Start all episodes anew, by the seeds given to `seed`, if any, and return what is observed."""
        self._env.reset(seed=self._seeds if any(seed is not None for seed in self._seeds) else None)
        self._reset_seeds()
        self._reset_options()
        return self._view.observe(self._episodes)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions, one a row."""
        self._texts = self._view.texts(self._episodes, actions)

    def step_wait(self) -> Any:
        """Play them; return observations, rewards, ends and infos."""
        _, rewards, terminated, truncated, _ = self._env.step(self._texts)
        ended = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.any():
            places = np.flatnonzero(ended).tolist()
            last = [self._episodes[place] for place in places]
            self._ended.extend(_summary(episode) for episode in last)
            final = self._view.observe(last)
            for row, place in enumerate(places):
                infos[place]["terminal_observation"] = {name: rows[row] for name, rows in final.items()}
            self._env.reset(options={"reset_mask": ended})
        return self._view.observe(self._episodes), rewards.astype(np.float32), ended, infos

    def drain(self) -> list[EndedEpisode]:
        """Return the episodes that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def _episodes(self) -> list[Episode]:
        return [episode for episode in self._env.episodes if episode is not None]

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the vector environment, once a sub-environment."""
        return [getattr(self._env, attr_name)] * len(self._places(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: sub-environments have no attributes of their own.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"sub-environments have no attribute {attr_name!r} to be set")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: sub-environments have no methods of their own.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"sub-environments have no method {method_name!r}")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Return that no sub-environment is wrapped."""
        return [False] * len(self._places(indices))

    def _places(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))


def _summary(episode: Episode) -> EndedEpisode:
    outcome = episode.outcome
    hit = outcome is not None and episode.well_formed and outcome.hit_rank > 0
    return EndedEpisode(
        reward=episode.reward,
        num_searches=episode.num_searches,
        well_formed=episode.well_formed,
        hit=hit,
        in_pool=episode.target_in_pool,
        ndcg_at_10=outcome.ndcg(10) if hit and outcome is not None else 0.0,
    )
