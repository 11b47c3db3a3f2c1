"""A Retriever over HTTP: timeouts, bounded retries with backoff and jitter, typed errors.

A service that is restarted costs waiting, never an answer: requests change nothing and are simply asked again.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import numpy as np

from trm.errors import RetrieverRefused, RetrieverUnavailable
from trm.types import Candidates, IntArray, RetrievalQuery
from trm.wire import query_record, read_answer

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})
_MAX_RETRY_AFTER_S = 60.0
"""A longer wait that a service asks for is cut to this."""


@dataclass(frozen=True)
class RetryConfig:
    """How long a request is tried. The defaults outlast a restart of about a minute."""

    connect_timeout_s: float = 3.0
    timeout_s: float = 30.0
    """For an answer, once connected."""
    max_attempts: int = 20
    backoff_s: float = 0.1
    """Before the second attempt; doubles with each further one."""
    max_backoff_s: float = 5.0
    jitter: float = 0.5
    """A wait is shortened by a random share of at most this, so that many clients do not come back at once."""

    def wait_s(self, attempt: int, rng: random.Random) -> float:
        """Return how long to wait after the failed attempt of this number, from 1."""
        longest = min(self.max_backoff_s, self.backoff_s * 2.0 ** (attempt - 1))
        return longest * (1.0 - self.jitter * rng.random())


class HttpRetriever:
    """Answers queries by a retrieval service (`trm.server`). Threads may share one."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        retry: RetryConfig | None = None,
        batch_size: int = 256,
        seed: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Point at a service; nothing is sent yet.

        Args:
            url: such as "http://127.0.0.1:6001".
            token: the service's bearer token.
            retry: timeouts and retries.
            batch_size: queries a request at most.
            seed: of the jitter.
            sleep: waits; for tests.
            transport: sends; for tests.

        Raises:
            ValueError: if the url is none.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"expected an address such as http://127.0.0.1:6001, got {url!r}")
        self.url = url.rstrip("/")
        self._retry = retry or RetryConfig()
        self._batch_size = batch_size
        self._rng = random.Random(seed)
        self._sleep = sleep
        self._client = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(self._retry.timeout_s, connect=self._retry.connect_timeout_s),
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            transport=transport,
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"HttpRetriever({self.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        """Return one Candidates a query, in the order of the queries.

        Raises:
            RetrieverUnavailable: if the service does not answer in spite of all retries.
            RetrieverRefused: if it calls the request wrong, or answers with something else.
        """
        found: list[Candidates] = []
        for start in range(0, len(queries), self._batch_size):
            part = queries[start : start + self._batch_size]
            answers = self._ask("/retrieve", {"queries": [query_record(query) for query in part]}, _answers)
            if len(answers) != len(part):
                raise RetrieverRefused(f"{self.url}: expected {len(part)} answers, got {len(answers)}")
            found.extend(answers)
        return found

    def ranks(self, queries: Sequence[RetrievalQuery], targets: Sequence[int]) -> IntArray:
        """Return each target's rank from 1 among all items, int64 [len(queries)]; errors as of `retrieve`."""
        if len(queries) != len(targets):
            raise ValueError(f"expected a target for each of {len(queries)} queries, got {len(targets)}")
        ranks: list[int] = []
        for start in range(0, len(queries), self._batch_size):
            stop = start + self._batch_size
            asked = {
                "queries": [query_record(query) for query in queries[start:stop]],
                "targets": [int(target) for target in targets[start:stop]],
            }
            ranks.extend(self._ask("/ranks", asked, lambda answer: [int(rank) for rank in answer["ranks"]]))
        if len(ranks) != len(queries):
            raise RetrieverRefused(f"{self.url}: expected {len(queries)} ranks, got {len(ranks)}")
        return np.asarray(ranks, dtype=np.int64)

    def health(self) -> dict[str, Any]:
        """Return what the service says of itself, e.g. {"status": "ok", "recommender": "1c2d…"}; errors as above."""
        return self._ask("/health", None, dict)

    def checked(self, recommender: str) -> HttpRetriever:
        """Return this retriever if the service holds the same items and TRM.

        Args:
            recommender: the fingerprint of the local one.

        Raises:
            RetrieverRefused: if it holds another one.
        """
        other = self.health().get("recommender")
        if other != recommender:
            raise RetrieverRefused(
                f"{self.url} serves the recommender {other}, this process has {recommender}; serve the same data set, "
                "with the same trained TRM"
            )
        return self

    def _ask(self, path: str, body: object, read: Callable[[Any], ResultT]) -> ResultT:
        """Return what `read` makes of the answer's JSON."""
        retry = self._retry
        for attempt in range(1, retry.max_attempts + 1):
            asked_wait_s = 0.0
            try:
                answer = self._client.get(path) if body is None else self._post(path, body)
                if answer.status_code not in _TRY_AGAIN:
                    return self._read(answer, read)
                problem = f"status {answer.status_code}: {answer.text[:200]}"
                asked_wait_s = _retry_after_s(answer)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt < retry.max_attempts:
                wait_s = max(asked_wait_s, retry.wait_s(attempt, self._rng))
                logger.info("%s%s, attempt %d: %s; again in %.1f s", self.url, path, attempt, problem, wait_s)
                self._sleep(wait_s)
        raise RetrieverUnavailable(
            f"expected an answer of {self.url}{path}, got none in {retry.max_attempts} attempts ({problem}); "
            "is the server running? `deeprec serve recall` starts one"
        )

    def _post(self, path: str, body: object) -> httpx.Response:
        return self._client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})

    def _read(self, answer: httpx.Response, read: Callable[[Any], ResultT]) -> ResultT:
        if answer.status_code != httpx.codes.OK:
            raise RetrieverRefused(f"{answer.url} refused with status {answer.status_code}: {answer.text[:500]}")
        try:
            return read(answer.json())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RetrieverRefused(f"{answer.url}: expected an answer of a retrieval service, got {error!r}") from error


def _retry_after_s(answer: httpx.Response) -> float:
    """Return how long the service asks to be left alone; 0 if it does not say."""
    try:
        return min(_MAX_RETRY_AFTER_S, max(0.0, float(answer.headers.get("retry-after", "0"))))
    except ValueError:  # a date: the service's clock is not ours
        return 0.0


def _answers(answer: Any) -> list[Candidates]:
    return [read_answer(found) for found in answer["answers"]]
