"""Every registered id, alone and as a vector, under all that Gymnasium asks of an environment.

An id whose data are not prepared (DEEPREC_HOME) plays on the sample instead; for Amazon the category
Industrial_and_Scientific is taken.
"""

import logging
import os
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.registration import read_envs
from deeprec_env.vector_env import DeepRecVectorEnv
from trm.errors import DatasetNotPrepared

OVERRIDES: dict[str, dict[str, Any]] = {"DeepRec-Amazon-v0": {"category": "Industrial_and_Scientific"}}
NUM_STEPS = 50
NUM_ENVS = 3


def _kwargs(env_id: str) -> dict[str, Any]:
    """Return what makes the id without fetching or training anything."""
    kwargs = {"split": "test", "auto_prepare": False, **OVERRIDES.get(env_id, {})}
    if env_id == "DeepRec-Sample-v0":
        return kwargs
    try:
        if "DEEPREC_HOME" in os.environ:
            gym.make(env_id, **kwargs).close()
            return kwargs
    except DatasetNotPrepared as error:
        logging.getLogger(__name__).info("%s plays on the sample: %s", env_id, error)
    return kwargs | {"dataset": "sample", "category": None}


@pytest.fixture(scope="module", params=list(read_envs()))
def made(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, _kwargs(request.param)


def _make(made: tuple[str, dict[str, Any]], **kwargs: Any) -> gym.Env:
    return gym.make(made[0], **made[1], **kwargs)


def _actions(env: gym.Env, count: int) -> list[str]:
    """Return searches for real attributes, now and then a ranking or nonsense."""
    env.action_space.seed(3)
    actions = [env.action_space.sample() for _ in range(count)]
    actions[20:26] = [render_search(f"wish {i}") for i in range(5)] + [render_recommend(["x"] * 10, reasoning="so")]
    actions[30] = "nonsense"
    return actions


def _vector_actions(made: tuple[str, dict[str, Any]], num_steps: int) -> list[tuple[str, ...]]:
    actions = _actions(_make(made), NUM_STEPS + NUM_ENVS)
    return [tuple(actions[step : step + NUM_ENVS]) for step in range(num_steps)]


@pytest.mark.parametrize("stage", ["cold", "rec"])
def test_the_checkers_are_silent(made: tuple[str, dict[str, Any]], stage: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(_make(made, stage=stage, render_mode="ansi").unwrapped)
        env = _make(made, stage=stage)  # with the passive checker
        env.reset(seed=0)
        env.step(render_search("something light"))


@pytest.mark.parametrize(("stage", "reward"), [("cold", "strict"), ("rec", "strict"), ("rec", "paper")])
def test_equal_seeds_give_equal_episodes(made: tuple[str, dict[str, Any]], stage: str, reward: str) -> None:
    first, second = (_make(made, stage=stage, reward=reward) for _ in range(2))
    assert data_equivalence(first.reset(seed=7), second.reset(seed=7), exact=True)
    for action in _actions(first, NUM_STEPS):
        left, right = first.step(action), second.step(action)
        assert data_equivalence(left, right, exact=True)
        assert left[4] is not right[4]
        if left[2] or left[3]:
            assert data_equivalence(first.reset(), second.reset(), exact=True)


def test_the_spec_comes_back_from_json(made: tuple[str, dict[str, Any]]) -> None:
    env = _make(made)
    assert env.spec is not None
    again = EnvSpec.from_json(env.spec.to_json())
    assert again == env.spec
    assert gym.make(again).reset(seed=1)[0] == env.reset(seed=1)[0]


def test_a_pickled_copy_plays_on(made: tuple[str, dict[str, Any]]) -> None:
    env = _make(made).unwrapped
    env.reset(seed=0)
    env.step(render_search("something light"))
    copy = pickle.loads(pickle.dumps(env))
    assert copy.game.world is env.game.world  # type: ignore[attr-defined]
    action = render_search("something dark")
    assert data_equivalence(copy.step(action), env.step(action), exact=True)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_vector_env_comes_back_from_json_and_pickle(made: tuple[str, dict[str, Any]], mode: AutoresetMode) -> None:
    envs = gym.make_vec(made[0], num_envs=NUM_ENVS, autoreset_mode=mode, stage="cold", **made[1])
    assert envs.spec is not None
    again = EnvSpec.from_json(envs.spec.to_json())
    assert again == envs.spec
    remade = gym.make_vec(again)
    assert remade.metadata == envs.metadata
    assert _same(remade.reset(seed=4), envs.reset(seed=4))
    copy = pickle.loads(pickle.dumps(envs))
    for actions in _vector_actions(made, 4):
        left, middle, right = (each.step(actions) for each in (envs, remade, copy))
        assert _same(left, middle)
        assert _same(left, right)
        ended = left[2] | left[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            for each in (envs, remade, copy):
                each.reset(options={"reset_mask": ended.copy()})


def test_equal_seeds_give_equal_vectors(made: tuple[str, dict[str, Any]]) -> None:
    first, second = (gym.make_vec(made[0], num_envs=NUM_ENVS, **made[1]) for _ in range(2))
    assert _same(first.reset(seed=7), second.reset(seed=7))
    for actions in _vector_actions(made, NUM_STEPS):
        assert _same(first.step(actions), second.step(actions))


def test_rendering_and_closing_twice(made: tuple[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ("ansi", "human"):
        env = _make(made, render_mode=mode)
        env.reset(seed=0)
        env.step(render_search("something light"))
        frame = env.render()
        shown = frame if mode == "ansi" else capsys.readouterr().out
        assert isinstance(shown, str)
        assert "something light" in shown
        assert "reward +0.000" in shown
        assert ("\x1b[" in shown) is (mode == "human")
        env.close()
        env.close()


def test_wrappers(made: tuple[str, dict[str, Any]]) -> None:
    env = RecordEpisodeStatistics(TimeLimit(_make(made), max_episode_steps=2))
    env.reset(seed=0)
    env.step(render_search("something light"))
    *_, truncated, info = env.step(render_search("something dark"))
    assert truncated
    assert info["episode"]["l"] == 2


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_vector_env_is_n_single_ones(made: tuple[str, dict[str, Any]], mode: AutoresetMode) -> None:
    ours = gym.make_vec(made[0], num_envs=NUM_ENVS, autoreset_mode=mode, stage="cold", **made[1])
    assert isinstance(ours, DeepRecVectorEnv)
    theirs = SyncVectorEnv([lambda: _make(made, stage="cold")] * NUM_ENVS, autoreset_mode=mode)
    assert _same(ours.reset(seed=5), theirs.reset(seed=5))
    for actions in _vector_actions(made, NUM_STEPS):
        left, right = (envs.step(actions) for envs in (ours, theirs))
        assert _same(left, right)
        ended = left[2] | left[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            left, right = (envs.reset(options={"reset_mask": ended.copy()}) for envs in (ours, theirs))
            assert _same(left, right)
    for envs in (ours, theirs):
        envs.close()
        envs.close()


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and _same(left.tolist(), right.tolist())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def test_users_are_chosen_one_by_one_and_reset_in_part(made: tuple[str, dict[str, Any]]) -> None:
    envs = gym.make_vec(made[0], num_envs=NUM_ENVS, autoreset_mode=AutoresetMode.DISABLED, **made[1])
    prompts, infos = envs.reset(options={"user_index": [2, 1, 0]})
    assert infos["user_index"].tolist() == [2, 1, 0]
    env = _make(made)
    assert prompts == tuple(env.reset(options={"user_index": user})[0] for user in (2, 1, 0))
    *_, terminated, _, _ = envs.step(("junk", render_search("something light"), "junk"))
    observations, infos = envs.reset(options={"reset_mask": terminated, "user_index": [5, 6, 7]})
    assert infos["_user_index"].tolist() == terminated.tolist() == [True, False, True]
    assert infos["user_index"].tolist() == [5, 0, 7]
    assert [text.endswith("<think>\n") for text in observations] == [True, False, True]


def test_groups_have_equal_episodes(made: tuple[str, dict[str, Any]]) -> None:
    envs = gym.make_vec(made[0], num_envs=4, **made[1])
    prompts, infos = envs.reset(seed=[9] * 4)
    assert len(set(prompts)) == len(set(infos["user_index"].tolist())) == 1
    *_, infos = envs.step((render_search("something light"),) * 4)
    assert len(set(infos["candidate_ids"])) == 1


def test_vector_statistics(made: tuple[str, dict[str, Any]]) -> None:
    envs = RecordVectorStatistics(gym.make_vec(made[0], num_envs=2, **made[1]))
    envs.reset(seed=0)
    *_, infos = envs.step(("junk", render_search("something light")))
    assert infos["episode"]["r"].tolist() == [-1.0, 0.0]


def test_async_workers_play_the_same(made: tuple[str, dict[str, Any]]) -> None:
    makers = [lambda: _make(made)] * 2
    envs: VectorEnv = AsyncVectorEnv(makers, shared_memory=False)
    try:
        prompts, _ = envs.reset(seed=3)
        assert tuple(prompts) == gym.make_vec(made[0], num_envs=2, **made[1]).reset(seed=3)[0]
    finally:
        envs.close()
    with pytest.raises(ValueError, match=r"pass AsyncVectorEnv\(env_fns, shared_memory=False"):
        AsyncVectorEnv(makers)
