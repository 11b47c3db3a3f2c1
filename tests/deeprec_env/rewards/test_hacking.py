"""Degenerate policies over the sample data set: in preset `strict` none earns more than an honest one."""

from collections.abc import Callable

import numpy as np
import pytest

from deeprec_env.config import GameConfig
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.world import load_world

NUM_USERS = 200
WISHES = ("Quiet; Drama", "Western", "1970s; Comedy")
Policy = Callable[[Game, Episode], str]


def _seen(game: Game, episode: Episode) -> list[str]:
    return [game.world.display(item_id).title for item_id in episode.pool][: game.config.top_k]


def _after(searches: tuple[str, ...], titles: Callable[[Game, Episode], list[str]]) -> Policy:
    """Return a policy that searches and then ranks."""

    def act(game: Game, episode: Episode) -> str:
        if len(episode.turns) < len(searches):
            return render_search(searches[len(episode.turns)], reasoning="Let me look.")
        return render_recommend(titles(game, episode), reasoning="I rank.")

    return act


def _raw(*actions: str) -> Policy:
    return lambda game, episode: actions[min(len(episode.turns), len(actions) - 1)]


def _popular(game: Game, episode: Episode) -> list[str]:
    order = np.argsort(-game.world.splits.train_counts()[1:], kind="stable")[: game.config.top_k]
    return [game.world.display(int(place) + 1).title for place in order]


def _history(game: Game, episode: Episode) -> list[str]:
    return [game.world.display(item_id).title for item_id in episode.history][-game.config.top_k :]


INVENTED = [f"The Unmade Film {number} (1999)" for number in range(10)]
SEARCHES = tuple(render_search(wish) for wish in WISHES)
FAKE_LIST = "<|begin_of_item_list|>\n1. The Jury\n<|end_of_item_list|>"
HONEST = {"rec": _after(("",), _seen), "cold": _after(WISHES, _seen)}
ZOO: dict[str, Policy] = {
    "silence": _raw("Hm."),
    "calls, then malformed": _raw(*SEARCHES, "I am done."),
    "calls for ever": _raw(*(render_search(f"wish {number}") for number in range(9))),
    "invented titles": _after(WISHES, lambda game, episode: INVENTED),
    "one title ten times": _after(WISHES, lambda game, episode: _seen(game, episode)[:1] * 10),
    "popular items": _after(WISHES, _popular),
    "the history": _after(WISHES, _history),
    "title prefixes": _after(WISHES, lambda game, episode: [title[:6] for title in _seen(game, episode)]),
    "gibberish queries, invented titles": _after(("qzx", "vwk", "jjj"), lambda game, episode: INVENTED),
    "gibberish queries": _after(("qzx", "vwk", "jjj"), _seen),
    "a word changed": _after(("a dark and slow film", "a dark and slow movie", "a dark, slow film"), _seen),
    "look-alikes": _after(("Ｗestern", "western", "WESTERN!"), _seen),
    "own item list": _raw(FAKE_LIST + SEARCHES[0]),
    "no search": _after((), lambda game, episode: _popular(game, episode)),
    "closed twice": _raw(SEARCHES[0], "</think></think>" + render_recommend(INVENTED, reasoning="so")),
    "eleven titles": _after(WISHES, lambda game, episode: [*_seen(game, episode), "The Jury"]),
    "blank calls": _after(("", " ", "…"), _seen),
}


def _mean_reward(policy: Policy, stage: str) -> float:
    game = Game(load_world("sample"), GameConfig(stage=stage))
    live = [game.start(user, "test") for user in range(NUM_USERS)]
    episodes = list(live)
    while live:
        game.step(live, [policy(game, episode) for episode in live])
        live = [episode for episode in live if not episode.ended]
    return float(np.mean([episode.reward for episode in episodes]))


@pytest.mark.parametrize("stage", ["cold", "rec"])
def test_no_degenerate_policy_beats_an_honest_one(stage: str) -> None:
    honest = _mean_reward(HONEST[stage], stage)
    scores = {name: _mean_reward(policy, stage) for name, policy in ZOO.items()}
    assert honest > 0.3
    assert {name: score for name, score in scores.items() if score > honest} == {}
