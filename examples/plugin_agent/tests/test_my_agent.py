"""The agent plays the sample data set, which comes with DeepRec-Env and needs neither torch nor a network."""

import pytest
from my_deeprec_agent import MyAgent

from agents.base import Agent, AgentError
from agents.play import play
from agents.registry import make_agent
from deeprec_env.env import build_game


def test_every_episode_is_well_formed():
    episodes = play(build_game("sample", {}), MyAgent(depth=3), range(20), split="test")
    assert all(episode.well_formed for episode in episodes)
    assert {episode.num_searches for episode in episodes} == {3}


def test_the_same_user_is_played_the_same_way():
    game = build_game("sample", {})
    first, again = (play(game, MyAgent(), range(5), split="test") for _ in range(2))
    assert [episode.response for episode in first] == [episode.response for episode in again]


def test_the_entry_point_names_it():
    agent = make_agent("my_agent?depth=1")
    assert isinstance(agent, MyAgent)
    assert isinstance(agent, Agent)
    with pytest.raises(AgentError, match="at least 1"):
        make_agent("my_agent?depth=0")
