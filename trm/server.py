"""The retrieval service: the original's `/recall`, and `/retrieve` and `/ranks` for `trm.client`, over one Retriever.

Concurrent requests are answered by one call of the Retriever (see `trm.batching`). What a user or an item is comes from
the caller: this module knows ids, histories and texts only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import FastAPI, Response
from prometheus_client import Counter
from pydantic import BaseModel, Field

from trm.batching import MicroBatcher
from trm.errors import ReplayMiss, RetrieverError
from trm.service import (
    REFUSALS,
    Count,
    Refusal,
    ServiceConfig,
    ServiceMetrics,
    UserId,
    build_service,
    refusing_overload,
    same_lengths,
)
from trm.types import Candidates, RankingRetriever, RetrievalQuery
from trm.wire import answer_record

MAX_QUERIES = 1024
"""Queries of one request at most."""
MAX_K = 1000
MAX_PREFERENCE_CHARS = 16_384
"""As long as the longest action of the game."""
MAX_HISTORY = 100_000

ItemId = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Preference = Annotated[str, Field(strict=True, max_length=MAX_PREFERENCE_CHARS)]
K = Annotated[int, Field(strict=True, ge=1, le=MAX_K)]


class RecallRequest(BaseModel):
    """The original contract: one preference for each user."""

    idx_list: list[UserId] = Field(max_length=MAX_QUERIES)
    """Users by their number in the data set."""
    preference_list: list[Annotated[Preference, Field(min_length=1)]] = Field(max_length=MAX_QUERIES)
    current_step: Count
    """The trainer's step; not used."""
    recall_num_list: list[Count] = Field(max_length=MAX_QUERIES)
    """How many retrievals each episode has made; not used."""
    k: K
    """Items for each preference."""


class RecallAnswer(BaseModel):
    """Texts of the retrieved items, best first, one list a preference."""

    item_list: list[list[str]]


class QueryModel(BaseModel):
    """A `trm.types.RetrievalQuery`."""

    history: list[ItemId] = Field(max_length=MAX_HISTORY)
    preference: Preference
    k: K = 20
    exclude_history: bool = Field(default=True, strict=True)


class RetrieveRequest(BaseModel):
    """Queries that carry their histories."""

    queries: list[QueryModel] = Field(max_length=MAX_QUERIES)


class AnswerModel(BaseModel):
    """A `trm.types.Candidates`."""

    item_ids: list[int]
    scores: list[float]


class RetrieveAnswer(BaseModel):
    """One answer a query."""

    answers: list[AnswerModel]


class RanksRequest(RetrieveRequest):
    """Queries with the item whose rank is asked for."""

    targets: list[ItemId] = Field(max_length=MAX_QUERIES)


class RanksAnswer(BaseModel):
    """Ranks from 1 among all items; 0 where the target is excluded."""

    ranks: list[int]


@dataclass(frozen=True)
class RecallWorld:
    """What is served."""

    retriever: RankingRetriever
    history_of: Callable[[int], tuple[int, ...] | None]
    """A user's history, item ids oldest first; None if there is no such user."""
    item_texts: Sequence[str]
    """By item id, PAD's first: the title, and on a second line the attributes."""
    health: Mapping[str, object] = field(default_factory=dict)
    """What /health says of it."""
    cache_misses: Callable[[], tuple[int, int]] | None = None
    """How many preferences and how many histories have been encoded so far."""

    @property
    def num_items(self) -> int:
        """How many items there are; also the largest id."""
        return len(self.item_texts) - 1


def build_recall_app(
    world: RecallWorld,
    config: ServiceConfig | None = None,
    *,
    exclude_history: bool = True,
    max_batch: int = 512,
    max_wait_s: float = 0.002,
    max_waiting: int = 16_384,
) -> FastAPI:
    """Return the retrieval service as an ASGI app.

    Args:
        world: users, items and what retrieves them.
        config: token and limits.
        exclude_history: whether /recall leaves out the items of a user's history. The original leaves them in.
        max_batch: queries of one call of the retriever, about.
        max_wait_s: how long a request waits for others to share a call.
        max_waiting: queries that may wait for their call; who comes on top is told to ask again later.
    """
    metrics = ServiceMetrics()
    calls = _Calls(world, metrics, max_batch=max_batch, max_wait_s=max_wait_s, max_waiting=max_waiting)
    app = build_service(
        "DeepRec retrieval",
        description="Items for a user's history and a preference in words.",
        health={**world.health, "num_items": world.num_items},
        metrics=metrics,
        config=config or ServiceConfig(),
        on_start=calls.start,
        on_stop=calls.close,
    )
    _add_recall(app, world, calls, exclude_history=exclude_history)
    _add_retrieve(app, world, calls)
    return app


def _add_recall(app: FastAPI, world: RecallWorld, calls: _Calls, *, exclude_history: bool) -> None:
    """Add the endpoint of the original contract."""
    texts_json = [json.dumps(text, ensure_ascii=False).encode("utf-8", "replace") for text in world.item_texts]

    @app.post("/recall", response_model=RecallAnswer, responses=REFUSALS)
    async def recall(request: RecallRequest) -> Response:
        found = await calls.retrieve(_recall_queries(request, world, exclude_history=exclude_history))
        lists = (b",".join([texts_json[item_id] for item_id in answer.item_ids]) for answer in found)
        body = b'{"item_list":[' + b",".join([b"[" + texts + b"]" for texts in lists]) + b"]}"
        return Response(body, media_type="application/json")


