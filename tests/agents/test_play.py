from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agents.base import AgentError, EngineError, EpisodeView
from agents.heuristic_agent import HeuristicAgent
from agents.play import PlayedEpisode, play
from agents.random_agent import RandomAgent
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from deeprec_env.protocol import ActionKind, render_search
from tests.fakes import build_fake_world
from trm.errors import RetrieverRefused, RetrieverUnavailable
from trm.types import Candidates, RetrievalQuery


@pytest.fixture
def game() -> Game:
    return Game(build_fake_world(), GameConfig())


class Recorder:
    """Searches `key % 3` times, gives up, and notes what it sees."""

    name = "recorder"

    def __init__(self, answer: object = None) -> None:
        self.batches: list[list[int]] = []
        self.seeds: dict[int, int] = {}
        self.observations: list[str] = []
        self.answer = answer

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        self.batches.append([view.key for view in episodes])
        self.seeds.update({view.key: view.seed for view in episodes})
        self.observations.extend(view.last_observation for view in episodes)
        if self.answer is not None:
            return self.answer  # type: ignore[return-value]
        return [render_search("noir") if view.num_turns < view.key % 3 else "I give up." for view in episodes]


def test_episodes_come_in_the_order_of_users_and_samples(game: Game) -> None:
    episodes = play(game, RandomAgent(), [3, 0, 3], split="test", num_samples=2)
    assert [episode.user_index for episode in episodes] == [3, 3, 0, 0, 3, 3]
    assert all(episode.ended and episode.split == "test" for episode in episodes)


@pytest.mark.parametrize("agent", [RandomAgent(), HeuristicAgent(num_searches="2-4")], ids=lambda agent: agent.name)
def test_the_batch_size_changes_nothing(game: Game, agent: RandomAgent) -> None:
    users = list(range(8))
    responses = [
        [episode.response for episode in play(game, agent, users, split="test", batch_size=size, num_samples=2, seed=5)]
        for size in (1, 3, 256)
    ]
    assert responses[0] == responses[1] == responses[2]
    other = [episode.response for episode in play(game, agent, users, split="test", num_samples=2, seed=6)]
    assert other != responses[0]


def test_places_are_refilled_and_one_retriever_call_serves_a_round(game: Game) -> None:
    agent = Recorder()
    play(game, agent, list(range(9)), split="test", batch_size=4)
    assert agent.batches[0] == [0, 1, 2, 3]
    assert agent.batches[1] == [1, 2, 4, 5]  # 0 and 3 gave up at once
    assert all(len(batch) <= 4 for batch in agent.batches)
    assert sorted({key for batch in agent.batches for key in batch}) == list(range(9))


def test_one_retriever_call_serves_all_live_episodes(game: Game) -> None:
    play(game, HeuristicAgent(num_searches=3), list(range(9)), split="test")
    assert game.world.retriever.num_calls == 3  # type: ignore[attr-defined]


def test_samples_of_one_user_have_seeds_of_their_own_and_users_keep_theirs(game: Game) -> None:
    together, alone = Recorder(), Recorder()
    play(game, together, [1, 2], split="test", num_samples=3)
    play(game, alone, [2], split="test", num_samples=3)
    assert len(set(together.seeds.values())) == 6
    assert [together.seeds[key] for key in (3, 4, 5)] == [alone.seeds[key] for key in (0, 1, 2)]


def test_on_end_hears_of_every_episode_once(game: Game) -> None:
    heard: list[PlayedEpisode] = []
    episodes = play(game, Recorder(), list(range(6)), split="valid", batch_size=2, on_end=heard.append)
    assert sorted(played.key for played in heard) == list(range(6))
    assert all(played.episode is episodes[played.key] and played.seconds > 0 for played in heard)


def test_no_users_no_episodes(game: Game) -> None:
    assert play(game, Recorder(), [], split="test") == []


@pytest.mark.parametrize("answer", [[], ["one"] * 3, [1, 2]])
def test_an_agent_that_does_not_answer_strings_is_named(game: Game, answer: object) -> None:
    with pytest.raises(AgentError, match=r"recorder.* 2 strings"):
        play(game, Recorder(answer), [0, 1], split="test")


def test_sizes_below_one_are_refused(game: Game) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        play(game, Recorder(), [0], split="test", batch_size=0)


class Peeker:
    """Looks at all that a view offers."""

    name = "peeker"

    def __init__(self) -> None:
        self.seen: list[dict[str, object]] = []

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        for view in episodes:
            self.seen.append({name: getattr(view, name) for name in dir(view) if not name.startswith("_")})
        return [render_search("") if view.num_turns == 0 else "." for view in episodes]


