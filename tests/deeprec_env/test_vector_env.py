from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from deeprec_env.env import DeepRecEnv
from deeprec_env.errors import EpisodeEnded
from deeprec_env.protocol import render_search
from deeprec_env.vector_env import DeepRecVectorEnv
from deeprec_env.world import World
from tests.fakes import FakeEncoder, FakeRetriever, build_fake_world

MODES = list(AutoresetMode)


def _sync(world: World, mode: AutoresetMode, num_envs: int, **kwargs: Any) -> SyncVectorEnv:
    makers = [lambda: DeepRecEnv(world=world, **kwargs) for _ in range(num_envs)]
    return SyncVectorEnv(makers, autoreset_mode=mode)


def _equal(left: Any, right: Any) -> bool:
    """Gymnasium's data_equivalence, but for arrays of objects."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.tolist() == right.tolist()
    return bool(data_equivalence(left, right))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", ["cold", "rec"])
def test_equals_single_envs(world: World, mode: AutoresetMode, stage: str) -> None:
    num_envs = 4
    ours = DeepRecVectorEnv(num_envs, world=world, stage=stage, autoreset_mode=mode)
    theirs = _sync(world, mode, num_envs, stage=stage)
    left, right = ours.reset(seed=7), theirs.reset(seed=7)
    assert left[0] == right[0]
    assert _equal(left[1], right[1])
    ours.single_action_space.seed(1)
    for _ in range(40):
        actions = tuple(ours.single_action_space.sample() for _ in range(num_envs))
        left, right = ours.step(actions), theirs.step(actions)
        assert left[0] == right[0]
        for ours_array, theirs_array in zip(left[1:4], right[1:4], strict=True):
            assert ours_array.dtype == theirs_array.dtype
            assert ours_array.tolist() == theirs_array.tolist()
        assert _equal(left[4], right[4])
        ended = left[2] | left[3]
        if mode is AutoresetMode.DISABLED and ended.any():
            left, right = (env.reset(options={"reset_mask": ended.copy()}) for env in (ours, theirs))
            assert left[0] == right[0]
            assert _equal(left[1], right[1])


def test_make_vec_uses_it_silently(world: World) -> None:
    envs = gym.make_vec("DeepRec-Sample-v0", num_envs=3, world=world, split="test", autoreset_mode="SameStep")
    assert isinstance(envs, DeepRecVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observations, infos = envs.reset(seed=[4, 4, 4])
    assert len(set(observations)) == 1
    assert observations in envs.observation_space
    assert infos["user_index"].tolist() == [infos["user_index"][0]] * 3
    assert envs.action_space.sample() in envs.action_space
    envs.close()
    envs.close()


def test_one_call_of_retriever_and_encoder_a_step(world: World) -> None:
    envs = DeepRecVectorEnv(8, world=world, stage="cold")
    envs.reset(seed=0)
    assert isinstance(world.retriever, FakeRetriever)
    assert isinstance(world.encoder, FakeEncoder)
    before = world.encoder.num_calls
    for turn in range(2):
        envs.step([render_search(f"noir {turn} {place}") for place in range(8)])
    assert (world.retriever.num_calls, world.encoder.num_calls - before) == (2, 2)


def test_final_observation_in_same_step(world: World) -> None:
    envs = DeepRecVectorEnv(2, world=world, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=0)
    observations, rewards, terminated, _, infos = envs.step(["junk", render_search("noir")])
    assert observations[0].endswith("<think>\n")
    assert (rewards.tolist(), terminated.tolist()) == ([-1.0, 0.0], [True, False])
    assert infos["final_obs"].tolist() == ["", None]
    assert infos["_final_info"].tolist() == [True, False]
    assert infos["final_info"]["malformed_reason"][0] == "no_action"


def test_users_are_chosen_per_env(world: World) -> None:
    envs = DeepRecVectorEnv(3, world=world, autoreset_mode="DISABLED")
    assert envs.reset(options={"user_index": [5, 6, 7]})[1]["user_id"].tolist() == ["u5", "u6", "u7"]
    before = envs.episodes
    mask = np.array([False, True, False])
    observations, infos = envs.reset(options={"reset_mask": mask, "user_index": 2})
    assert envs.episodes[0] is before[0]
    assert infos["_user_index"].tolist() == mask.tolist()
    assert infos["user_index"][1] == 2
    assert observations[1] == envs.episodes[1].prompt  # type: ignore[union-attr]


def test_disabled_mode_wants_a_reset(world: World) -> None:
    envs = DeepRecVectorEnv(2, world=world, autoreset_mode="DISABLED")
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(["a", "b"])
    envs.reset(seed=0)
    envs.step(["junk", render_search("noir")])
    with pytest.raises(EpisodeEnded):
        envs.step(["junk", "junk"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda env: env.reset(seed=[1]), ValueError, "2 seeds"),
        (lambda env: env.reset(options={"user_indx": 1}), ValueError, "did you mean"),
        (lambda env: env.reset(options={"user_index": [1, 2, 3]}), ValueError, "2 of them"),
        (lambda env: env.reset(options={"reset_mask": [True, True]}), TypeError, "bools"),
        (lambda env: env.reset(options={"reset_mask": np.zeros(2, dtype=bool)}), ValueError, "True"),
        (lambda env: env.step("ab"), TypeError, "2 texts"),
        (lambda env: env.step(["a"]), ValueError, "2 actions"),
        (lambda env: env.step({0: "a", 1: "b"}), TypeError, "2 texts"),
        (lambda env: env.reset(seed="ab"), TypeError, "2 of them"),
        (lambda env: env.reset(options={"reset_msk": 1}), ValueError, "did you mean 'reset_mask'"),
        (lambda env: env.reset(options=[1]), TypeError, "as a dict"),
    ],
)
def test_misuse(world: World, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(DeepRecVectorEnv(2, world=world))


def test_wrong_arguments(world: World) -> None:
    with pytest.raises(ValueError, match="did you mean 'SameStep'"):
        DeepRecVectorEnv(2, world=world, autoreset_mode="SameStp")
    for num_envs in (0, 2.5, True):
        with pytest.raises(ValueError, match="num_envs to be an integer of at least 1"):
            DeepRecVectorEnv(num_envs, world=world)  # type: ignore[arg-type]


def test_async_without_shared_memory(world: World) -> None:
    envs = AsyncVectorEnv([lambda: DeepRecEnv(world=build_fake_world())] * 2, shared_memory=False)
    try:
        observations, _ = envs.reset(seed=3)
        alone = DeepRecEnv(world=world)
        assert observations[0] == alone.reset(seed=3)[0]
        after, *_ = envs.step((render_search("noir"), "junk"))
        assert after == (alone.step(render_search("noir"))[0], "")
    finally:
        envs.close()


def test_rendering(world: World) -> None:
    envs = DeepRecVectorEnv(2, world=world, render_mode="ansi")
    assert envs.render() == ("", "")
    envs.reset(seed=0)
    frames = envs.render()
    assert frames is not None
    assert all("Assistant:" in frame for frame in frames)
