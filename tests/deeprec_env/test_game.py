import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec_env.config import GameConfig, build_game_config
from deeprec_env.episode import Episode
from deeprec_env.errors import EpisodeEnded
from deeprec_env.game import Game
from deeprec_env.protocol import SPECIAL_TOKENS, CutAction, MalformedReason, render_recommend, render_search
from deeprec_env.world import World
from tests.fakes import FakeEncoder, FakeRetriever, build_fake_world

WORLD = build_fake_world()
ACTIONS = st.one_of(
    st.lists(
        st.sampled_from([*SPECIAL_TOKENS, "<|begin", "1. Twins\n", "noir", "\n", "<"]) | st.text(), max_size=9
    ).map("".join),
    st.text(max_size=20).map(render_search),
    st.lists(st.sampled_from(["Twins", "Iron Engine", "Noir Tale 4", "Nowhere"]) | st.text(), max_size=12).map(
        lambda titles: render_recommend(titles, reasoning="so")
    ),
)


def _finish(game: Game, episode: Episode) -> str:
    titles = list(dict.fromkeys(game.world.display(i).title for i in episode.pool))[: game.config.top_k]
    return render_recommend(titles, reasoning="I rank.")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ACTIONS, max_size=11),
    st.sampled_from(["cold", "rec"]),
    st.sampled_from(["strict", "paper", {"preset": "strict", "progress_weight": 0.3}]),
    st.integers(0, 11),
)
def test_any_text_is_an_action_and_rewards_add_up(actions: list[str], stage: str, reward: object, user: int) -> None:
    game = Game(WORLD, GameConfig(stage=stage, reward=reward, max_turns=4))
    episode = game.start(user, "test")
    rewards = []
    for action in actions:
        if episode.ended:
            break
        (result,) = game.step([episode], [action])
        assert sum(result.info["reward_terms"].values()) == result.reward
        assert ("outcome" in result.info) == (result.terminated or result.truncated)
        rewards.append(result.reward)
    assert math.fsum(rewards) == sum(rewards) == episode.reward == math.fsum(episode.paid.values())
    assert sum(map(Fraction, rewards)) == Fraction(episode.reward)
    if episode.ended and reward != "paper":
        assert -1 <= episode.reward <= 4


def test_one_call_of_each_service_a_step(world: World) -> None:
    game = Game(world, GameConfig(stage="cold"))
    episodes = [game.start(user, "test") for user in range(6)]
    retriever, encoder = world.retriever, world.encoder
    assert isinstance(retriever, FakeRetriever)
    assert isinstance(encoder, FakeEncoder)
    before = encoder.num_calls
    for turn in range(3):
        game.step(episodes, [render_search(f"wish {turn} {i}") for i in range(6)])
    assert (retriever.num_calls, encoder.num_calls - before) == (3, 3)
    game.step(episodes, [_finish(game, episode) for episode in episodes])
    assert (retriever.num_calls, encoder.num_calls - before) == (3, 3)


def test_batched_and_single_play_agree(world: World) -> None:
    game = Game(world, GameConfig(stage="cold"))
    together = [game.start(user, "test") for user in range(5)]
    alone = [game.start(user, "test") for user in range(5)]
    for text in ("noir; 1990s", "comedy", "romance; 1970s"):
        results = game.step(together, [render_search(text)] * 5)
        assert results == [game.step([episode], [render_search(text)])[0] for episode in alone]


def test_the_target_stays_hidden(world: World) -> None:
    game = Game(world)
    for split in ("train", "valid", "test"):
        for user in range(world.splits.num_users):
            episode = game.start(user, split)
            assert episode.target not in episode.history
            game.step([episode], [render_search("noir")])
            assert not set(episode.pool) & set(episode.history)
    assert isinstance(world.retriever, FakeRetriever)
    assert all(query.exclude_history and query.k == 20 for query in world.retriever.queries)


def test_a_target_chosen_before_is_dropped_from_the_history(world: World) -> None:
    game = Game(world)
    example = world.splits.example("test", 0)
    splits = world.splits
    original = splits.example
    splits.example = lambda split, user: type(example)(0, "u0", (example.target, 3, example.target), example.target)  # type: ignore[method-assign]
    try:
        assert game.start(0, "test").history == (3,)
    finally:
        splits.example = original  # type: ignore[method-assign]


