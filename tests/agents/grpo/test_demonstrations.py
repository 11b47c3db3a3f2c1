from types import SimpleNamespace

import pytest

from agents.base import AgentError, EpisodeView
from agents.grpo.config import SftConfig
from agents.grpo.demonstrations import demonstrate, select_episodes
from agents.heuristic_agent import HeuristicAgent
from agents.play import play
from agents.random_agent import RandomAgent
from tests.agents.grpo.worlds import build_game


def _episodes(*groups: list[float | None]) -> list[SimpleNamespace]:
    """Return episodes by reward; None is a malformed one that earned much."""
    return [
        SimpleNamespace(well_formed=reward is not None, reward=9.0 if reward is None else reward)
        for group in groups
        for reward in group
    ]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 2, 3, 4, 5]),
        ({"keep_best": 1}, [2, 4]),
        ({"keep_best": 2}, [0, 2, 3, 4]),
        ({"min_reward": 0.5}, [2, 4]),
        ({"keep_best": 1, "min_reward": 1.5}, [4]),
        ({"min_reward": 3.0}, []),
    ],
)
def test_of_each_user_the_best_well_formed_ones_are_kept_in_their_order(
    options: dict[str, float], kept: list[int]
) -> None:
    episodes = _episodes([0.2, None, 1.0], [0.4, 2.0, 0.4])
    assert select_episodes(episodes, num_samples=3, **options) == [episodes[place] for place in kept]


def test_best_of_n_is_the_best_of_what_the_agent_plays() -> None:
    game, users = build_game("rec"), list(range(8))
    played = play(game, RandomAgent(), users, split="train", seed=3, num_samples=4)
    config = SftConfig(num_samples=4, keep_best=1)
    kept = demonstrate(game, RandomAgent(), users, config, seed=3)
    best = [max(episode.reward for episode in played[first : first + 4]) for first in range(0, len(played), 4)]
    assert [episode.reward for episode in kept] == best
    assert sum(best) / len(best) > sum(episode.reward for episode in played) / len(played)


class LongPrompts(HeuristicAgent):
    """Was trained on other prompts than the policy will see, and refuses all others."""

    game_options = {"prompt_style": "full", "max_history": 2}

    def act(self, episodes: list[EpisodeView]) -> list[str]:
        assert all("You recommend items" in view.prompt for view in episodes)
        return super().act(episodes)


def test_the_teacher_plays_by_its_own_prompts_and_the_policy_learns_by_its_own() -> None:
    game = build_game("rec")
    theirs = demonstrate(game, LongPrompts(num_searches=2), [0, 1], SftConfig(num_samples=1), seed=0)
    ours = demonstrate(game, HeuristicAgent(num_searches=2), [0, 1], SftConfig(num_samples=1), seed=0)
    assert [episode.transcript for episode in theirs] == [episode.transcript for episode in ours]
    assert all(episode.prompt == game.start(episode.user_index, "train").prompt for episode in theirs)


def test_nothing_to_imitate_is_said() -> None:
    with pytest.raises(AgentError, match=r"got none of 2 .* lower sft.min_reward"):
        demonstrate(build_game("rec"), HeuristicAgent(), [0, 1], SftConfig(num_samples=1, min_reward=1e9), seed=0)
