"""The zoo of degenerate policies: in preset `strict` none earns more than an honest one, in `paper` some do."""

import os
from pathlib import Path

import pytest

from deeprec_env.world import World, load_world
from tests.deeprec_env.rewards.real_world import movielens_world
from tests.deeprec_env.rewards.zoo import HONEST, ZOO, earns_more, mean_reward, user_rewards
from trm.errors import DatasetNotPrepared

STAGES = ("cold", "rec")
AS_GOOD = {
    # Their first query asks for what the honest one asks for, and they rank what was found.
    "rec": {"blank queries", "a word changed", "words shuffled", "every attribute as one query"},
    # The stage pays for different searches and for ranking what they found; what they ask for is left to stage rec.
    "cold": {"gibberish queries"},
}
"""Policies that do what is paid for: they may earn what the honest one earns, and more only by the users' luck."""
PAPER_HOLES = {
    "rec": ("one title ten times", "one title in ten spellings", "five titles twice"),
    "cold": ("gibberish queries, invented titles", "blank queries"),
}


def _check(world: World, stage: str, *, num_users: int) -> None:
    """Assert that the zoo earns less than the honest policy, and the ungrounded ones much less."""
    honest = user_rewards(world, HONEST[stage], stage=stage, num_users=num_users)
    rewards = {name: user_rewards(world, policy, stage=stage, num_users=num_users) for name, policy in ZOO.items()}
    scores = {name: sum(row) / len(row) for name, row in rewards.items()}
    mean = sum(honest) / len(honest)
    assert mean > 0.3
    assert {name for name, score in scores.items() if score >= mean} <= AS_GOOD[stage]
    assert [name for name, row in rewards.items() if earns_more(row, honest)] == []
    assert max(score for name, score in scores.items() if "malformed" in name or "invented" in name) < mean / 2


@pytest.mark.parametrize("stage", STAGES)
def test_no_degenerate_policy_beats_an_honest_one(stage: str) -> None:
    _check(load_world("sample"), stage, num_users=120)


@pytest.fixture(scope="module")
def movielens() -> World:
    """MovieLens-100K with a recommender that needs no training."""
    folder = Path(os.environ.get("DEEPREC_DATA", ""), "ml-100k")
    if not (folder / "u.data").is_file():
        pytest.skip("DEEPREC_DATA does not name a folder with GroupLens' ml-100k")
    return movielens_world(folder)


@pytest.mark.parametrize(("stage", "num_users"), [("cold", 100), ("rec", 150)])
def test_nor_does_it_on_real_data(movielens: World, stage: str, num_users: int) -> None:
    _check(movielens, stage, num_users=num_users)


def test_real_data_have_the_holes_of_paper_too(movielens: World) -> None:
    honest, hole = (
        mean_reward(movielens, policy, stage="rec", reward="paper", num_users=150)
        for policy in (HONEST["rec"], ZOO["one query three times"])
    )
    assert hole > honest


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_nor_does_it_on_movielens_with_its_trm(stage: str) -> None:
    """All test users: among 200 chance alone puts several policies above the honest one, and as many below."""
    if "DEEPREC_HOME" not in os.environ:
        pytest.skip("DEEPREC_HOME does not name a folder with prepared data")
    try:
        world = load_world("ml-100k", auto_prepare=False)
    except DatasetNotPrepared as error:
        pytest.skip(f"MovieLens-100K is not prepared: {error}")
    _check(world, stage, num_users=world.splits.num_users)


@pytest.mark.parametrize("stage", STAGES)
def test_the_zoo_finds_the_holes_of_paper(stage: str) -> None:
    world = load_world("sample")
    honest = mean_reward(world, HONEST[stage], stage=stage, reward="paper")
    for name in PAPER_HOLES[stage]:
        assert mean_reward(world, ZOO[name], stage=stage, reward="paper") > honest, name


def test_the_zoo_is_large() -> None:
    assert len(ZOO) >= 15


@pytest.mark.parametrize("stage", STAGES)
def test_calls_without_a_grounded_ranking_are_worth_nothing(stage: str) -> None:
    world = load_world("sample")
    for name in ("invented titles", "gibberish queries, invented titles", "orders to the recommender"):
        assert mean_reward(world, ZOO[name], stage=stage, num_users=50) == 0.0
    for name in ("calls, then malformed", "calls for ever", "silence"):
        assert mean_reward(world, ZOO[name], stage=stage, num_users=50) == -1.0