def test_search_budget_truncates(world: World) -> None:
    game = Game(world, GameConfig(max_turns=2))
    episode = game.start(0)
    for text in ("noir", "comedy"):
        assert not game.step([episode], [render_search(text)])[0].truncated
    result = game.step([episode], [render_search("western")])[0]
    assert (result.truncated, result.terminated, result.reward, result.observation) == (True, False, -1.0, "")
    assert result.info["malformed_reason"] == "search_budget"
    assert episode.num_searches == 2
    with pytest.raises(EpisodeEnded, match="reset"):
        game.step([episode], ["again"])


def test_after_the_last_search_a_recommendation_is_possible(world: World) -> None:
    game = Game(world, GameConfig(max_turns=1))
    episode = game.start(0)
    game.step([episode], [render_search("noir")])
    assert game.step([episode], [_finish(game, episode)])[0].terminated
    assert episode.well_formed


@pytest.mark.parametrize("option", ["max_action_chars", "max_episode_chars"])
def test_text_budget_truncates(world: World, option: str) -> None:
    game = Game(world, build_game_config({option: 100}))
    result = game.step([game.start(0)], ["x" * 101])[0]
    assert (result.truncated, result.terminated) == (True, False)
    assert result.info["malformed_reason"] == "text_budget"


@pytest.mark.parametrize(
    ("actions", "reason"),
    [
        ([render_recommend(["Twins"] * 10, reasoning="so")], "no_search"),
        ([render_search("noir"), render_recommend(["Twins"] * 10, reasoning="")], "no_reasoning"),
        ([render_search("noir"), render_recommend(["Twins"] * 9, reasoning="so")], "num_titles"),
        ([render_search("noir"), "words"], "no_action"),
    ],
)
def test_endings_that_are_not_well_formed(world: World, actions: list[str], reason: str) -> None:
    game = Game(world)
    episode = game.start(0)
    for action in actions:
        result = game.step([episode], [action])[0]
    assert result.info["malformed_reason"] == reason
    assert result.terminated
    assert episode.reward == -1.0
    assert result.info["outcome"]["well_formed"] is False


def test_titles_with_tags_are_shown_harmless_and_found_again(world: World) -> None:
    game = Game(world)
    for item_id in (21, 25, 33):
        shown = world.display(item_id).title
        assert world.find(shown) == (item_id,)
        assert not any(tag in shown for tag in SPECIAL_TOKENS)
    assert game.world.find("TWINS ") == (9, 13)
    history_prompt = next(p for p in (game.start(u, "test").prompt for u in range(12)) if "Tank" in p)
    assert "‹think›" in history_prompt
    assert history_prompt.endswith("<think>\n")


def test_misuse_is_an_error(world: World) -> None:
    game = Game(world)
    episode = game.start(0)
    with pytest.raises(TypeError, match="string"):
        game.step([episode], [3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="distinct"):
        game.step([episode, episode], ["a", "b"])
    with pytest.raises(ValueError, match="one action"):
        game.step([episode], [])
    assert not episode.turns
    with pytest.raises(ValueError, match="did you mean 'test'"):
        game.start(0, "tests")
    with pytest.raises(ValueError, match=r"0\.\.11"):
        game.start(12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "recs"}, "did you mean 'rec'"),
        ({"reward": "stric"}, "did you mean 'strict'"),
        ({"reward": {"hit_wieght": 1}}, "did you mean 'hit_weight'"),
        ({"reward": {"hit_weight": -1}}, "hit_weight"),
        ({"prompt_style": "compakt"}, "did you mean 'compact'"),
        ({"max_turn": 3}, "did you mean 'max_turns'"),
        ({"k": 0}, "k to be an integer"),
        ({"top_k": True}, "top_k to be an integer"),
    ],
)
def test_wrong_options_name_the_right_one(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_game_config(options)


def test_compact_prompt_is_short(world: World) -> None:
    prompt = Game(world, GameConfig(prompt_style="compact", max_history=10)).start(0, "test").prompt
    assert prompt.endswith("\nAssistant:\n<think>\n")
    assert len(prompt.split()) < 120


@pytest.mark.parametrize("reason", [MalformedReason.TURN_TOKENS, MalformedReason.EPISODE_TOKENS])
def test_a_text_that_was_cut_off_truncates(world: World, reason: MalformedReason) -> None:
    game = Game(world)
    episode = game.start(0)
    assert not game.step([episode], [CutAction(render_search("noir"), reason)])[0].truncated  # it had acted
    result = game.step([episode], [CutAction("They like <|begin_of_preference|> no", reason)])[0]
    assert (result.terminated, result.truncated, result.reward) == (False, True, -1.0)
    assert result.info["malformed_reason"] == str(reason)
    copy = pickle.loads(pickle.dumps(CutAction("x", reason)))
    assert (copy, copy.reason) == ("x", reason)
