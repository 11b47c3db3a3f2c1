"""Other faces of the environment: the whole text so far, and two views in numbers for agents that do not write.

The numeric views write the texts themselves (see `numeric_views`), so rewards, transcripts and `info` are those of the
text environment.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from numpy import bool_
from numpy.typing import NDArray

from deeprec_env.env import DeepRecEnv
from deeprec_env.episode import Episode
from deeprec_env.numeric_views.base import OWN_ORDER, OWN_WEIGHT, RECENT, TREND_WEIGHT, NumericObs, NumericView
from deeprec_env.numeric_views.menu import MenuView
from deeprec_env.numeric_views.vector import VectorView
from deeprec_env.spaces import TextSpace

__all__ = ["OWN_ORDER", "PreferenceMenu", "PreferenceVector", "TranscriptObservation"]


def _text_env(env: gym.Env[Any, Any]) -> DeepRecEnv:
    if not isinstance(env.unwrapped, DeepRecEnv):
        raise TypeError(f"expected a DeepRecEnv to wrap, got {type(env.unwrapped).__name__}")
    return env.unwrapped


class TranscriptObservation(gym.ObservationWrapper[str, str, str], gym.utils.RecordConstructorArgs):
    """Observes the whole text so far, prompt, actions and answers, where the environment returns the new text only."""

    def __init__(self, env: gym.Env[str, str]) -> None:
        """Wrap a DeepRecEnv.

        Raises:
            TypeError: if it is another environment.
        """
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._env = _text_env(env)
        self.observation_space = TextSpace()

    def observation(self, observation: str) -> str:
        """Return the transcript of the episode in play."""
        episode = self._env.episode
        return observation if episode is None else episode.transcript


class _NumericWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """Plays a text environment through a view."""

    def __init__(self, env: gym.Env[str, str], view: NumericView) -> None:
        super().__init__(env)
        self._env = _text_env(env)
        self._env.game = view.game
        self._view = view
        self.action_space = view.action_space
        self.observation_space = view.observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NumericObs, dict[str, Any]]:
        """Start an episode, as the text environment does."""
        _, info = self.env.reset(seed=seed, options=options)
        return self._observe(), info

    def step(self, action: Any) -> tuple[NumericObs, float, bool, bool, dict[str, Any]]:
        """Write the action's text and play it.

        Raises:
            ValueError: if the action is not in the space.
        """
        _, reward, terminated, truncated, info = self.env.step(self.text_of(action))
        return self._observe(), float(reward), terminated, truncated, info

    def text_of(self, action: Any) -> str:
        """Return the text that the action stands for in the episode in play.

        Raises:
            ValueError: if there is no such action.
        """
        (text,) = self._view.texts([self._episode], [action])
        return text

    @property
    def _episode(self) -> Episode:
        if self._env.episode is None:
            raise gym.error.ResetNeeded("expected an episode in play, got none; call reset first")
        return self._env.episode

    def _observe(self) -> NumericObs:
        return {name: rows[0] for name, rows in self._view.observe([self._episode]).items()}


class PreferenceMenu(_NumericWrapper, gym.utils.RecordConstructorArgs):
    """Actions are numbers: ask for one of the menu's preferences, or recommend.

    ## Action Space
    `Discrete(num_phrases + 1)`: i asks for `phrases[i]`, the last recommends. The first phrase is empty (the
    recommender's own order), the others are the catalogue's commonest attributes.

    ## Observation Space
    `Dict` of float32 boxes: `user` (the recommender's query vector for the history), `candidates` (the mean vector of
    what the last search found), `progress` (shares of turns used, of the largest pool, of new ones among the last
    candidates, of the ranking's best that were found), and by phrase `asked` (1 if it was asked for), `liked` and
    `lately` (the share of the history, and of its last 10, with the phrase) and `missing` (the same share of the
    ranking's best that no search has found), and by action `allowed` (1 where `action_masks` has True).
    """

    def __init__(
        self,
        env: gym.Env[str, str],
        *,
        num_phrases: int = 32,
        own_weight: float = OWN_WEIGHT,
        recent: int | None = RECENT,
        trend_weight: float = TREND_WEIGHT,
    ) -> None:
        """Wrap a DeepRecEnv whose recommender is a TRM in this process.

        Args:
            env: the text environment.
            num_phrases: entries of the menu, the empty one included; fewer where the catalogue has fewer attributes.
            own_weight: weight of the recommender's own score in the final ranking; each search has 1.
            recent: how many of the latest choices the final ranking looks at; all if None.
            trend_weight: of what all users chose lately in the final ranking. The three defaults were chosen on the
                validation split of MovieLens-100K.

        Raises:
            TypeError: if the environment or its recommender is another.
            ValueError: if a number is too small.
        """
        gym.utils.RecordConstructorArgs.__init__(
            self, num_phrases=num_phrases, own_weight=own_weight, recent=recent, trend_weight=trend_weight
        )
        game = _text_env(env).game
        self._menu = MenuView(
            game, num_phrases=num_phrases, own_weight=own_weight, recent=recent, trend_weight=trend_weight
        )
        super().__init__(env, self._menu)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The menu."""
        return self._menu.phrases

    def action_masks(self) -> NDArray[bool_]:
        """Return which actions make sense now: phrases not asked for yet, and recommending once there is a pool."""
        return self._menu.masks(self._episode)


class PreferenceVector(_NumericWrapper, gym.utils.RecordConstructorArgs):
    """Actions are preferences as vectors, which go straight to the recommender; no text encoder is asked.

    ## Action Space
    `Box(-1, 1, (num_components + 1,))`: the preference (its length does not count, zeros are the recommender's own
    order), and a last number that recommends if it is above 0. Components are those along which the items' texts differ
    most; without num_components, those of the text embedding itself.

    ## Observation Space
    `Dict` of float32 boxes: `user`, `candidates` and `progress` as in PreferenceMenu, and in components `asked` (the
    mean of the preferences so far) and `missing` (the mean text of the ranking's best that no search has found).
    """

    def __init__(
        self,
        env: gym.Env[str, str],
        *,
        num_components: int | None = None,
        own_weight: float = OWN_WEIGHT,
        recent: int | None = RECENT,
        trend_weight: float = TREND_WEIGHT,
    ) -> None:
        """Wrap a DeepRecEnv whose recommender is a TRM in this process. The environment's game is replaced by its like.

        Args:
            env: the text environment.
            num_components: length of a preference; the text encoder's dimension if None.
            own_weight: as for PreferenceMenu.
            recent: as for PreferenceMenu.
            trend_weight: as for PreferenceMenu.

        Raises:
            TypeError: if the environment or its recommender is another.
            ValueError: if a number is out of its range.
        """
        gym.utils.RecordConstructorArgs.__init__(
            self, num_components=num_components, own_weight=own_weight, recent=recent, trend_weight=trend_weight
        )
        game = _text_env(env).game
        view = VectorView(
            game, num_components=num_components, own_weight=own_weight, recent=recent, trend_weight=trend_weight
        )
        super().__init__(env, view)
