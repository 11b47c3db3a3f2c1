from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agents.base import Agent, AgentError, EpisodeView, first_titles
from agents.heuristic_agent import HeuristicAgent
from agents.play import play
from agents.popularity_agent import PopularityAgent
from agents.random_agent import RandomAgent
from agents.registry import describe_agent, make_agent, register_agent, registered_agents
from agents.trm_agent import TRMAgent
from deeprec_env.config import GameConfig
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from deeprec_env.protocol import ActionKind
from deeprec_env.world import World
from tests.fakes import build_fake_world
from trm.types import Candidates, RetrievalQuery

RULE_AGENTS = ("random", "popularity", "trm", "heuristic", "heuristic?num_searches=1-8", "heuristic?num_searches=8")


@pytest.fixture(scope="module")
def world() -> World:
    return build_fake_world(num_users=24)


def _play(world: World, agent: Agent, *, split: str = "test", **options: object) -> list[Episode]:
    return play(Game(world, GameConfig(**options)), agent, range(world.splits.num_users), split=split)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", RULE_AGENTS)
@pytest.mark.parametrize("options", [{}, {"k": 5, "max_turns": 2}, {"reward": "paper"}, {"stage": "cold"}], ids=str)
def test_every_episode_is_well_formed(world: World, spec: str, options: dict[str, object]) -> None:
    for episode in _play(world, make_agent(spec), **options):
        assert episode.well_formed, episode.turns[-1].malformed_reason
        assert episode.turns[-1].kind is ActionKind.RECOMMEND
        assert episode.outcome is not None
        assert not episode.outcome.unknown_titles
        assert not episode.outcome.duplicate_titles
        assert episode.turns[-1].reward_terms.get("format", 0.0) == 0.0
        assert not set(episode.outcome.recommended_ids) & set(episode.history)


def test_trm_keeps_the_recommenders_order(world: World) -> None:
    for episode in _play(world, TRMAgent()):
        (search, final) = episode.turns
        assert search.preference == ""
        assert episode.outcome is not None
        shown = [world.display(item_id).title for item_id in search.candidate_ids]
        assert [line.title for line in episode.outcome.lines] == list(dict.fromkeys(shown))[:10]
        assert final.reward == episode.reward


def test_popularity_ranks_training_counts_without_the_history(world: World) -> None:
    counts = world.splits.train_counts()
    for episode in _play(world, PopularityAgent()):
        assert episode.outcome is not None
        best = sorted(
            (i for i in range(1, world.catalog.num_items + 1) if i not in episode.history),
            key=lambda item_id: (-counts[item_id], item_id),
        )
        assert episode.outcome.lines[0].item_ids == world.find(world.display(best[0]).title)
        found = [counts[list(line.item_ids)].max() for line in episode.outcome.lines]
        assert found == sorted(found, reverse=True)


def test_random_draws_the_whole_catalogue_and_differs_by_user(world: World) -> None:
    lists = [episode.outcome.recommended_ids for episode in _play(world, RandomAgent()) if episode.outcome]
    assert len(set(lists)) == len(lists)
    assert len(set(sum(lists, ()))) > 0.8 * world.catalog.num_items


@pytest.mark.parametrize(("num_searches", "low", "high"), [(1, 1, 1), (3, 3, 3), ("2-5", 2, 5), ((1, 4), 1, 4)])
def test_heuristic_searches_as_often_as_asked(world: World, num_searches: object, low: int, high: int) -> None:
    episodes = _play(world, HeuristicAgent(num_searches=num_searches))  # type: ignore[arg-type]
    counts = {episode.num_searches for episode in episodes}
    assert min(counts) == low
    assert max(counts) == high
    assert len(counts) == high - low + 1


def test_heuristic_asks_for_different_things_out_of_the_history_only(world: World) -> None:
    for episode in _play(world, HeuristicAgent(num_searches=5)):
        preferences = [turn.preference for turn in episode.turns[:-1]]
        assert preferences[0] == ""
        assert len(set(preferences)) == len(preferences) == 5
        known = {v for i in episode.history for values in world.catalog[i].attributes.values() for v in values}
        known |= {world.display(item_id).title for item_id in episode.history[-2:]}
        assert {phrase for text in preferences[1:] for phrase in str(text).split("; ")} <= known


class ListedRetriever:
    """Answers each preference with a given list."""

    def __init__(self, default: tuple[int, ...], other: tuple[int, ...]) -> None:
        self.default, self.other = default, other

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        answers = [self.other if query.preference else self.default for query in queries]
        return [Candidates(ids, tuple(-float(place) for place in range(len(ids)))) for ids in answers]


