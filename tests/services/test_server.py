from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.services.worlds import history, recall_request, recall_world, sample_world
from trm.errors import ReplayMiss, RetrieverError
from trm.server import MAX_PREFERENCE_CHARS, build_recall_app
from trm.service import ServiceConfig
from trm.types import RetrievalQuery

WORLD = sample_world()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(build_recall_app(recall_world(WORLD)), raise_server_exceptions=False) as client:
        yield client


def test_recall_answers_item_texts_as_the_retriever_ranks_them(client: TestClient) -> None:
    answer = client.post("/recall", json=recall_request())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    queries = [
        RetrievalQuery(history(WORLD, 0), "slow mysteries", 5),
        RetrievalQuery(history(WORLD, 3), "bright comedies", 5),
    ]
    expected = [
        [WORLD.catalog.title(item_id) for item_id in found.item_ids] for found in WORLD.retriever.retrieve(queries)
    ]
    assert answer.json() == {"item_list": expected}


def test_texts_of_any_kind_come_back_as_they_are() -> None:
    texts = [f'Item "{i}"\n  - categories: Pokémon, 日本\\' for i in range(WORLD.catalog.num_items + 1)]
    with TestClient(build_recall_app(recall_world(WORLD, item_texts=texts))) as client:
        lists = client.post("/recall", json=recall_request()).json()["item_list"]
    assert {text for found in lists for text in found} <= set(texts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"idx_list": [0, 10**6]}, "idx_list[1]: expected the number of a user, got 1000000"),
        ({"idx_list": [0, -1]}, "idx_list[1]: "),
        ({"idx_list": [0, 2**70]}, "idx_list[1]: "),
        ({"idx_list": [0, "3"]}, "idx_list[1]: Input should be a valid integer, got '3'"),
        ({"idx_list": [0, True]}, "idx_list[1]: Input should be a valid integer, got True"),
        ({"idx_list": [0, 3.5]}, "idx_list[1]: "),
        ({"idx_list": 0}, "idx_list: Input should be a valid list"),
        ({"preference_list": ["a", ""]}, "preference_list[1]: "),
        ({"preference_list": [" \n", "a"]}, "preference_list[0]: expected a preference, got a blank text"),
        ({"preference_list": ["a", None]}, "preference_list[1]: Input should be a valid string, got None"),
        ({"preference_list": ["a", "b" * (MAX_PREFERENCE_CHARS + 1)]}, "preference_list[1]: "),
        ({"preference_list": ["a"]}, "idx_list has 2, preference_list has 1, recall_num_list has 2"),
        ({"recall_num_list": [0, -1]}, "recall_num_list[1]: "),
        ({"k": 0}, "k: Input should be greater than or equal to 1, got 0"),
        ({"k": 301}, "k: expected at most 300, the number of items, got 301"),
        ({"k": 5.0}, "k: "),
        ({"current_step": "1"}, "current_step: "),
    ],
)
def test_bad_input_is_a_422_that_names_the_element(client: TestClient, changes: dict[str, Any], said: str) -> None:
    answer = client.post("/recall", json=recall_request(**changes))
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 1000


