"""A world plays the same whether its candidates come from this process, a service or a recording."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

import deeprec_env
from deeprec_env.game import Game
from deeprec_env.protocol import render_search
from deeprec_env.users import target_ranks
from deeprec_env.world import RETRIEVER_VARIABLE, World, load_world
from trm.errors import DataFormatError, ReplayMiss

SEARCHES = ("", "slow mysteries", "bright comedies")


def episodes(world: World, *, searches: tuple[str, ...] = SEARCHES) -> list[tuple[object, ...]]:
    game = Game(world)
    played = []
    for user in range(6):
        episode = game.start(user, "test")
        for text in searches:
            game.step([episode], [render_search(text, reasoning="So.")])
        played.append((episode.pool, episode.transcript, episode.reward))
    return played


def test_a_recording_plays_the_same_without_the_recommender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, file = load_world("sample"), tmp_path / "a.jsonl"
    recording = load_world("sample", retriever=f"record:{file}")
    assert episodes(recording) == episodes(here)
    ranks = target_ranks(recording, "train")
    monkeypatch.setattr("trm.frozen.load_frozen", lambda folder: pytest.fail("the recommender was loaded"))
    replayed = load_world("sample", retriever=f"replay:{file}")
    assert episodes(replayed) == episodes(here)
    assert target_ranks(replayed, "train").tolist() == ranks.tolist()
    assert replayed.fingerprint == here.fingerprint
    with pytest.raises(ReplayMiss, match="'something else'"):
        episodes(replayed, searches=("something else",))


def test_a_recording_without_its_vectors_says_so(tmp_path: Path) -> None:
    load_world("sample", retriever=f"record:{tmp_path / 'a.jsonl'}")
    (tmp_path / "a.jsonl.world.npz").unlink()
    with pytest.raises(DataFormatError, match=r"a\.jsonl\.world\.npz: expected the vectors of a recording"):
        load_world("sample", retriever=f"replay:{tmp_path / 'a.jsonl'}")


def test_environments_take_the_source_by_argument_and_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert deeprec_env
    env = gym.make("DeepRec-Sample-v0", retriever=f"record:{first}")
    env.reset(seed=0)
    env.step(render_search("slow mysteries"))
    env.close()
    monkeypatch.setenv(RETRIEVER_VARIABLE, f"record:{second}")
    envs = gym.make_vec("DeepRec-Sample-v0", num_envs=2)
    envs.reset(seed=0)
    envs.step([render_search("slow mysteries")] * 2)
    envs.close()
    assert len(first.read_text().splitlines()) == 2
    assert len(second.read_text().splitlines()) == 3


def test_a_replay_needs_neither_torch_nor_the_service_libraries(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    episodes(load_world("sample", retriever=f"record:{file}"))
    code = f"""
import sys
from deeprec_env.world import load_world
from tests.services.test_worlds_by_source import episodes
episodes(load_world("sample", retriever="replay:{file}"))
print([name for name in ("torch", "transformers", "fastapi", "httpx") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