def test_heuristic_fuses_by_weighted_reciprocal_rank() -> None:
    world = build_fake_world()
    default, other = tuple(range(41, 53)), (60, 52, 41)
    world.retriever = ListedRetriever(default, other)
    agent = HeuristicAgent(num_searches=2, empty_weight=2.0, rank_offset=1.0)
    (episode,) = play(Game(world), agent, [0], split="test")
    assert episode.outcome is not None
    # 41: 2/2 + 1/4 = 1.25; 42: 2/3; 43, 60: 2/4 and 1/2, 43 was seen first; 52: 2/13 + 1/3 = 0.487; 44: 2/5; 45: 2/6
    assert episode.outcome.recommended_ids[:7] == (41, 42, 43, 60, 52, 44, 45)


def test_heuristic_lifts_what_all_users_chose_lately() -> None:
    world = build_fake_world()
    world.retriever = ListedRetriever(tuple(range(41, 53)), ())
    plain, trendy = HeuristicAgent(num_searches=1), HeuristicAgent(num_searches=1, trend_weight=1.0)
    orders = []
    for agent in (plain, trendy):
        (episode,) = play(Game(world), agent, [0], split="test")
        assert episode.outcome is not None
        orders.append(episode.outcome.recommended_ids)
    scores = {item: 4 / (5 + place) + np.log1p(world.splits.trend[item]) for place, item in enumerate(range(41, 53), 1)}
    assert orders[0] == tuple(range(41, 51))
    assert orders[1] == tuple(sorted(scores, key=lambda item: -scores[item])[:10]) != orders[0]


@pytest.mark.parametrize("options", [{"num_searches": 0}, {"num_searches": "5-2"}, {"num_searches": True}])
def test_heuristic_refuses_what_is_no_number_of_searches(options: dict[str, object]) -> None:
    with pytest.raises(AgentError, match="num_searches"):
        HeuristicAgent(**options)  # type: ignore[arg-type]


def test_first_titles_never_repeat_a_shared_title(world: World) -> None:
    assert first_titles(world.catalog, [9, 13, 1, 25, 2], 3) == ["Twins", "Iron Engine", "Two Lines"]


def test_options_that_differ_give_another_name_or_fingerprint() -> None:
    options = ({}, {"num_searches": 2}, {"empty_weight": 9.0}, {"trend_weight": 0.5})
    agents = [HeuristicAgent(**each) for each in options]  # type: ignore[arg-type]
    assert len({(agent.name, agent.fingerprint) for agent in agents}) == 4
    assert agents[0].name == "heuristic"


def test_registry_suggests_the_closest_name() -> None:
    with pytest.raises(AgentError, match="did you mean 'heuristic'"):
        make_agent("heuristics")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("heuristic?searches=2", "an option of agent 'heuristic' .* got 'searches'; did you mean 'num_searches'"),
        ("trm?k=2", "expected no option of agent 'trm', got 'k'"),
        ("trm:runs/a", "expected nothing after the colon of agent 'trm', got 'runs/a'"),
        ("llm", "expected agent 'llm' with a path, as in llm:PATH, got none"),
        ("no_such_module_at_all:Agent", "cannot import"),
        ("agents.base:Nothing", "has no 'Nothing'"),
        ("agents.play:PlayedEpisode?key=1&episode=2&seconds=3", "must give an agent"),
    ],
)
def test_registry_names_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(AgentError, match=message):
        make_agent(spec)


class SilentAgent:
    """Says nothing, in a given way."""

    name = "silent"

    def __init__(self, path: str, *, loud: bool = False) -> None:
        self.path, self.loud = path, loud

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        return ["" for _ in episodes]


def test_registry_takes_new_names_arguments_and_module_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.registry._registered", {})
    register_agent("silent", f"{__name__}:SilentAgent")
    agent = make_agent("silent:runs/a/rec?loud=true")
    assert isinstance(agent, SilentAgent)
    assert (agent.path, agent.loud) == ("runs/a/rec", True)
    assert isinstance(make_agent(f"{__name__}:SilentAgent?path=x"), SilentAgent)
    assert describe_agent(registered_agents()["silent"]) == "Says nothing, in a given way."
    with pytest.raises(AgentError, match="module"):
        register_agent("other", "not a target")


def test_rule_agents_do_not_depend_on_global_randomness(world: World) -> None:
    runs = []
    for seed in (0, 1):
        np.random.seed(seed)
        runs.append([episode.response for episode in _play(world, RandomAgent())])
    assert runs[0] == runs[1]