def test_what_is_missing_is_named(client: TestClient) -> None:
    answer = client.post("/recall", json={"idx_list": []})
    assert answer.status_code == 422
    assert "preference_list: Field required" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"\xff"', b"[" * 100_000, b'{"k": NaN}', b'{"preference_list": ["\\ud800"]}']
)
def test_no_body_makes_the_server_fail(client: TestClient, body: bytes) -> None:
    answer = client.post("/recall", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert isinstance(answer.json()["detail"], str)


def test_a_long_body_is_refused_whether_it_says_so_or_not() -> None:
    config = ServiceConfig(max_body_bytes=1000)
    with TestClient(build_recall_app(recall_world(WORLD), config)) as client:
        long = recall_request(preference_list=["a" * 600, "b" * 600])
        assert client.post("/recall", json=long).status_code == 413
        chunks = (b"x" * 100 for _ in range(20))
        assert client.post("/recall", content=chunks).status_code == 413
        assert client.post("/recall", json=recall_request()).status_code == 200


def test_a_token_is_asked_for_everywhere_but_at_health() -> None:
    with TestClient(build_recall_app(recall_world(WORLD), ServiceConfig(token="s3cret"))) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            answer = client.post("/recall", json=recall_request(), headers=headers)
            assert answer.status_code == 401
            assert "Authorization" in answer.json()["detail"]
        assert client.get("/metrics").status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        assert client.post("/recall", json=recall_request(), headers=right).status_code == 200


def test_retrieve_returns_ids_and_exact_scores_and_takes_an_empty_preference(client: TestClient) -> None:
    query = RetrievalQuery(history(WORLD, 5), "", 7, exclude_history=False)
    record = {"history": list(query.history), "preference": "", "k": 7, "exclude_history": False}
    (answer,) = client.post("/retrieve", json={"queries": [record]}).json()["answers"]
    (expected,) = WORLD.retriever.retrieve([query])
    assert tuple(answer["item_ids"]) == expected.item_ids
    assert tuple(answer["scores"]) == expected.scores


def test_retrieve_and_ranks_check_items(client: TestClient) -> None:
    record = {"history": [1, 301], "preference": "", "k": 7}
    answer = client.post("/retrieve", json={"queries": [{**record, "history": [1]}, record]})
    assert answer.status_code == 422
    assert "queries[1].history: expected item ids in 1..300, got 301" in answer.json()["detail"]
    good = {"queries": [{**record, "history": [1]}], "targets": [2]}
    assert (
        client.post("/ranks", json=good).json()["ranks"]
        == WORLD.retriever.ranks(  # type: ignore[attr-defined]
            [RetrievalQuery((1,), "")], [2]
        ).tolist()
    )
    assert client.post("/ranks", json={**good, "targets": [301]}).status_code == 422
    assert client.post("/ranks", json={**good, "targets": []}).status_code == 422


def test_many_clients_at_once_share_calls_and_each_gets_its_own_answer() -> None:
    class Counting:
        num_calls = 0

        def retrieve(self, queries: list[RetrievalQuery]) -> list[Any]:
            self.num_calls += 1
            return WORLD.retriever.retrieve(queries)

    counting = Counting()
    app = build_recall_app(recall_world(WORLD, retriever=counting), max_wait_s=0.05)
    with TestClient(app) as client, ThreadPoolExecutor(16) as pool:
        requests = [
            recall_request(idx_list=[i], preference_list=[f"topic {i}"], recall_num_list=[0]) for i in range(48)
        ]
        found = list(pool.map(lambda request: client.post("/recall", json=request).json()["item_list"][0], requests))
    for i, titles in enumerate(found):
        (expected,) = WORLD.retriever.retrieve([RetrievalQuery(history(WORLD, i), f"topic {i}", 5)])
        assert titles == [WORLD.catalog.title(item_id) for item_id in expected.item_ids]
    assert counting.num_calls < 24


def test_health_and_metrics_say_what_was_done() -> None:
    counts = iter([(0, 0), (2, 1), (2, 1), (2, 1)])
    served = recall_world(WORLD, health={"dataset": "sample"}, cache_misses=lambda: next(counts))
    with TestClient(build_recall_app(served)) as client:
        assert client.get("/health").json() == {"status": "ok", "dataset": "sample", "num_items": 300}
        for _ in range(2):
            client.post("/recall", json=recall_request())
        client.post("/recall", json={})
        client.get("/nowhere/1")
        text = client.get("/metrics").text
    assert 'deeprec_requests_total{path="/recall",status="200"} 2.0' in text
    assert 'deeprec_requests_total{path="/recall",status="422"} 1.0' in text
    assert 'deeprec_requests_total{path="other",status="404"} 1.0' in text
    assert "deeprec_batch_size_sum 4.0" in text
    assert "deeprec_preference_cache_misses_total 2.0" in text
    assert "deeprec_preference_cache_hits_total 2.0" in text
    assert "deeprec_history_cache_hits_total 3.0" in text
    assert 'deeprec_request_seconds_bucket{le="0.002",path="/recall"}' in text


@pytest.mark.parametrize(("error", "status"), [(RetrieverError("down"), 503), (ReplayMiss("no such line"), 404)])
def test_a_broken_recommender_is_a_typed_status(error: Exception, status: int) -> None:
    class Broken:
        def retrieve(self, queries: object) -> list[Any]:
            raise error

    with TestClient(build_recall_app(recall_world(WORLD, retriever=Broken()))) as client:
        answer = client.post("/recall", json=recall_request())
    assert answer.status_code == status
    assert str(error) in answer.json()["detail"]


def test_a_busy_service_says_so_and_when_to_ask_again() -> None:
    release = threading.Event()

    class Slow:
        def retrieve(self, queries: list[RetrievalQuery]) -> list[Any]:
            release.wait(10)
            return WORLD.retriever.retrieve(queries)

    app = build_recall_app(recall_world(WORLD, retriever=Slow()), max_wait_s=0.001, max_waiting=4)
    with TestClient(app) as client, ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(client.post, "/recall", json=recall_request()) for _ in range(8)
        ]  # one call runs, two wait
        first = next(as_completed(asked, timeout=10)).result()
        release.set()
        answers = [future.result() for future in asked]
    assert {answer.status_code for answer in answers} == {200, 503}
    assert first.status_code == 503
    assert first.headers["retry-after"] == "1"
    assert "busy" in first.json()["detail"]


def test_the_documentation_of_the_contract_is_served(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/recall", "/retrieve", "/ranks", "/health"} <= set(schema["paths"])
    assert json.dumps(schema)
