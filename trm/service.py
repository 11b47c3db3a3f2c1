"""What every HTTP service here has: bad input answered by a sentence, limits, a bearer token, /health and /metrics.

Knows nothing of what is served.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trm.batching import Overloaded

logger = logging.getLogger(__name__)

UserId = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
"""A user's number in the data set that is served."""
Count = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Text = Annotated[str, Field(strict=True)]

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_PAUSE_S = 1
"""What a client of a busy service is told to wait; our own waits longer each time."""
_SHOWN_PROBLEMS = 3
_OPEN_PATHS = ("/health",)


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
    """A sentence that names the element that is wrong."""


class Refusal(Exception):
    """A request that is well-typed but cannot be answered; its message is the sentence for the client."""

    def __init__(self, detail: str, *, status: int = 422, retry_after_s: int | None = None) -> None:
        """Hold the sentence and the HTTP status: 4xx, or 503 where the fault is not the client's.

        Args:
            detail: the sentence.
            status: of the answer.
            retry_after_s: when the client may ask again, if that may help.
        """
        super().__init__(detail)
        self.status = status
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}


@dataclass(frozen=True)
class ServiceConfig:
    """How a service listens."""

    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 lets other machines in."""
    port: int = 6001
    token: str | None = None
    """If set, every request but /health must carry it as `Authorization: Bearer …`."""
    max_body_bytes: int = 8 * 2**20
    """A longer request is answered by 413."""
    shutdown_timeout_s: int = 30
    """How long a shutdown waits for what is in flight."""


class ServiceMetrics:
    """The counters of one service, in Prometheus' text format."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self.counter("deeprec_requests", "Requests answered", ("path", "status"))
        self._seconds = Histogram(
            "deeprec_request_seconds",
            "Time from a request to its answer",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """Return a new counter that /metrics shows as NAME_total."""
        return Counter(name, text, labels, registry=self.registry)

    def sizes(self, name: str, text: str) -> Histogram:
        """Return a new histogram over powers of two."""
        return Histogram(name, text, buckets=[2**power for power in range(13)], registry=self.registry)

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)


def build_service(
    name: str,
    *,
    description: str,
    health: Mapping[str, object],
    metrics: ServiceMetrics,
    config: ServiceConfig,
    on_start: Callable[[], None] = lambda: None,
    on_stop: Callable[[], Awaitable[None]] | None = None,
) -> FastAPI:
    """Return an app with /health and /metrics, to which the caller adds its endpoints.

    Args:
        name: the title of its documentation.
        description: what it does.
        health: what /health says beside `"status": "ok"`.
        metrics: counts all requests.
        config: token and limits.
        on_start: called in the event loop before the first request.
        on_stop: awaited after the last one.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            on_start()
            if on_stop is not None:
                stack.push_async_callback(on_stop)
            yield

    app = FastAPI(title=name, description=description, lifespan=lifespan)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Refusal, _refused)
    app.add_middleware(_Gate, metrics=metrics, config=config)

    @app.get("/health")
    async def answer_health() -> dict[str, Any]:
        return {"status": "ok", **health}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def answer_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        *((400, "not JSON"), (401, "no or a wrong token"), (413, "too long"), (422, "wrong")),
        (503, "busy, or what it rests on has failed; ask again"),
    )
}
"""What an endpoint's documentation says of refused requests."""


def run_service(app: ASGIApp, config: ServiceConfig) -> None:
    """Serve until a signal to end; what is in flight is finished first."""
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=config.shutdown_timeout_s,
        backlog=2048,
        timeout_keep_alive=75,  # a policy may think for long between two searches
    )


@contextmanager
def refusing_overload() -> Iterator[None]:
    """Turn `Overloaded` into a 503 that says when to ask again."""
    try:
        yield
    except Overloaded as error:
        raise Refusal(f"the service is busy, {error}; ask again later", status=503, retry_after_s=_PAUSE_S) from error


def same_lengths(**lists: Sequence[object]) -> int:
    """Return the length that all lists have.

    Raises:
        Refusal: if they differ.
    """
    lengths = {name: len(items) for name, items in lists.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise Refusal(f"expected lists of the same length, but {said}")
    return next(iter(lengths.values()))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [_sentence(problem) for problem in error.errors()]
    more = len(problems) - _SHOWN_PROBLEMS
    shown = "; ".join(problems[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
    is_syntax = any(problem["type"] == "json_invalid" for problem in error.errors())
    return JSONResponse({"detail": shown}, status_code=400 if is_syntax else 422)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse({"detail": str(error)}, status_code=error.status, headers=error.headers)


def _sentence(problem: Mapping[str, Any]) -> str:
    """Return where and what is wrong, e.g. "preference_list[3]: Input should be a valid string, got 7"."""
    if problem["type"] == "json_invalid":
        return f"expected a JSON object, got something else: {problem.get('ctx', {}).get('error', 'not JSON')}"
    where = ""
    for part in problem["loc"][1:]:
        where += f"[{part}]" if isinstance(part, int) else f".{ascii(part)[1:-1]}" if where else ascii(part)[1:-1]
    got = ""
    if problem["type"] != "missing" and isinstance(problem.get("input"), str | int | float | bool | None):
        value = ascii(problem.get("input"))
        got = f", got {value if len(value) <= 80 else value[:77] + '...'}"
    return f"{where or 'the body'}: {problem['msg']}{got}"


class _Gate:
    """Counts requests, asks for the token and reads bodies up to their limit, before the app sees a request."""

    def __init__(self, app: ASGIApp, *, metrics: ServiceMetrics, config: ServiceConfig) -> None:
        self._app = app
        self._metrics = metrics
        self._config = config
        self._expected = None if config.token is None else f"Bearer {config.token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, counted_send)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")  # never the raw path: anyone could fill the memory with labels
            self._metrics.observe(path, status, time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self._expected is not None and scope["path"] not in _OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await _say(send, 401, "expected the header `Authorization: Bearer TOKEN` with this service's token")
                return
        body = await _read_body(receive, self._config.max_body_bytes)
        if body is None:
            await _say(send, 413, f"expected a body of at most {self._config.max_body_bytes} bytes, got a longer one")
            return
        await self._app(scope, _Once(body, receive), send)


class _Once:
    """Gives a body that has been read already, and then whatever else the client sends."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        if self._message is not None:
            message, self._message = self._message, None
            return message
        return await self._receive()


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """Return the whole body; None if it is longer than the limit."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(chunks)
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            return None
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _say(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
