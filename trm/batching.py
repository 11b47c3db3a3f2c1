"""Joins the queries of concurrent requests into one call of something that answers many at the cost of few."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

QueryT = TypeVar("QueryT")
AnswerT = TypeVar("AnswerT")


class Overloaded(Exception):
    """More waits than can be answered in time; ask again later."""


class _Job(NamedTuple, Generic[QueryT, AnswerT]):
    queries: Sequence[QueryT]
    answers: asyncio.Future[list[AnswerT]]
    deadline_s: float
    """In the loop's time."""


class MicroBatcher(Generic[QueryT, AnswerT]):
    """Waits a few milliseconds for company, then answers everything that has come in one call on a thread of its own.

    While a call runs the next batch gathers, first come, first served; no request is split. What has waited too long is
    not answered any more, as whoever asked has given up or is about to. Belongs to one event loop.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[QueryT]], list[AnswerT]],
        *,
        max_batch: int = 512,
        max_wait_s: float = 0.002,
        max_waiting: int = 16_384,
        patience_s: float = 25.0,
        on_batch: Callable[[int], None] | None = None,
        executor: Executor | None = None,
    ) -> None:
        """Hold what answers; nothing runs before `start`.

        Args:
            answer: returns one answer a query, in their order; only ever called by one thread at a time.
            max_batch: queries after which a batch waits for no more.
            max_wait_s: how long the first query waits for others.
            max_waiting: queries that may wait for their call; a request that comes on top is refused at once.
            patience_s: a request whose call has not begun after this time is refused.
            on_batch: called with the number of queries of each batch, on the answering thread, after the call.
            executor: with one thread, for batchers that must not answer at the same time; one of its own if None.
        """
        self._answer = answer
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._patience_s = patience_s
        self._on_batch = on_batch
        self._waiting: deque[_Job[QueryT, AnswerT]] = deque()
        self._num_waiting = 0
        self._num_open = 0
        self._arrived = asyncio.Event()
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer; to be called within the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Answer what has been submitted, then stop."""
        while self._num_open:
            await asyncio.sleep(self._max_wait_s)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._executor.shutdown()

    async def submit(self, queries: Sequence[QueryT]) -> list[AnswerT]:
        """Return one answer a query, in their order.

        Raises:
            Overloaded: if too many queries wait already, or these have waited too long.
            Exception: what the answering call raised; all requests of its batch get it.
        """
        if not queries:
            return []
        if self._num_waiting and self._num_waiting + len(queries) > self._max_waiting:
            raise Overloaded(f"{self._num_waiting} queries wait already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[AnswerT]] = loop.create_future()
        self._waiting.append(_Job(queries, future, loop.time() + self._patience_s))
        self._num_waiting += len(queries)
        self._num_open += 1
        self._arrived.set()
        try:
            return await future
        finally:
            self._num_open -= 1

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self._num_waiting < self._max_batch:
                await asyncio.sleep(self._max_wait_s)
            jobs = self._take()
            if jobs:
                queries = [query for job in jobs for query in job.queries]
                call = loop.run_in_executor(self._executor, self._call, queries)
                await asyncio.wait([call])
                _hand_out(jobs, call.exception() or call.result())

    def _call(self, queries: Sequence[QueryT]) -> list[AnswerT]:
        answers = self._answer(queries)
        if self._on_batch is not None:
            self._on_batch(len(queries))
        return answers

    def _take(self) -> list[_Job[QueryT, AnswerT]]:
        """Return the oldest jobs, until they hold max_batch queries."""
        jobs: list[_Job[QueryT, AnswerT]] = []
        count = 0
        now_s = asyncio.get_running_loop().time()
        while self._waiting and count < self._max_batch:
            job = self._waiting.popleft()
            self._num_waiting -= len(job.queries)
            if job.answers.done():  # a client that has gone
                continue
            if job.deadline_s < now_s:
                job.answers.set_exception(Overloaded(f"no call began within {self._patience_s:.0f} s"))
                continue
            jobs.append(job)
            count += len(job.queries)
        if not self._waiting:
            self._arrived.clear()
        return jobs


def _hand_out(jobs: Sequence[_Job[QueryT, AnswerT]], outcome: list[AnswerT] | BaseException) -> None:
    start = 0
    for job in jobs:
        stop = start + len(job.queries)
        if not job.answers.done():
            if isinstance(outcome, BaseException):
                job.answers.set_exception(outcome)
            else:
                job.answers.set_result(outcome[start:stop])
        start = stop
