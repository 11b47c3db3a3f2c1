from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the chat agent needs the extra chat")

import httpx

from agents import chat_client
from agents.base import AgentError, StreamingAgent, TokenCounter
from agents.chat_agent import ChatAgent, read_action
from agents.chat_client import BudgetSpent, ChatReply, EndpointError
from agents.cli.common import game_for
from agents.evaluate import evaluate
from agents.play import play
from agents.registry import make_agent
from agents.trm_agent import TRMAgent
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from tests.agents.endpoints import Endpoint
from tests.fakes import build_fake_world

URL = "http://models.test/v1"
KEY = "sk-secret-1234"


@pytest.fixture
def game() -> Game:
    return Game(build_fake_world(num_users=24), GameConfig())


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No test waits; what would have been waited is kept."""
    waited: list[float] = []
    plain = chat_client.ChatClient.__init__
    monkeypatch.setattr(
        chat_client.ChatClient,
        "__init__",
        lambda self, *args, **kwargs: plain(self, *args, **kwargs, sleep=waited.append),
    )
    return waited


@pytest.fixture
def build() -> Iterator[Any]:
    made: list[ChatAgent] = []

    def build_agent(endpoint: Endpoint, **options: Any) -> ChatAgent:
        made.append(ChatAgent(URL, transport=endpoint.transport, **options))
        return made[-1]

    yield build_agent
    for agent in made:
        agent.close()


def ranks(game: Game, agent: Any, users: range = range(24)) -> list[int]:
    return [row.rank for row in evaluate(game, [agent], users).agents[0].rows]


@pytest.mark.parametrize("mode", ["turns", "continue"])
@pytest.mark.parametrize("stop_reason", [True, False])
def test_a_model_that_keeps_the_order_plays_like_the_trm(game: Game, build: Any, mode: str, stop_reason: bool) -> None:
    endpoint = Endpoint(stop_reason=stop_reason)
    agent = build(endpoint, mode=mode)
    assert isinstance(agent, StreamingAgent)
    assert isinstance(agent, TokenCounter)
    (result,) = evaluate(game, [agent], range(24)).agents
    assert [row.rank for row in result.rows] == ranks(game, TRMAgent())
    assert all(row.well_formed and row.num_searches == 1 and row.tokens == 14 for row in result.rows)
    assert len(endpoint.requests) == 48


def _after(barrier: threading.Barrier) -> None:
    barrier.wait()


def test_as_many_are_asked_at_once_as_may_be(game: Game, build: Any) -> None:
    barrier = threading.Barrier(4, timeout=30)  # nobody is answered before four are there
    endpoint = Endpoint(fault=lambda number: _after(barrier) if number < 4 else None)
    episodes = play(game, build(endpoint, concurrency=4), range(24), split="test")
    assert all(episode.well_formed for episode in episodes)
    assert endpoint.max_at_once == 4


def test_turns_are_messages(game: Game, build: Any) -> None:
    endpoint = Endpoint()
    play(game, build(endpoint, max_tokens=99, temperature=0.5, extra={"top_p": 0.9, "seed": None}), [3], split="test")
    first, second = endpoint.requests
    assert {name: first[name] for name in ("model", "max_tokens", "temperature", "top_p")} == {
        "model": "tiny",
        "max_tokens": 99,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    assert "seed" not in first
    assert first["stop"] == ["<|end_of_preference|>", "</recommendation_list>"]
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]
    system, question, action, observation = (message["content"] for message in second["messages"])
    assert "never write <think>" in system
    assert question.startswith("You recommend items")
    assert "Assistant:" not in question
    assert "<think>" not in question.splitlines()[-1]
    assert action == "I look.\n<|begin_of_preference|> <|end_of_preference|>"
    assert observation.startswith("<|begin_of_item_list|>\n1. ")
    assert observation.endswith("<|end_of_item_list|>")
    assert second["messages"][:2] == first["messages"]


def test_a_message_that_is_continued_is_the_transcript(game: Game, build: Any) -> None:
    endpoint = Endpoint(stop_reason=True)
    (episode,) = play(game, build(endpoint, mode="continue"), [3], split="test")
    first, second = endpoint.requests
    assert first["messages"][1] == {"role": "assistant", "content": "<think>\n"}
    question, answer = (message["content"] for message in second["messages"])
    before_last = episode.prompt + episode.turns[0].action + episode.turns[0].observation
    assert f"User:\n{question}\n\nAssistant:\n{answer}" == before_last
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert second["skip_special_tokens"] is False


def test_seeds_differ_by_episode_and_turn_and_come_again(game: Game, build: Any) -> None:
    seeds = []
    for _ in range(2):
        endpoint = Endpoint()
        play(game, build(endpoint, concurrency=1), range(4), split="test", batch_size=2)
        seeds.append(sorted(request["seed"] for request in endpoint.requests))
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 8
    assert all(0 <= seed < 2**31 for seed in seeds[0])


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        (ChatReply("a <|begin_of_preference|> b", "stop"), "a <|begin_of_preference|> b<|end_of_preference|>"),
        (ChatReply("a <|begin_of_preference|> b", "length"), "a <|begin_of_preference|> b"),
        (ChatReply("a <|begin_of_preference|> b", "stop", says_stop=True), "a <|begin_of_preference|> b"),
        (
            ChatReply("x <|begin_of_preference|> y", "stop", "<|end_of_preference|>", True),
            "x <|begin_of_preference|> y<|end_of_preference|>",
        ),
        (ChatReply("x<|end_of_preference|>", "stop", "<|end_of_preference|>", True), "x<|end_of_preference|>"),
        (
            ChatReply("</think> <recommendation_list> 1. A", "stop"),
            "</think> <recommendation_list> 1. A</recommendation_list>",
        ),
        (
            ChatReply("all <recommendation_list></recommendation_list>", "stop"),
            "all <recommendation_list></recommendation_list>",
        ),
        (ChatReply("\n<think>I see", "stop"), "I see"),
        (ChatReply("I <think>", "stop"), "I <think>"),
        (ChatReply("", "context"), ""),
    ],
)
def test_a_reply_is_taken_as_it_is_but_for_its_stop_string(reply: ChatReply, action: str) -> None:
    assert read_action(reply) == action


def _error(status: int, message: str = "no", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "code": "c"}}, headers=headers)


def test_failures_are_tried_again_with_growing_waits(game: Game, build: Any, waits: list[float]) -> None:
    faults: list[Any] = [_error(429, **{"retry-after": "17"}), _error(503), httpx.ReadTimeout("slow"), None, None]
    endpoint = Endpoint(fault=lambda number: faults[number])
    (episode,) = play(game, build(endpoint, concurrency=1), [0], split="test")
    assert episode.well_formed
    assert waits[0] == 17.0
    assert 1.0 <= waits[1] <= 2.0
    assert 2.0 <= waits[2] <= 4.0


def test_a_dead_endpoint_ends_the_run_and_what_was_played_is_kept(
    game: Game, build: Any, tmp_path: Path, waits: list[float]
) -> None:
    endpoint = Endpoint(fault=lambda number: _error(500, "boom") if number >= 8 else None)
    agent = build(endpoint, concurrency=1, max_attempts=3)
    with pytest.raises(EndpointError, match=r"3 attempts.*status 500: c boom"):
        evaluate(game, [agent], range(24), out=tmp_path)
    assert len(waits) == 2
    well = Endpoint()
    again = build(well, concurrency=1)
    (result,) = evaluate(game, [again], range(24), out=tmp_path).agents
    assert len(well.requests) == 48 - 8  # four episodes of two requests were kept
    assert [row.rank for row in result.rows] == ranks(game, TRMAgent())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_error(401, "bad key"), "status 401: c bad key; set the variable"),
        (_error(404, "no model"), "status 404: c no model"),
        (httpx.Response(200, text="<html>"), "no answer"),
        (httpx.Response(200, json={"choices": []}), "no answer"),
    ],
)
def test_a_refusal_is_final(game: Game, build: Any, fault: httpx.Response, said: str, waits: list[float]) -> None:
    endpoint = Endpoint(fault=lambda _: fault)
    with pytest.raises(EndpointError, match=said):
        play(game, build(endpoint, concurrency=1), [0], split="test")
    assert waits == []
    assert len(endpoint.requests) == 1


def test_a_conversation_that_is_too_long_is_a_malformed_action(game: Game, build: Any) -> None:
    too_long = _error(400, "This model's maximum context length is 4096 tokens. However, you requested 5000.")
    endpoint = Endpoint(fault=lambda number: too_long if number == 1 else None)
    (episode,) = play(game, build(endpoint, max_total_tokens=10_000), [0], split="test")
    assert episode.turns[-1].malformed_reason == "no_action"


def test_the_budget_is_kept_and_running_answers_are_not_thrown_away(game: Game, build: Any, tmp_path: Path) -> None:
    endpoint = Endpoint()
    agent = build(endpoint, concurrency=4, max_requests=21)
    with pytest.raises(BudgetSpent, match="21 requests"):
        evaluate(game, [agent], range(24), out=tmp_path)
    assert len(endpoint.requests) == 21
    (path,) = (tmp_path / "rows").iterdir()
    num_rows = len(path.read_text().splitlines()) - 1
    assert num_rows >= (21 - 4) // 2  # at most `concurrency` episodes are begun and not ended
    evaluate(game, [build(Endpoint(), concurrency=4)], range(24), out=tmp_path)


def test_tokens_are_limited_too(game: Game, build: Any) -> None:
    endpoint = Endpoint()
    agent = build(endpoint, concurrency=1, max_total_tokens=500)
    with pytest.raises(BudgetSpent, match="535 tokens"):
        play(game, agent, range(24), split="test")
    assert len(endpoint.requests) == 5  # 5 x 107 is the first that reaches 500
    with pytest.raises(EndpointError, match="does not say how many tokens"):
        play(game, build(Endpoint(usage=False), max_total_tokens=500), [0], split="test")
    (result,) = evaluate(game, [build(Endpoint(usage=False))], [0]).agents
    assert result.rows[0].tokens is None


def test_the_agent_can_be_used_after_a_failure(game: Game, build: Any) -> None:
    endpoint = Endpoint(fault=lambda number: _error(404) if number == 0 else None)
    agent = build(endpoint)
    with pytest.raises(EndpointError):
        play(game, agent, range(6), split="test")
    assert [episode.well_formed for episode in play(game, agent, range(6), split="test")] == [True] * 6
    with pytest.raises(AgentError, match="before any question"):
        agent.collect()


def test_the_key_is_sent_and_stands_nowhere(
    game: Game, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    endpoint = Endpoint(fault=lambda number: _error(503) if number == 0 else None)
    agent = build(endpoint, key_variable="MY_KEY")
    with caplog.at_level(logging.DEBUG):
        evaluate(game, [agent], [0], out=tmp_path)
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in kept + caplog.text + agent.fingerprint + repr(agent)
    with pytest.raises(AgentError, match="name or password"):
        ChatAgent("http://me:pw@models.test/v1", model="m")


def test_the_only_model_is_found_and_several_are_asked_about(build: Any) -> None:
    endpoint = Endpoint()
    assert build(endpoint, temperature=0.0).name == "chat tiny, temperature 0"
    endpoint.models = ["a", "b"]
    with pytest.raises(AgentError, match="serves a, b; name one"):
        build(endpoint)
    assert build(endpoint, model="b").name == "chat b"


def test_the_specification_names_address_and_options() -> None:
    agent = make_agent(
        "chat:http://127.0.0.1:9/v1?model=org/m-1&mode=continue&max_tokens=64&extra={top_k: 5}&name=mine"
    )
    assert isinstance(agent, ChatAgent)
    assert agent.name == "mine"
    asked = json.loads(agent.fingerprint)
    assert (asked["model"], asked["max_tokens"], asked["top_k"]) == ("org/m-1", 64, 5)
    assert agent.game_options == {}
    agent.close()
    for spec, said in {
        "chat:models.test?model=m": "an address such as",
        "chat:http://x/v1?model=m&mode=loud": "mode must be",
        "chat:http://x/v1?model=m&concurrency=0": "at least 1",
        "chat:http://x/v1?model=m&max_requests=0": "max_requests",
    }.items():
        with pytest.raises(AgentError, match=said):
            make_agent(spec)


def test_a_model_is_told_the_game_as_it_was_trained(game: Game, build: Any) -> None:
    endpoint = Endpoint()
    agent = build(endpoint, game={"prompt_style": "compact"})
    play(game_for(game, agent), agent, [0], split="test")
    assert endpoint.requests[0]["messages"][1]["content"].endswith(
        "Search by <|begin_of_preference|>, then rank 10 titles."
    )
    with pytest.raises(ValueError, match="did you mean 'prompt_style'"):
        build(endpoint, game={"prompt_stile": "compact"})
