"""What an agent is, what it may see, and the shape of a policy by rule. Owns no loop (see agents.play)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from deeprec_env.protocol import display_item, render_recommend, render_search
from trm.data.catalog import normalize_title
from trm.types import FloatArray, IntArray

if TYPE_CHECKING:
    from deeprec_env.config import GameConfig
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game
    from trm.data.catalog import Catalog


class AgentError(Exception):
    """An agent cannot be built, or answered something that is no list of actions."""


class EngineError(AgentError):
    """An engine did not sample an action in spite of bounded retries; the other episodes can go on."""

    def __init__(self, message: str, *, keys: Sequence[int]) -> None:
        """Name the episodes, by `view.key`, that have no action; they are not under way any more."""
        super().__init__(message)
        self.keys = tuple(keys)


@dataclass(frozen=True, slots=True)
class SeenTurn:
    """One finished turn as the agent saw it: no reward, no oracle."""

    action: str
    observation: str
    preference: str
    """The preference that was searched; "" if it was empty."""
    candidate_ids: tuple[int, ...]
    """What the search returned, best first."""


class EpisodeView:
    """A read-only face of an Episode: all that an agent may know, and never the target.

    Attributes of the view are current: `turns` and `pool` grow while the episode is played.
    """

    __slots__ = ("__episode", "__game", "__key", "__popularity", "__seed")

    def __init__(self, episode: Episode, game: Game, *, key: int, seed: int, popularity: IntArray) -> None:
        self.__episode = episode
        self.__game = game
        self.__key = key
        self.__seed = seed
        self.__popularity = popularity

    @property
    def key(self) -> int:
        """The episode's place in the list that `play` returns; unique within one call of `play`."""
        return self.__key

    @property
    def seed(self) -> int:
        """A number drawn from (the run's seed, the user, the sample); the same whatever the batch size."""
        return self.__seed

    @property
    def prompt(self) -> str:
        """The first observation; ends in the open think tag and a newline."""
        return self.__episode.prompt

    @property
    def history(self) -> tuple[int, ...]:
        """The user's whole history as item ids, oldest first (the prompt may show its end only)."""
        return self.__episode.history

    @property
    def turns(self) -> tuple[SeenTurn, ...]:
        """The finished turns, first to last."""
        return tuple(
            SeenTurn(turn.action, turn.observation, turn.preference or "", turn.candidate_ids)
            for turn in self.__episode.turns
        )

    @property
    def num_turns(self) -> int:
        """How many turns are finished."""
        return len(self.__episode.turns)

    @property
    def last_observation(self) -> str:
        """The newest text from the environment: the last turn's observation, before any turn the prompt."""
        turns = self.__episode.turns
        return turns[-1].observation if turns else self.__episode.prompt

    @property
    def pool(self) -> tuple[int, ...]:
        """All candidates seen so far, without repetition, in the order of their first appearance."""
        return self.__episode.pool

    @property
    def catalog(self) -> Catalog:
        """The catalogue of the world that is played."""
        return self.__game.world.catalog

    @property
    def config(self) -> GameConfig:
        """The rules of the game: k, top_k, max_turns, ..."""
        return self.__game.config

    @property
    def popularity(self) -> IntArray:
        """int64 [num_items + 1]: interactions an item in the training part of the data; not to be written to."""
        return self.__popularity

    @property
    def trend(self) -> FloatArray:
        """float32 [num_items + 1]: an item's share of all users' latest training choices, per thousand; read-only."""
        return self.__game.world.splits.trend

    def rng(self) -> np.random.Generator:
        """Return a generator that depends on the seed and the number of finished turns only."""
        return np.random.default_rng([self.__seed, self.num_turns])


@runtime_checkable
class Agent(Protocol):
    """A policy over texts. One object plays many episodes at a time.

    An agent may keep notes by `view.key`; keys start anew with each call of `play`.
    """

    name: str
    """Stands in tables and keys saved results: it must differ when the policy differs."""

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return one action text an episode, in their order."""
        ...


@runtime_checkable
class StreamingAgent(Agent, Protocol):
    """An Agent whose episodes need not wait for one another: the slowest answer holds nobody up."""

    def submit(self, episodes: Sequence[EpisodeView]) -> None:
        """Take note of episodes that want an action, and return soon."""
        ...

    def collect(self) -> list[tuple[int, str]]:
        """Return `view.key` and action of at least one submitted episode, as soon as one is there.

        Raises:
            EngineError: if some cannot be answered; what is known of others comes with the next call.
        """
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """An Agent that knows what it has sampled; evaluation shows it."""

    def num_tokens(self, key: int) -> int | None:
        """Return how many tokens were sampled in the episode played under this key; None where that is unknown."""
        ...


@runtime_checkable
class SeesTarget(Protocol):
    """THE door to the target, for ceilings only: views never show it.

    An agent that has this method is told each episode's target, and is called "… (sees the target)" wherever results
    stand, whatever its own name says. See agents.oracle_agent.
    """

    def reveal(self, key: int, target: int) -> None:
        """Take note of the held-out item of the episode that is about to be played under this key."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """One search that a rule plans."""

    preference: str
    """"" asks for the recommender's own order."""
    reasoning: str
    """What is written before it."""


class RuleAgent(ABC):
    """A policy that plans its searches from the history, makes them all, and then ranks.

    Plan and ranking are functions of the view alone, so a rule agent keeps nothing between two calls.
    """

    name: str

    @abstractmethod
    def plan(self, view: EpisodeView) -> Sequence[Step]:
        """Return the searches to make, at least one. It must be the same at every turn of an episode."""

    @abstractmethod
    def rank(self, view: EpisodeView) -> Iterable[int]:
        """Return item ids, best first; at least top_k of different titles when the catalogue allows it."""

    def conclude(self, view: EpisodeView) -> str:
        """Return the reasoning that stands before the recommendation."""
        return f"I rank what fits best out of {len(view.pool)} items."

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return the next search of each plan, or the recommendation where the plan is done."""
        return [self._act(view) for view in episodes]

    def _act(self, view: EpisodeView) -> str:
        steps = self.plan(view)[: view.config.max_turns]
        if view.num_turns < len(steps):
            step = steps[view.num_turns]
            return render_search(step.preference, reasoning=step.reasoning)
        titles = first_titles(view.catalog, self.rank(view), view.config.top_k)
        return render_recommend(titles, reasoning=self.conclude(view))


def answer_all(agent: StreamingAgent, episodes: Sequence[EpisodeView]) -> list[str]:
    """Return one action an episode of an agent that answers as it goes; errors as of its `collect`."""
    agent.submit(episodes)
    found: dict[int, str] = {}
    while len(found) < len(episodes):
        found.update(agent.collect())
    return [found[view.key] for view in episodes]


def valid_text(text: str) -> str:
    """Return the text itself, unless it holds half a surrogate pair: no file can, so U+FFFD stands in its place."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def by_popularity(view: EpisodeView) -> Iterator[int]:
    """Yield the catalogue's items that are not in the history, the most popular first; equal counts by id."""
    history = set(view.history)
    for index in np.argsort(-view.popularity[1:], kind="stable"):
        if (item_id := int(index) + 1) not in history:
            yield item_id


def first_titles(catalog: Catalog, item_ids: Iterable[int], count: int) -> list[str]:
    """Return the titles of the first items as they are shown, at most `count`, no title twice (items may share one)."""
    titles: dict[str, str] = {}
    for item_id in item_ids:
        title = display_item(catalog.title(item_id)).title
        titles.setdefault(normalize_title(title), title)
        if len(titles) == count:
            break
    return list(titles.values())
