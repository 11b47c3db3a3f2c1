"""Other faces of the environment: the whole text so far, and two views in numbers for agents that do not write.

The numeric views write the texts themselves, so rewards, transcripts and `info` are those of the text environment.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from numpy.typing import NDArray

from deeprec_env.env import DeepRecEnv
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.spaces import TextSpace
from deeprec_env.spoken_vectors import recommender, spoken_world
from trm.data.catalog import Catalog
from trm.preferences import PreferenceWriter
from trm.types import FloatArray, RetrievalQuery

NumericObs = dict[str, FloatArray]

OWN_ORDER = ""
"""The preference that asks for the recommender's own order."""


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


class NumericView(gym.Wrapper[Any, Any, Any, Any]):
    """What the two numeric views share: what is seen of an episode, and the ranking of its pool.

    Shapes: D the recommender's width, P its text dimension.
    """

    def __init__(self, env: gym.Env[str, str], *, own_weight: float) -> None:
        super().__init__(env)
        self._env = _text_env(env)
        self._trm = recommender(self._env.game.world)
        if not own_weight >= 0:
            raise ValueError(f"expected own_weight to be at least 0, got {own_weight!r}")
        self._own_weight = own_weight

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

    @abstractmethod
    def text_of(self, action: Any) -> str:
        """Return the text that the action stands for in the episode in play."""

    @property
    def _episode(self) -> Episode:
        if self._env.episode is None:
            raise gym.error.ResetNeeded("expected an episode in play, got none; call reset first")
        return self._env.episode

    def _common_spaces(self) -> dict[str, Box]:
        width = self._trm.frozen.dim
        return {
            "user": Box(-1.0, 1.0, (width,), np.float32),
            "candidates": Box(-1.0, 1.0, (width,), np.float32),
            "progress": Box(0.0, 1.0, (3,), np.float32),
        }

    def _observe(self) -> NumericObs:
        """Return fresh arrays: the recommender's query for the history [D], the mean of the last candidates [D], and
        the shares of turns used, of the largest pool, and of new ones among the last candidates [3].
        """
        episode, config = self._episode, self._env.game.config
        last = next((turn for turn in reversed(episode.turns) if turn.candidate_ids), None)
        candidates = np.zeros(self._trm.frozen.dim, dtype=np.float32)
        num_new = 0.0
        if last is not None:
            candidates = self._trm.frozen.item_vectors[list(last.candidate_ids)].mean(axis=0)
            num_new = last.num_new_candidates / len(last.candidate_ids)
        turns = episode.num_searches / config.max_turns
        progress = (turns, len(episode.pool) / (config.k * config.max_turns), num_new)
        return {
            "user": _clipped(self._trm.query_vectors([RetrievalQuery(episode.history, OWN_ORDER)])[0]),
            "candidates": _clipped(candidates),
            "progress": np.clip(np.array(progress, dtype=np.float32), 0.0, 1.0),
        }

    def _recommend(self) -> str:
        """Return the recommendation of the best of the pool, by the weighted sum of the scores of all searches.

        Should the pool be too small, the catalogue's next best come after it.
        """
        episode = self._episode
        asked = [turn.preference or OWN_ORDER for turn in episode.turns if turn.candidate_ids]
        queries = [RetrievalQuery(episode.history, preference) for preference in [OWN_ORDER, *asked]]
        weights = np.array([self._own_weight, *np.ones(len(asked))], dtype=np.float32)
        scores = self._trm.frozen.item_vectors @ (weights @ self._trm.query_vectors(queries))
        order = sorted(episode.pool, key=lambda item_id: (-scores[item_id], item_id))
        top_k = self._env.game.config.top_k
        titles = _distinct_titles(self._env.game, order)
        if len(titles) < top_k:
            left_out = {0, *episode.pool, *episode.history}
            others = [int(i) for i in np.argsort(-scores, kind="stable") if int(i) not in left_out]
            titles = _distinct_titles(self._env.game, [*order, *others])
        return render_recommend(titles[:top_k], reasoning=f"I rank what {len(asked)} searches found.")


