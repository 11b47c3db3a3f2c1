import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

import deeprec_env
from deeprec_env.env import DeepRecEnv
from deeprec_env.errors import EpisodeEnded
from deeprec_env.protocol import render_search
from deeprec_env.registration import read_envs
from deeprec_env.rendering import render_transcript, without_side
from deeprec_env.spaces import TextSpace
from deeprec_env.users import UserOrder
from deeprec_env.world import SAMPLE_FOLDER, World

SEARCH = "They like noir. <|begin_of_preference|> moody noir; 1990s <|end_of_preference|>"
HAS_SAMPLE = (SAMPLE_FOLDER / "dataset" / "manifest.json").exists()
needs_sample = pytest.mark.skipif(not HAS_SAMPLE, reason="the sample data set has not been generated")


def _make(world: World, **kwargs: Any) -> gym.Env:
    return gym.make("DeepRec-Sample-v0", world=world, **kwargs)


@pytest.mark.parametrize("stage", ["cold", "rec"])
@pytest.mark.parametrize("reward", ["strict", "paper"])
@pytest.mark.parametrize("render_mode", [None, "ansi", "human"])
def test_check_env_is_silent(world: World, stage: str, reward: str, render_mode: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(_make(world, stage=stage, reward=reward, render_mode=render_mode).unwrapped)


def test_all_ids_are_registered_by_names_only() -> None:
    assert set(read_envs()) <= set(gym.registry)
    for env_id in read_envs():
        spec = gym.spec(env_id)
        assert EnvSpec.from_json(spec.to_json()) == spec
        assert deeprec_env.register_envs() == list(read_envs())


def test_equal_seeds_give_equal_episodes(world: World) -> None:
    first, second = _make(world, split="test"), _make(world, split="test")
    assert first.reset(seed=3) == second.reset(seed=3)
    first.action_space.seed(5)
    for _ in range(50):
        action = first.action_space.sample()
        left, right = first.step(action), second.step(action)
        assert left == right
        if left[2] or left[3]:
            assert first.reset() == second.reset()


def test_users_come_without_replacement(world: World) -> None:
    env = _make(world)
    seen = [env.reset(seed=1 if i == 0 else None)[1]["user_index"] for i in range(24)]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]
    restricted = _make(world, users=[4, 7])
    assert {restricted.reset()[1]["user_index"] for _ in range(2)} == {4, 7}


def test_user_order_is_uniform() -> None:
    import numpy as np

    rng, counts = np.random.default_rng(0), np.zeros((4, 4))
    for _ in range(4000):
        order = UserOrder(np.arange(4))
        for place in range(4):
            counts[place, order.draw(rng)] += 1
    assert np.abs(counts - 1000).max() < 130


def test_users_by_rank(world: World) -> None:
    whole = set(range(12))
    near = {int(u) for u in _users(world, "top0_20")}
    far = {int(u) for u in _users(world, "top20_60")}
    assert near | far == whole
    assert not near & far
    with pytest.raises(ValueError, match="top0_100"):
        _make(world, users="top0-100")


def _users(world: World, users: str) -> list[int]:
    from deeprec_env.users import select_users

    return select_users(world, users, "test").tolist()


def test_user_is_chosen_by_option(world: World) -> None:
    env = _make(world)
    assert env.reset(options={"user_index": 5})[1]["user_id"] == "u5"
    assert env.reset(options={"user_id": "u7"})[1]["user_index"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_indx": 1}, "did you mean 'user_index'"),
        ({"user_index": 12}, r"0\.\.11"),
        ({"user_index": "a"}, "integer"),
        ({"user_id": "nobody"}, "'u0'"),
        ({"user_id": "u1", "user_index": 1}, "both"),
    ],
)
def test_wrong_reset_options(world: World, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _make(world).reset(options=options)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stage": "record"}, "did you mean 'rec'"),
        ({"split": "validation"}, "'valid'"),
        ({"max_turn": 3}, "did you mean 'max_turns'"),
        ({"splt": "test"}, "did you mean 'split'"),
        ({"reward": {"hit_weigt": 1}}, "did you mean 'hit_weight'"),
        ({"exclude_history": "no"}, "True or False"),
        ({"render_mode": "humn"}, "did you mean 'human'"),
        ({"users": [12]}, r"0\.\.11"),
        ({"users": []}, "at least one"),
    ],
)
def test_wrong_arguments(world: World, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepRecEnv(world=world, **kwargs)


@pytest.mark.parametrize("users", [3, 1.5, [1, "a"], [1.5], [[1], [2]]])
def test_users_are_names_or_indices(world: World, users: Any) -> None:
    with pytest.raises(TypeError, match="expected users to be 'all', a name such as 'top0_100', or user indices"):
        DeepRecEnv(world=world, users=users)


def test_arguments_that_do_not_fit_the_data_set(world: World) -> None:
    with pytest.raises(ValueError, match="no category for the data set 'sample'"):
        DeepRecEnv("sample", category="Video_Games")
    with pytest.raises(TypeError, match=r"as a dict, such as \{'user_index': 3\}, got 3"):
        DeepRecEnv(world=world).reset(options=3)  # type: ignore[arg-type]


def test_api_misuse(world: World) -> None:
    env = DeepRecEnv(world=world)
    with pytest.raises(gym.error.ResetNeeded):
        env.step("a")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="string"):
        env.step(1)  # type: ignore[arg-type]
    env.step("malformed")
    with pytest.raises(EpisodeEnded):
        env.step("again")
    with pytest.raises(ValueError, match="dataset or a world"):
        DeepRecEnv()


