from collections.abc import Sequence

import pytest

from agents.base import AgentError, EpisodeView, SeesTarget
from agents.compare import paired_difference
from agents.evaluate import evaluate
from agents.heuristic_agent import HeuristicAgent
from agents.oracle_agent import OracleAgent
from agents.play import play
from agents.random_agent import RandomAgent
from agents.registry import make_agent
from agents.trm_agent import TRMAgent
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from tests.fakes import build_fake_world


@pytest.fixture
def game() -> Game:
    return Game(build_fake_world(num_users=40), GameConfig(k=3, top_k=3))


def test_the_target_is_first_whenever_it_came_up(game: Game) -> None:
    (result,) = evaluate(game, [OracleAgent()], range(40)).agents
    assert {row.rank for row in result.rows} == {0, 1}
    assert all(row.rank == int(row.in_pool) for row in result.rows)
    for row in result.rows:
        target = game.world.splits.example("test", row.user_index).target
        assert f" {game.world.catalog.attribute_line(target)} " in row.turns[0][0]


def test_more_searches_find_no_less_and_stop_when_it_is_found(game: Game) -> None:
    one, more = evaluate(game, [OracleAgent(), OracleAgent(max_searches=4)], range(40)).agents
    assert sum(row.in_pool for row in more.rows) > sum(row.in_pool for row in one.rows)
    for row in more.rows:
        found = [game.world.splits.example("test", row.user_index).target in ids for _, ids in row.turns[:-1]]
        assert not any(found[:-1])


def test_it_bounds_the_agents_that_do_not_see(game: Game) -> None:
    oracle, *others = evaluate(game, [OracleAgent(max_searches=8), TRMAgent(), HeuristicAgent()], range(40)).agents
    for other in others:
        assert paired_difference(oracle, other).metrics["NDCG@10"].low > 0


def test_whoever_uses_the_door_is_marked_and_nobody_else(game: Game) -> None:
    class Peeking(RandomAgent):
        def reveal(self, key: int, target: int) -> None:
            pass

    results = evaluate(game, [OracleAgent(), Peeking(), RandomAgent()], [0]).agents
    names = [result.header.agent for result in results]
    assert names == ["oracle (sees the target)", "random (sees the target)", "random"]
    assert isinstance(make_agent("oracle?max_searches=2"), SeesTarget)
    assert not any(isinstance(make_agent(name), SeesTarget) for name in ("random", "popularity", "trm", "heuristic"))


def test_views_show_no_target_to_the_oracle_either(game: Game) -> None:
    class Curious(OracleAgent):
        def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
            assert not any("target" in name for view in episodes for name in dir(view) if not name.startswith("_"))
            return super().act(episodes)

    play(game, Curious(), [0], split="test")


def test_an_untold_oracle_and_a_bad_option_are_refused(game: Game) -> None:
    class Untold:
        name = "untold"

        def __init__(self) -> None:
            self.inner = OracleAgent()

        def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
            return self.inner.act(episodes)

    with pytest.raises(AgentError, match="was not told"):
        play(game, Untold(), [0], split="test")
    with pytest.raises(AgentError, match="at least 1"):
        make_agent("oracle?max_searches=0")