def test_a_view_shows_the_game_but_not_the_target(game: Game) -> None:
    agent = Peeker()
    (episode,) = play(game, agent, [4], split="test")
    first, second = agent.seen
    for hidden in ("target", "reward", "outcome", "split", "user_index", "episode", "game"):
        assert hidden not in first
    assert first["prompt"] == first["last_observation"] == episode.prompt
    assert second["last_observation"] == episode.turns[0].observation
    assert second["pool"] == episode.pool
    assert second["turns"][0].candidate_ids == episode.turns[0].candidate_ids  # type: ignore[index]
    assert episode.target not in second["history"]  # type: ignore[operator]
    assert [turn.kind for turn in episode.turns] == [ActionKind.SEARCH, ActionKind.MALFORMED]


def test_popularity_counts_training_only_and_cannot_be_written(game: Game) -> None:
    agent = Peeker()
    play(game, agent, [0], split="test")
    popularity = agent.seen[0]["popularity"]
    assert isinstance(popularity, np.ndarray)
    assert popularity.tolist() == game.world.splits.train_counts().tolist()
    with pytest.raises(ValueError, match="read-only"):
        popularity[1] = 5


class Flaky:
    """A retriever that is down for one call, or refuses one preference."""

    def __init__(self, game: Game, *, down_at: int = -1, refuses: str = "") -> None:
        self._inner, self._down_at, self._refuses = game.world.retriever, down_at, refuses
        self.num_calls = 0

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        self.num_calls += 1
        if self.num_calls == self._down_at:
            raise RetrieverUnavailable("no answer in 3 attempts")
        if any(query.preference == self._refuses for query in queries):
            raise RetrieverRefused("bad query")
        return self._inner.retrieve(queries)


class KeyedSearcher:
    """Searches for its key, twice, and gives up."""

    name = "keyed"

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        return [render_search(f"noir {view.key}") if view.num_turns < 2 else "." for view in episodes]


def _broken(game: Game, **options: object) -> Game:
    game.world.retriever = Flaky(game, **options)  # type: ignore[arg-type,assignment]
    return game


def test_without_a_listener_a_dead_retriever_is_raised(game: Game) -> None:
    with pytest.raises(RetrieverUnavailable):
        play(_broken(game, down_at=1), KeyedSearcher(), [0, 1], split="test")


def test_a_refused_query_fails_its_own_episode_only(game: Game) -> None:
    failures: dict[int, Exception] = {}
    episodes = play(
        _broken(game, refuses="noir 1"), KeyedSearcher(), [0, 1, 2], split="test", on_failure=failures.__setitem__
    )
    assert [episode.ended for episode in episodes] == [True, False, True]
    assert [episode.user_index for episode in episodes] == [0, 1, 2]
    assert list(failures) == [1]
    assert isinstance(failures[1], RetrieverRefused)
    assert episodes[0].num_searches == 2
    assert not episodes[1].turns


def test_an_outage_fails_the_round_and_the_next_ones_go_on(game: Game) -> None:
    failures: dict[int, Exception] = {}
    world = _broken(game, down_at=1)
    episodes = play(world, KeyedSearcher(), range(4), split="test", batch_size=2, on_failure=failures.__setitem__)
    assert list(failures) == [0, 1]
    assert [episode.ended for episode in episodes] == [False, False, True, True]


def test_an_outage_leaves_those_alone_that_do_not_search(game: Game) -> None:
    failures: dict[int, Exception] = {}
    episodes = play(
        _broken(game, down_at=1), Recorder(), range(3), split="test", on_failure=failures.__setitem__
    )  # episode 0 gives up at once, the others search
    assert [episode.ended for episode in episodes] == [True, False, False]
    assert list(failures) == [1, 2]


class HalfDeadEngine:
    """A streaming agent whose engine loses episode 1."""

    name = "halfdead"

    def __init__(self) -> None:
        self._waiting: list[EpisodeView] = []

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        raise NotImplementedError

    def submit(self, episodes: Sequence[EpisodeView]) -> None:
        self._waiting.extend(episodes)

    def collect(self) -> list[tuple[int, str]]:
        lost = [view.key for view in self._waiting if view.key == 1]
        if lost:
            self._waiting = [view for view in self._waiting if view.key != 1]
            raise EngineError("the server did not answer in 3 attempts", keys=lost)
        waiting, self._waiting = self._waiting, []
        return [(view.key, ".") for view in waiting]


def test_an_episode_that_the_engine_lost_is_reported_and_the_others_end(game: Game) -> None:
    failures: dict[int, Exception] = {}
    episodes = play(game, HalfDeadEngine(), [0, 1, 2], split="test", on_failure=failures.__setitem__)
    assert [episode.ended for episode in episodes] == [True, False, True]
    assert list(failures) == [1]
    with pytest.raises(EngineError, match="3 attempts"):
        play(game, HalfDeadEngine(), [0, 1, 2], split="test")
