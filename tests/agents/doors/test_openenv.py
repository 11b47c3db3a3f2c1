"""The game behind a real OpenEnv server on this machine, played by its own client."""

from __future__ import annotations

import asyncio
import json
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agents.play import play
from agents.trm_agent import TRMAgent
from deeprec_env.config import GameConfig
from deeprec_env.env import DeepRecEnv
from deeprec_env.errors import EpisodeEnded
from deeprec_env.game import Game
from deeprec_env.protocol import render_search
from deeprec_env.world import load_world

pytest.importorskip("openenv.core", reason="the extra openenv is not installed")

from agents.doors.openenv import GameClient, GameEnvironment, TurnAction, build_app

EXAMPLES = Path(__file__).parents[3] / "examples" / "doors"


@pytest.fixture(scope="module")
def game() -> Game:
    return Game(load_world("sample"), GameConfig(stage="rec"))


@pytest.fixture(scope="module")
def url(game: Game) -> Iterator[str]:
    import uvicorn

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(build_app(game, max_sessions=4), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(200):
        if server.started:
            break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_a_scripted_policy_earns_what_the_same_rule_earns_in_the_game(game: Game, url: str) -> None:
    example = runpy.run_path(str(EXAMPLES / "play_over_openenv.py"))
    rewards = example["main"]([url, "--users", "12"])
    episodes = play(game, TRMAgent(), range(12), split="test")
    assert rewards == pytest.approx([sum(turn.reward for turn in episode.turns) for episode in episodes])
    assert len(set(rewards)) > 2


def test_sessions_do_not_disturb_one_another_and_nothing_tells_the_target(game: Game, url: str) -> None:
    async def converse() -> list[str]:
        seen: list[str] = []
        async with GameClient(base_url=url) as one, GameClient(base_url=url) as two:
            starts = [await client.reset(split="test", index=i) for i, client in enumerate((one, two))]
            prompts = [start.observation.text for start in starts]
            assert prompts == [game.start(i, "test").prompt for i in range(2)]
            for client in (one, two, one):
                result = await client.step(TurnAction(text=render_search("quiet dramas", reasoning="I look.")))
                assert result.observation.action_kind == "search"
                assert len(result.observation.candidate_ids) == game.config.k
                assert not result.done
                seen.append(result.observation.model_dump_json())
            states = [await client.state() for client in (one, two)]
            assert [state.user_index for state in states] == [0, 1]
            assert [state.step_count for state in states] == [2, 1]
            last = await one.step(TurnAction(text="neither one nor the other"))
            assert last.done
            assert last.observation.malformed_reason == "no_action"
            assert last.reward == pytest.approx(sum(last.observation.reward_terms.values()))
            seen += [state.model_dump_json() for state in states]
        return seen

    for text in asyncio.run(converse()):
        assert not {"oracle", "target_id", "target_rank", "target_in_pool"} & set(json.loads(text))


def test_the_contracts_routes(game: Game, url: str) -> None:
    with httpx.Client(base_url=url) as client:
        schema = client.get("/schema").json()
        assert schema["action"]["required"] == ["text"]
        assert {"transcript", "user_id"} <= set(schema["state"]["properties"])
        assert client.get("/health").json()["status"] == "healthy"
        assert (
            client.post("/deeprec/num_tasks", json={"split": "test"}).json()["num_tasks"] == game.world.splits.num_users
        )
        task = client.post("/deeprec/task", json={"split": "test", "index": 7}).json()["task"]
        assert task["index"] == 7
        assert client.post("/deeprec/task", json={"split": "test", "index": 10**6}).status_code == 400


def test_the_seed_draws_the_users_of_the_gymnasium_environment(game: Game) -> None:
    session, env = GameEnvironment(game, split="valid"), DeepRecEnv(world=game.world, split="valid")
    for seed in (3, None, None):
        text, info = env.reset(seed=seed)
        assert session.reset(seed=seed).text == text
        assert session.state.user_id == info["user_id"]


def test_what_is_asked_wrongly_is_refused(game: Game) -> None:
    session = GameEnvironment(game)
    with pytest.raises(ValueError, match="split"):
        session.reset(split="tset")
    with pytest.raises(ValueError, match="user_index"):
        session.reset(index=10**6)
    session.reset(index=0)
    session.step(TurnAction(text="nothing"))
    with pytest.raises(EpisodeEnded):
        session.step(TurnAction(text="nothing"))
