"""The verifiers environment, played by a scripted model behind an endpoint on this machine."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agents.play import play
from agents.trm_agent import TRMAgent
from deeprec_env.game import Game
from deeprec_env.world import load_world
from tests.agents.endpoints import Endpoint

pytest.importorskip("verifiers.v1", reason="the extra verifiers is not installed")

import verifiers.v1 as vf
from verifiers.v1.utils.loaders import load_environment, resolve_env_config

PACKAGE = Path(__file__).parents[3] / "examples" / "doors" / "verifiers_environment"

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""From a request's body to a choice of the completion."""


@pytest.fixture(scope="module", autouse=True)
def package() -> Iterator[None]:
    sys.path.insert(0, str(PACKAGE))
    yield
    sys.path.remove(str(PACKAGE))
    sys.modules.pop("deeprec_game", None)


class Model:
    """An OpenAI-compatible endpoint on 127.0.0.1."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                model.requests.append(body)
                choice = {"index": 0, "logprobs": None, **answer(body)}
                usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
                reply = {"id": "1", "object": "chat.completion", "created": int(time.time()), "model": "tiny"}
                content = json.dumps({**reply, "choices": [choice], "usage": usage}).encode()
                self.send_response(500 if choice["finish_reason"] == "fail" else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def by_the_book(body: dict[str, Any]) -> dict[str, Any]:
    """Search once without a wish, keep the order of what comes back; the stop string is cut off, as hosted ones do."""
    (choice,) = Endpoint()._reply(body)["choices"]
    return dict(choice)


def run_tasks(answer: Answer, *, num_tasks: int = 1, **player: Any) -> tuple[list[vf.Episode], Model]:
    model = Model(answer)
    taskset = {"id": "deeprec-game", "dataset": "sample", "split": "test"}
    env = load_environment(resolve_env_config({"taskset": taskset, "player": player}))
    client = vf.EvalClientConfig(base_url=model.url, api_key_var="NO_SUCH_VARIABLE")
    context = vf.ModelContext(model="tiny", client=client)

    async def run() -> list[vf.Episode]:
        async with env.serving():
            tasks = list(env.taskset.take(num_tasks))
            return list(await asyncio.gather(*(env.run_episode(task, context) for task in tasks)))

    try:
        return asyncio.run(run()), model
    finally:
        model.close()


def test_a_scripted_model_earns_what_the_same_rule_earns_in_the_game() -> None:
    found, model = run_tasks(by_the_book, num_tasks=6)
    game = Game(load_world("sample"))
    expected = play(game, TRMAgent(), range(6), split="test")
    for episode, played in zip(found, expected, strict=True):
        assert episode.ok, episode.errors
        (trace,) = episode.traces
        assert trace.reward == pytest.approx(sum(turn.reward for turn in played.turns))
        assert trace.metrics["num_searches"] == 1
        assert trace.metrics["format_ok"] == 1
        assert trace.metrics["hit"] == float(played.outcome is not None and played.outcome.hit_rank > 0)
        terms = sum(value for name, value in trace.metrics.items() if name.startswith("reward/"))
        assert terms == pytest.approx(trace.reward)
        assert trace.num_turns == 2
    assert len({episode.traces[0].reward for episode in found}) > 2
    assert len(model.requests) == 12
    for body in model.requests:
        assert body["stop"] == ["<|end_of_preference|>", "</recommendation_list>"]
        assert [message["role"] for message in body["messages"]] in (
            ["system", "user"],
            ["system", "user", "assistant", "user"],
        )
    prompts = [played.prompt for played in expected]
    assert all(sum(body["messages"][1]["content"] in prompt for prompt in prompts) == 1 for body in model.requests)


def test_a_cut_answer_is_not_completed_and_ends_the_episode_as_malformed() -> None:
    ((episode,), _) = run_tasks(lambda body: {**by_the_book(body), "finish_reason": "length"})
    (trace,) = episode.traces
    assert trace.metrics["format_ok"] == 0
    assert trace.reward == -1


def test_a_limit_of_turns_ends_the_episode_as_malformed() -> None:
    def searching(body: dict[str, Any]) -> dict[str, Any]:
        opening = [message for message in body["messages"] if message["role"] != "assistant"][:2]
        return by_the_book({"messages": opening})

    ((episode,), _) = run_tasks(searching, max_turns=3)
    (trace,) = episode.traces
    assert trace.stop_condition == "max_turns"
    assert trace.metrics["num_searches"] == 3
    assert trace.metrics["format_ok"] == 0
    assert trace.reward == -1


def test_an_error_of_the_model_is_no_episode() -> None:
    ((episode,), _) = run_tasks(lambda _: {"message": {"role": "assistant", "content": ""}, "finish_reason": "fail"})
    assert not episode.ok
    (trace,) = episode.traces
    assert trace.errors
    assert "episode_reward" not in trace.rewards


def test_tasks_are_the_users_of_the_split() -> None:
    env = load_environment(resolve_env_config({"taskset": {"id": "deeprec-game", "split": "valid"}}))
    splits = load_world("sample").splits
    tasks = list(env.taskset)
    assert [task.data.user_id for task in tasks] == list(splits.user_ids)
    assert len({task.key for task in tasks}) == splits.num_users
