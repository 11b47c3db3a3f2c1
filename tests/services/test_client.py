from __future__ import annotations

import json
import random
from collections.abc import Callable

import httpx
import numpy as np
import pytest

from trm.client import HttpRetriever, RetryConfig
from trm.errors import RetrieverRefused, RetrieverUnavailable
from trm.types import RankingRetriever, RetrievalQuery

QUERY = RetrievalQuery((1, 2), "noir", 3)
ANSWER = {"answers": [{"item_ids": [4, 5, 6], "scores": [0.3, 0.1 + 0.2, -1e-17]}]}


def retriever(
    handler: Callable[[httpx.Request], httpx.Response], *, waits: list[float] | None = None, **options: object
) -> HttpRetriever:
    slept: list[float] = [] if waits is None else waits
    return HttpRetriever(
        "http://service",
        transport=httpx.MockTransport(handler),
        sleep=slept.append,
        seed=0,
        **options,  # type: ignore[arg-type]
    )


def test_it_is_a_retriever_and_sends_the_query_as_it_is() -> None:
    seen: list[object] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, json.loads(request.content), request.headers["authorization"]))
        return httpx.Response(200, json=ANSWER)

    client = retriever(handler, token="abc")
    assert isinstance(client, RankingRetriever)
    (found,) = client.retrieve([QUERY])
    assert found.item_ids == (4, 5, 6)
    assert found.scores == (0.3, 0.1 + 0.2, -1e-17)
    query = {"history": [1, 2], "preference": "noir", "k": 3, "exclude_history": True}
    assert seen == [("/retrieve", {"queries": [query]}, "Bearer abc")]


def test_nothing_is_sent_for_no_query() -> None:
    assert retriever(lambda request: pytest.fail("asked")).retrieve([]) == []


def test_many_queries_go_in_several_requests_and_come_back_in_order() -> None:
    sizes = []

    def handler(request: httpx.Request) -> httpx.Response:
        queries = json.loads(request.content)["queries"]
        sizes.append(len(queries))
        return httpx.Response(200, json={"answers": [{"item_ids": q["history"], "scores": [1.0]} for q in queries]})

    found = retriever(handler, batch_size=4).retrieve([RetrievalQuery((i,), "") for i in range(1, 11)])
    assert [answer.item_ids for answer in found] == [(i,) for i in range(1, 11)]
    assert sizes == [4, 4, 2]


def test_ranks_come_as_an_array() -> None:
    client = retriever(lambda request: httpx.Response(200, json={"ranks": [7]}))
    ranks = client.ranks([QUERY], [9])
    assert ranks.dtype == np.int64
    assert ranks.tolist() == [7]
    with pytest.raises(ValueError, match="a target for each of 1 queries, got 2"):
        client.ranks([QUERY], [9, 10])


@pytest.mark.parametrize(
    "failure",
    [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut"), 500, 502, 503, 429],
)
def test_a_fault_of_the_service_is_asked_again_with_growing_waits(failure: Exception | int) -> None:
    waits: list[float] = []
    tries = iter([failure] * 5)

    def handler(request: httpx.Request) -> httpx.Response:
        fault = next(tries, None)
        if isinstance(fault, Exception):
            raise fault
        return httpx.Response(200, json=ANSWER) if fault is None else httpx.Response(fault, text="down")

    client = retriever(handler, waits=waits, retry=RetryConfig(backoff_s=1.0, max_backoff_s=6.0, jitter=0.5))
    assert client.retrieve([QUERY])[0].item_ids == (4, 5, 6)
    for wait, longest in zip(waits, [1.0, 2.0, 4.0, 6.0, 6.0], strict=True):
        assert longest / 2 <= wait <= longest


@pytest.mark.parametrize(("asked", "wait"), [("7", 7.0), ("9999", 60.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.1)])
def test_a_busy_service_is_left_alone_as_long_as_it_asks(asked: str, wait: float) -> None:
    waits: list[float] = []
    answers = iter([httpx.Response(503, headers={"Retry-After": asked}), httpx.Response(200, json=ANSWER)])
    client = retriever(lambda request: next(answers), waits=waits, retry=RetryConfig(jitter=0.0))
    client.retrieve([QUERY])
    assert waits == [wait]


def test_attempts_are_bounded_and_the_error_says_what_to_do() -> None:
    waits: list[float] = []

    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    client = retriever(handler, waits=waits, retry=RetryConfig(max_attempts=4))
    with pytest.raises(RetrieverUnavailable, match=r"in 4 attempts \(ConnectError: .*deeprec serve recall"):
        client.retrieve([QUERY])
    assert len(waits) == 3


def test_jitter_spreads_clients() -> None:
    waits = {RetryConfig().wait_s(3, random.Random(seed)) for seed in range(20)}
    assert len(waits) == 20
    assert sum(RetryConfig().wait_s(attempt, random.Random(0)) for attempt in range(1, 20)) > 40


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(422, json={"detail": "queries[0].k: too large"}), "status 422.*too large"),
        (httpx.Response(401, json={"detail": "a token"}), "status 401"),
        (httpx.Response(200, text="<html>"), "an answer of a retrieval service"),
        (httpx.Response(200, json={"answers": [{"item_ids": [1]}]}), "an answer of a retrieval service"),
        (httpx.Response(200, json=[]), "an answer of a retrieval service"),
        (httpx.Response(200, json={"answers": []}), "expected 1 answers, got 0"),
    ],
)
def test_a_wrong_request_or_answer_is_not_asked_again(answer: httpx.Response, said: str) -> None:
    num_calls = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal num_calls
        num_calls += 1
        return answer

    with pytest.raises(RetrieverRefused, match=said):
        retriever(handler).retrieve([QUERY])
    assert num_calls == 1


def test_another_recommender_is_refused() -> None:
    client = retriever(lambda request: httpx.Response(200, json={"status": "ok", "recommender": "1c"}))
    assert client.checked("1c") is client
    with pytest.raises(RetrieverRefused, match="serves the recommender 1c, this process has 2d"):
        client.checked("2d")


def test_halves_of_surrogate_pairs_are_sent_as_question_marks() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content)["queries"][0]["preference"])
        return httpx.Response(200, json=ANSWER)

    retriever(handler).retrieve([RetrievalQuery((), "a\ud800é")])
    assert seen == ["a?é"]


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="http://127"):
        HttpRetriever("localhost:6001")