def _add_retrieve(app: FastAPI, world: RecallWorld, calls: _Calls) -> None:
    """Add the endpoints of our own client."""

    @app.post("/retrieve", response_model=RetrieveAnswer, responses=REFUSALS)
    async def retrieve(request: RetrieveRequest) -> Response:
        found = await calls.retrieve(_queries(request, world))
        body = json.dumps({"answers": [answer_record(answer) for answer in found]})
        return Response(body, media_type="application/json")

    @app.post("/ranks", responses=REFUSALS)
    async def ranks(request: RanksRequest) -> RanksAnswer:
        same_lengths(queries=request.queries, targets=request.targets)
        for place, target in enumerate(request.targets):
            _check_items(f"targets[{place}]", [target], world)
        pairs = list(zip(_queries(request, world), request.targets, strict=True))
        return RanksAnswer(ranks=await calls.ranks(pairs))


class _Calls:
    """The calls of the recommender: in batches, one at a time, for it is not made for several threads."""

    def __init__(
        self, world: RecallWorld, metrics: ServiceMetrics, *, max_batch: int, max_wait_s: float, max_waiting: int
    ) -> None:
        retriever = world.retriever
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recommender")
        self._retrieve: MicroBatcher[RetrievalQuery, Candidates] = MicroBatcher(
            _CacheCounters(world, metrics).watched(retriever.retrieve),
            max_batch=max_batch,
            max_wait_s=max_wait_s,
            max_waiting=max_waiting,
            on_batch=metrics.sizes("deeprec_batch_size", "Queries of one call of the recommender").observe,
            executor=executor,
        )
        self._ranks: MicroBatcher[tuple[RetrievalQuery, int], int] = MicroBatcher(
            lambda pairs: [int(rank) for rank in retriever.ranks([q for q, _ in pairs], [t for _, t in pairs])],
            max_wait_s=max_wait_s,
            executor=executor,
        )

    def start(self) -> None:
        self._retrieve.start()
        self._ranks.start()

    async def close(self) -> None:
        await self._retrieve.close()
        await self._ranks.close()

    async def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        """Return one answer a query; a broken recommender is a Refusal."""
        with _typed_refusals():
            return await self._retrieve.submit(queries)

    async def ranks(self, pairs: Sequence[tuple[RetrievalQuery, int]]) -> list[int]:
        """Return one rank a query and target; errors as of `retrieve`."""
        with _typed_refusals():
            return await self._ranks.submit(pairs)


@contextmanager
def _typed_refusals() -> Iterator[None]:
    try:
        with refusing_overload():
            yield
    except ReplayMiss as error:
        raise Refusal(str(error), status=404) from error
    except RetrieverError as error:
        raise Refusal(f"the recommender behind this service failed: {error}", status=503) from error


class _CacheCounters:
    """Tells queries that found preference and history in the caches from those that did not."""

    def __init__(self, world: RecallWorld, metrics: ServiceMetrics) -> None:
        self._misses = world.cache_misses
        lookups = ("preference", "history")
        self._hits: tuple[Counter, ...] = tuple(
            metrics.counter(f"deeprec_{name}_cache_hits", f"Queries whose {name} was encoded already")
            for name in lookups
        )
        self._missed: tuple[Counter, ...] = tuple(
            metrics.counter(f"deeprec_{name}_cache_misses", f"Times that a {name} was encoded") for name in lookups
        )

    def watched(
        self, retrieve: Callable[[Sequence[RetrievalQuery]], list[Candidates]]
    ) -> Callable[[Sequence[RetrievalQuery]], list[Candidates]]:
        """Return the same call, counted."""
        misses = self._misses
        if misses is None:
            return retrieve

        def watched(queries: Sequence[RetrievalQuery]) -> list[Candidates]:
            before = misses()
            answers = retrieve(queries)
            for hits, missed, old, new in zip(self._hits, self._missed, before, misses(), strict=True):
                missed.inc(new - old)
                hits.inc(max(0, len(queries) - (new - old)))
            return answers

        return watched


def _recall_queries(request: RecallRequest, world: RecallWorld, *, exclude_history: bool) -> list[RetrievalQuery]:
    same_lengths(
        idx_list=request.idx_list, preference_list=request.preference_list, recall_num_list=request.recall_num_list
    )
    _check_k("k", request.k, world)
    queries = []
    for place, (idx, preference) in enumerate(zip(request.idx_list, request.preference_list, strict=True)):
        history = world.history_of(idx)
        if history is None:
            raise Refusal(f"idx_list[{place}]: expected the number of a user, got {idx}, which is nobody's")
        if not preference.strip():
            raise Refusal(f"preference_list[{place}]: expected a preference, got a blank text")
        queries.append(RetrievalQuery(history, preference.strip(), request.k, exclude_history))
    return queries


def _queries(request: RetrieveRequest, world: RecallWorld) -> list[RetrievalQuery]:
    queries = []
    for place, query in enumerate(request.queries):
        _check_k(f"queries[{place}].k", query.k, world)
        _check_items(f"queries[{place}].history", query.history, world)
        queries.append(RetrievalQuery(tuple(query.history), query.preference, query.k, query.exclude_history))
    return queries


def _check_k(where: str, k: int, world: RecallWorld) -> None:
    if k > world.num_items:
        raise Refusal(f"{where}: expected at most {world.num_items}, the number of items, got {k}")


def _check_items(where: str, item_ids: Sequence[int], world: RecallWorld) -> None:
    if item_ids and max(item_ids) > world.num_items:
        raise Refusal(f"{where}: expected item ids in 1..{world.num_items}, got {max(item_ids)}")