def test_pickle_in_mid_episode(world: World) -> None:
    env = DeepRecEnv(world=world, split="test")
    env.reset(seed=0)
    env.step(SEARCH)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.step(render_search("comedy")) == env.step(render_search("comedy"))
    assert copy.reset() == env.reset()


def test_rendering(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    env = _make(world, render_mode="ansi")
    env.reset(seed=0)
    env.step(SEARCH)
    env.step("junk")
    frame = env.render()
    assert isinstance(frame, str)
    assert "moody noir" in frame
    assert "end: malformed: no_action | total reward -1.000" in frame
    human = _make(world, render_mode="human")
    human.reset(seed=0)
    human.step(SEARCH)
    human.step("junk\nand more")
    shown = capsys.readouterr().out
    assert "moody noir" in shown
    plain = without_side(shown)
    assert plain.strip() == render_transcript(human.unwrapped.episode)  # type: ignore[attr-defined]
    sides = [line.partition("│")[0].strip() for line in shown.replace("\x1b", "").split("\n") if "│" in line]
    assert [side for side in sides if side] == ["[2m +0.000[0m", "[31m -1.000[0m"]


def test_gymnasium_wrappers(world: World) -> None:
    env = RecordEpisodeStatistics(TimeLimit(_make(world), max_episode_steps=2))
    env.reset(seed=0)
    env.step(SEARCH)
    *_, truncated, info = env.step(render_search("comedy"))
    assert truncated
    assert info["episode"]["l"] == 2
    env.close()
    env.close()


def test_space_takes_every_string_and_samples_actions(world: World) -> None:
    space = DeepRecEnv(world=world).action_space
    space.seed(0)
    samples = [space.sample() for _ in range(50)]
    assert any("<|begin_of_preference|>" in text for text in samples)
    assert any("<recommendation_list>" in text for text in samples)
    assert "Pokémon" in space
    assert 3 not in space
    assert space == TextSpace()
    assert eval(repr(space)) == space
    with pytest.raises(ValueError, match="mask"):
        space.sample(mask=[1])


def test_importing_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, deeprec_env; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_sample
def test_sample_works_at_once_in_a_fresh_process() -> None:
    code = (
        "import time\n"
        "import sys, gymnasium as gym, deeprec_env\n"
        "env = gym.make('DeepRec-Sample-v0', stage='rec', split='test')\n"
        "prompt, info = env.reset(seed=0)\n"
        f"observation, *_ = env.step({SEARCH!r})\n"
        "assert '<|end_of_item_list|>' in observation\n"
        "assert 'torch' not in sys.modules\n"
        "print(time.process_time())  # what else the machine does is no matter\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 2.0


@needs_sample
def test_sample_passes_the_checks() -> None:
    env = gym.make("DeepRec-Sample-v0")
    check_env(env.unwrapped)
    assert env.unwrapped.game.world is gym.make("DeepRec-Sample-v0", stage="cold").unwrapped.game.world  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    assert copy.game.world is env.unwrapped.game.world  # type: ignore[attr-defined]
    assert EnvSpec.from_json(env.spec.to_json()).kwargs == env.spec.kwargs  # type: ignore[union-attr]
    files = [path for path in SAMPLE_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