class PreferenceMenu(NumericView, gym.utils.RecordConstructorArgs):
    """Actions are numbers: ask for one of the menu's preferences, or recommend.

    ## Action Space
    `Discrete(num_phrases + 1)`: i asks for `phrases[i]`, the last recommends. The first phrase is empty (the
    recommender's own order), the others are the catalogue's commonest attributes.

    ## Observation Space
    `Dict` of float32 boxes: `user` (the recommender's query vector for the history), `candidates` (the mean vector of
    what the last search found), `progress` (shares of turns used, of the largest pool, of new ones among the last
    candidates), `asked` (1 for each phrase that was asked for) and `liked` (the share of the history with the phrase).
    """

    def __init__(self, env: gym.Env[str, str], *, num_phrases: int = 32, own_weight: float = 6.0) -> None:
        """Wrap a DeepRecEnv whose recommender is a TRM in this process.

        Args:
            env: the text environment.
            num_phrases: entries of the menu, the empty one included; fewer where the catalogue has fewer attributes.
            own_weight: weight of the recommender's own score in the final ranking; each search has 1. The default was
                chosen on the validation split of MovieLens-100K.

        Raises:
            TypeError: if the environment or its recommender is another.
            ValueError: if num_phrases or own_weight is too small.
        """
        if num_phrases < 1:
            raise ValueError(f"expected num_phrases to be at least 1, got {num_phrases}")
        gym.utils.RecordConstructorArgs.__init__(self, num_phrases=num_phrases, own_weight=own_weight)
        super().__init__(env, own_weight=own_weight)
        catalog = self._env.game.world.catalog
        self.phrases: tuple[str, ...] = (OWN_ORDER, *PreferenceWriter(catalog).phrases(num_phrases - 1))
        self._carries = _phrase_table(catalog, self.phrases)
        size = len(self.phrases)
        self.action_space = Discrete(size + 1)
        share = Box(0.0, 1.0, (size,), np.float32)
        self.observation_space = Dict({**self._common_spaces(), "asked": share, "liked": share})

    def text_of(self, action: int) -> str:
        """Return the search for a phrase, or the recommendation.

        Raises:
            ValueError: if there is no such action.
        """
        if not 0 <= int(action) <= len(self.phrases):
            raise ValueError(f"expected an action in 0..{len(self.phrases)}, got {action!r}")
        if int(action) == len(self.phrases):
            return self._recommend()
        return render_search(self.phrases[int(action)], reasoning="Let me look.")

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions make sense now: phrases not asked for yet, and recommending once there is a pool."""
        episode = self._episode
        mask = np.append(self._asked() == 0.0, bool(episode.pool))
        if episode.num_searches >= self._env.game.config.max_turns:
            mask[:-1] = False
        return mask

    def _asked(self) -> FloatArray:
        asked = {turn.preference for turn in self._episode.turns}
        return np.array([phrase in asked for phrase in self.phrases], dtype=np.float32)

    def _observe(self) -> NumericObs:
        history = self._episode.history
        liked = self._carries[list(history)].mean(axis=0) if history else np.zeros(len(self.phrases))
        return {**super()._observe(), "asked": self._asked(), "liked": liked.astype(np.float32)}


class PreferenceVector(NumericView, gym.utils.RecordConstructorArgs):
    """Actions are preferences as vectors, which go straight to the recommender; no text encoder is asked.

    ## Action Space
    `Box(-1, 1, (num_components + 1,))`: the preference (its length does not count, zeros are the recommender's own
    order), and a last number that recommends if it is above 0. Components are those along which the items' texts differ
    most; without num_components, those of the text embedding itself.

    ## Observation Space
    `Dict` of float32 boxes: `user`, `candidates` and `progress` as in PreferenceMenu, and `asked` (the mean of the
    preferences so far, in components).
    """

    def __init__(self, env: gym.Env[str, str], *, num_components: int | None = None, own_weight: float = 6.0) -> None:
        """Wrap a DeepRecEnv whose recommender is a TRM in this process. The environment's game is replaced by its like.

        Args:
            env: the text environment.
            num_components: length of a preference; the text encoder's dimension if None.
            own_weight: weight of the recommender's own score in the final ranking; each search has 1. The default was
                chosen on the validation split of MovieLens-100K.

        Raises:
            TypeError: if the environment or its recommender is another.
            ValueError: if num_components or own_weight is out of its range.
        """
        gym.utils.RecordConstructorArgs.__init__(self, num_components=num_components, own_weight=own_weight)
        text_env = _text_env(env)
        world = spoken_world(text_env.game.world)
        text_env.game = Game(world, text_env.game.config)
        super().__init__(env, own_weight=own_weight)
        self._encoder = world.encoder
        self._basis = _main_directions(world.item_text_vectors[1:], num_components)
        self._phrases = PreferenceWriter(world.catalog).phrases(64)
        self._phrase_vectors = world.encoder.encode(self._phrases)
        size = len(self._basis)
        self.action_space = Box(-1.0, 1.0, (size + 1,), np.float32)
        asked = Box(-1.0, 1.0, (size,), np.float32)
        self.observation_space = Dict({**self._common_spaces(), "asked": asked})

    def text_of(self, action: FloatArray) -> str:
        """Return the search for the vector, or the recommendation.

        Raises:
            ValueError: if the shape is wrong or a number is not finite.
        """
        numbers = np.asarray(action, dtype=np.float32)
        if numbers.shape != self.action_space.shape or not np.isfinite(numbers).all():
            raise ValueError(f"expected {self.action_space.shape} finite numbers, got {action!r}")
        if numbers[-1] > 0:
            return self._recommend()
        vector = numbers[:-1] @ self._basis
        near = self._phrases[int(np.argmax(self._phrase_vectors @ vector))] if self._phrases else ""
        return render_search(self._encoder.speak(vector, near=near), reasoning="Let me look.")

    def _observe(self) -> NumericObs:
        asked = [turn.preference or OWN_ORDER for turn in self._episode.turns if turn.candidate_ids]
        mean = self._encoder.encode(asked).mean(axis=0) if asked else np.zeros(self._encoder.dim, dtype=np.float32)
        return {**super()._observe(), "asked": _clipped(self._basis @ mean)}


def _clipped(vector: FloatArray) -> FloatArray:
    return np.clip(vector, -1.0, 1.0).astype(np.float32)


def _phrase_table(catalog: Catalog, phrases: tuple[str, ...]) -> FloatArray:
    """Return which item has which phrase among its attributes, float32 [num_items + 1, len(phrases)] of 0 and 1."""
    place = {phrase: column for column, phrase in enumerate(phrases)}
    table = np.zeros((catalog.num_items + 1, len(phrases)), dtype=np.float32)
    for item in catalog:
        columns = [place[value] for values in item.attributes.values() for value in values if value in place]
        table[item.item_id, columns] = 1.0
    return table


def _distinct_titles(game: Game, item_ids: list[int]) -> list[str]:
    """Return the items' titles as shown, without those that mean the same as an earlier one."""
    titles: dict[tuple[int, ...], str] = {}
    for item_id in item_ids:
        title = game.world.display(item_id).title
        titles.setdefault(game.world.find(title), title)
    return list(titles.values())


def _main_directions(vectors: FloatArray, count: int | None) -> FloatArray:
    """Return orthonormal rows float32 [count, P], those along which the vectors spread most; all axes if None.

    Raises:
        ValueError: if count is not in 1..P.
    """
    size = vectors.shape[1]
    if count is None:
        return np.eye(size, dtype=np.float32)
    if not 1 <= count <= size:
        raise ValueError(f"expected num_components to be in 1..{size}, got {count}")
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    rows = np.ascontiguousarray(directions.T[::-1][:count])
    signs = np.sign(rows[np.arange(count), np.abs(rows).argmax(axis=1)])
    return np.asarray(rows * signs[:, None], dtype=np.float32)
