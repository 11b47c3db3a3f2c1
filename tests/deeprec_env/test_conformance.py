"""Gymnasium's own wrappers and vector envs take the registered ids as they take any other environment."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

import deeprec_env  # noqa: F401  (registers the environments)
from deeprec_env.protocol import render_search
from deeprec_env.vector_env import DeepRecVectorEnv

ENV_ID = "DeepRec-Sample-v0"
NUM_ENVS = 2
MODES = list(AutoresetMode)
SEARCH = render_search("Western", reasoning="Let me look.")


def _make() -> gym.Env:
    return gym.make(ENV_ID, split="test")


def _ours(mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> VectorEnv:
    return gym.make_vec(ENV_ID, num_envs=NUM_ENVS, split="test", autoreset_mode=mode)


def _sync(mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> VectorEnv:
    return SyncVectorEnv([_make] * NUM_ENVS, autoreset_mode=mode)


def _async(mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> VectorEnv:
    return AsyncVectorEnv([_make] * NUM_ENVS, shared_memory=False, autoreset_mode=mode)


def _trace(envs: VectorEnv, mode: AutoresetMode, num_steps: int = 6) -> list[Any]:
    """Play fixed actions, in which sub-environment 0 ends at each second step, and return all that comes back."""
    observations, _ = envs.reset(seed=5)
    trace: list[Any] = [tuple(observations)]
    for step in range(num_steps):
        observations, rewards, terminated, truncated, infos = envs.step((SEARCH if step % 2 == 0 else "junk", SEARCH))
        trace.append((tuple(observations), rewards.tolist(), terminated.tolist(), truncated.tolist()))
        trace.append([_plain(infos.get(key)) for key in ("final_obs", "malformed_reason", "candidate_ids")])
        ended = terminated | truncated
        if mode is AutoresetMode.DISABLED and ended.any():
            trace.append(tuple(envs.reset(options={"reset_mask": ended})[0]))
    return trace


def _plain(column: Any) -> Any:
    return column.tolist() if isinstance(column, np.ndarray) else column


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("build", [_sync, _async])
def test_vector_envs_agree_in_every_autoreset_mode(build: Callable[..., VectorEnv], mode: AutoresetMode) -> None:
    theirs, ours = build(mode), _ours(mode)
    try:
        assert isinstance(ours, DeepRecVectorEnv)
        assert theirs.metadata["autoreset_mode"] is ours.metadata["autoreset_mode"] is mode
        assert _trace(theirs, mode) == _trace(ours, mode)
    finally:
        theirs.close()


def test_what_each_autoreset_mode_shows_after_the_end() -> None:
    prompts = {}
    for mode in MODES:
        envs = _ours(mode)
        envs.reset(seed=5)
        observations, _, terminated, _, infos = envs.step(("junk", SEARCH))
        assert terminated.tolist() == [True, False]
        assert (observations[0] == "") is (mode is not AutoresetMode.SAME_STEP)
        assert ("final_obs" in infos) is (mode is AutoresetMode.SAME_STEP)
        if mode is AutoresetMode.NEXT_STEP:
            observations, rewards, terminated, _, _ = envs.step(("ignored", SEARCH))
            assert (rewards[0], terminated[0]) == (0.0, False)
        elif mode is AutoresetMode.DISABLED:
            observations, _ = envs.reset(options={"reset_mask": terminated})
        prompts[mode] = observations[0]
    assert len(set(prompts.values())) == 1
    assert next(iter(prompts.values())).endswith("<think>\n")


def test_shared_memory_is_refused_with_what_to_pass() -> None:
    with pytest.raises(ValueError, match=r"pass AsyncVectorEnv\(env_fns, shared_memory=False"):
        AsyncVectorEnv([_make] * NUM_ENVS)
    with pytest.raises(ValueError, match="vector_kwargs="):
        gym.make_vec(ENV_ID, num_envs=NUM_ENVS, vectorization_mode="async")


@pytest.mark.parametrize("kwargs", [{"vectorization_mode": "sync"}, {"vectorization_mode": "async"}])
def test_make_vec_in_the_other_modes(kwargs: dict[str, Any]) -> None:
    if kwargs["vectorization_mode"] == "async":
        kwargs["vector_kwargs"] = {"shared_memory": False}
    envs = gym.make_vec(ENV_ID, num_envs=NUM_ENVS, split="test", **kwargs)
    try:
        observations, _ = envs.reset(seed=5)
        assert tuple(observations) == _ours().reset(seed=5)[0]
    finally:
        envs.close()


def test_make_checks_silently_and_keeps_our_errors() -> None:
    env = _make()  # with the passive checker and the order enforcer
    with pytest.raises(gym.error.ResetNeeded):
        env.step(SEARCH)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert env.step(SEARCH)[0] in env.observation_space
    check_env(gym.make(ENV_ID, render_mode="ansi").unwrapped)


def test_record_episode_statistics() -> None:
    env = RecordEpisodeStatistics(_make())
    for _ in range(2):
        env.reset(seed=0)
        env.step(SEARCH)
        *_, terminated, truncated, info = env.step("junk")
        assert (terminated, truncated) == (True, False)
        assert info["episode"]["r"] == -1.0
        assert info["episode"]["l"] == 2
        assert "outcome" in info
    assert list(env.length_queue) == [2, 2]


@pytest.mark.parametrize("mode", MODES)
def test_record_episode_statistics_of_a_vector(mode: AutoresetMode) -> None:
    envs = RecordVectorStatistics(_ours(mode))
    envs.reset(seed=0)
    envs.step((SEARCH, SEARCH))
    *_, infos = envs.step(("junk", SEARCH))
    assert infos["_episode"].tolist() == [True, False]
    assert infos["episode"]["r"].tolist() == [-1.0, 0.0]
    assert infos["episode"]["l"].tolist() == [2, 0]


def test_time_limit() -> None:
    limited = gym.make(ENV_ID, max_episode_steps=2)
    for env in (limited, TimeLimit(_make(), max_episode_steps=2)):
        env.reset(seed=0)
        assert env.step(SEARCH)[2:4] == (False, False)
        assert env.step(render_search("Comedy"))[2:4] == (False, True)
        env.reset()
        assert env.step("junk")[2:4] == (True, False)
    assert limited.spec is not None
    assert limited.spec.max_episode_steps == 2


@pytest.mark.parametrize("build", [_make, _ours, _sync, _async])
@pytest.mark.parametrize("started", [False, True])
def test_closing_twice_does_no_harm(build: Callable[..., Any], started: bool) -> None:
    env = build()
    if started:
        env.reset(seed=0)
    env.close()
    env.close()
