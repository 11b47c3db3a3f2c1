"""Each payment comes with the reason for it."""

import pytest

from deeprec_env.config import GameConfig
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.rewards.explain import explain_turn, render_explanation
from deeprec_env.world import World


def _play(game: Game, wishes: list[str], titles: list[str] | None = None, *, reasoning: str = "I rank.") -> Episode:
    episode = game.start(0, "test")
    for wish in wishes:
        game.step([episode], [render_search(wish)])
    if titles is not None:
        game.step([episode], [render_recommend(titles, reasoning=reasoning)])
    return episode


def _seen(game: Game, wishes: list[str]) -> list[str]:
    episode = _play(game, wishes)
    return list(dict.fromkeys(game.world.display(i).title for i in episode.pool))


def _reasons(game: Game, episode: Episode, turn_index: int, term: str) -> str:
    (payment,) = [payment for payment in explain_turn(game, episode, turn_index) if payment.term == term]
    return "\n".join(payment.reasons)


def test_payments_are_those_of_the_episode(world: World) -> None:
    for config in (GameConfig(stage="cold"), GameConfig(reward="paper"), GameConfig(reward={"progress_weight": 1.0})):
        game = Game(world, config)
        episode = _play(game, ["noir", "western"], _seen(game, ["noir", "western"])[:10])
        payments = [explain_turn(game, episode, index) for index in range(3)]
        assert [{p.term: p.amount for p in turn} for turn in payments] == [turn.reward_terms for turn in episode.turns]
        assert {p.term: p.total for p in payments[-1]} == episode.paid
        assert f"--- total reward {episode.reward:+.4f}" in render_explanation(game, episode)


def test_which_preferences_count_as_the_same(world: World) -> None:
    game = Game(world, GameConfig(stage="cold", reward={"min_new_share": 0.0, "near_duplicate": 0.8}))
    wishes = ["noir", "", "NOIR!", "western", "western western 1970s", "a b western western western"]
    said = [_reasons(game, _play(game, wishes), index, "invocation") for index in range(4)]
    assert said[0] == "'noir' asks for something new"
    assert "has no words" in said[1]
    assert said[2] == "'NOIR!' counts as the same as 'noir': the same words"
    assert "'western' asks for something new (nearest earlier one: dot product " in said[3]
    close = Game(world, GameConfig(stage="cold", reward={"min_new_share": 0.0, "near_duplicate": 0.4}))
    near = _reasons(close, _play(close, ["western 1970s", "western 1980s"]), 1, "invocation")
    assert near.startswith("'western 1980s' counts as the same as 'western 1970s': dot product 0.5")
    strict = Game(world, GameConfig(stage="cold", reward={"min_new_share": 1.0}))
    assert "only " in _reasons(strict, _play(strict, ["noir", "noir 1990s"]), 1, "invocation")


def test_which_titles_earn_nothing_and_why(world: World) -> None:
    game = Game(world, GameConfig(stage="cold"))
    seen = _seen(game, ["noir", "western"])
    unseen = next(item.title for item in world.items[1:] if item.title not in seen)
    titles = [*seen[:7], seen[0], "Nowhere", unseen]
    said = _reasons(game, _play(game, ["noir", "western"], titles), 2, "invocation")
    assert said.split("\n") == [
        "process terms are worth the grounded share of the ranking, 70%",
        "unknown: Nowhere",
        f"duplicate: {seen[0]}",
        f"never retrieved: {unseen}",
    ]
    rec = Game(world, GameConfig())
    similarity = _reasons(rec, _play(rec, ["noir", "western"], titles), 2, "similarity").split("\n")
    assert [line.rpartition("(")[2] for line in similarity[-3:]] == ["duplicate)", "unknown title)", "never retrieved)"]


@pytest.mark.parametrize("reward", ["strict", "paper"])
def test_which_place_the_hit_took(world: World, reward: str) -> None:
    game = Game(world, GameConfig(reward=reward))
    target = world.display(game.start(0, "test").target).title
    others = [title for title in _seen(game, ["noir", "western"]) if title != target]
    said = _reasons(game, _play(game, ["noir"], [*others[:3], target, *others[3:9]]), 1, "outcome")
    assert ("at place 4: 1 (1 + 0.2 x 7)" if reward == "strict" else "is part of line 4") in said
    missed = _reasons(game, _play(game, ["noir"], others[:10]), 1, "outcome")
    assert ("not in the ranking" if reward == "strict" else "is in no line") in missed


@pytest.mark.parametrize(("reward", "said"), [("strict", "no_reasoning"), ("paper", "no reasoning before")])
def test_what_is_not_well_formed(world: World, reward: str, said: str) -> None:
    game = Game(world, GameConfig(reward=reward))
    episode = _play(game, ["noir"], _seen(game, ["noir"])[:10], reasoning="")
    assert said in _reasons(game, episode, 1, "format")
