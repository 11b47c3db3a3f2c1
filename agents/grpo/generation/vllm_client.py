"""A vLLM server over HTTP: completions side by side, and what it offers in its development mode. Knows no policies.

All requests run on an event loop in a thread of its own, so that hundreds are under way while the caller does something
else; those that are cancelled close their connections, which is how a server learns to give them up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from agents.base import AgentError
from agents.grpo.failures import Halt
from trm.client import RetryConfig

try:
    import httpx
except ImportError as error:
    raise AgentError(
        f"the engine vllm-server wants httpx: pip install 'deeprec-env[chat]', or pip install httpx ({error})"
    ) from error

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

RETRY = RetryConfig(connect_timeout_s=5.0, max_attempts=5, backoff_s=0.5, max_backoff_s=4.0)
"""Outlasts a network's hiccup. A server that was started anew has lost the policy's weights: it is not waited for."""
_TRY_AGAIN = frozenset({429, 502, 503, 504})
_CONNECTIONS = 512
"""At a time; further requests wait here. Many systems let a process open 1,024 files."""
_IDLE_S = 2.0
"""An idle connection is kept for so long, less than the 5 s after which the server closes it."""
_PROBE_S = 30
"""After so many seconds without a word the machine itself is probed: it may be gone while an answer is waited for."""


class ServerError(Halt):
    """A server is not there, or not as it must be for training."""

    def __str__(self) -> str:
        """Return what happened and what to do."""
        return f"{self.what}; {self.remedy}"


class RequestLost(AgentError):
    """The server gave up one request, and may well answer others."""

    def __init__(self, message: str, *, status: int) -> None:
        """Say what happened, and which HTTP status came."""
        super().__init__(message)
        self.status = status


class VllmClient:
    """One server."""

    def __init__(self, url: str, *, timeout_s: float = 1800.0, retry: RetryConfig | None = None) -> None:
        """Point at a server; nothing is sent yet.

        Args:
            url: such as http://HOST:8000, without /v1.
            timeout_s: for a whole answer, once connected.
            retry: of connections that fail and of servers that are busy.

        Raises:
            ValueError: if the url is none.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"expected an address such as http://127.0.0.1:8000, got {url!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._timeout_s, self._retry, self._rng = timeout_s, retry or RETRY, random.Random()
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_s, connect=self._retry.connect_timeout_s, pool=None),
            transport=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(
                    max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=_IDLE_S
                ),
                socket_options=_probing(),
                trust_env=False,
            ),
            trust_env=False,
        )
        self._loop = asyncio.new_event_loop()
        # A daemon: a process that is interrupted does not wait for what the server still samples.
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-client", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give up what is under way and close the connections."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def complete(self, body: Mapping[str, Any]) -> Future[Any]:
        """Ask for a completion and return at once; the future holds the server's first choice.

        It may fail with RequestLost if the server gave the request up, with ServerError if it does not answer at all.
        Cancelling it makes the server give it up.
        """
        return self._start(self._ask("POST", "/v1/completions", lambda answer: answer["choices"][0], body))

    def model(self) -> str:
        """Return the name of the model that the server serves first.

        Raises:
            ServerError: if it does not answer.
        """
        return self._wait(self._ask("GET", "/v1/models", lambda answer: str(answer["data"][0]["id"])))

    def call_workers(self, method: str, *arguments: str) -> list[dict[str, Any]]:
        """Return what each of the server's workers answers to a call of a method of `WeightReceiver`.

        Raises:
            RequestLost: if the server refuses it.
            ServerError: if it does not answer.
        """
        body = {"method": method, "args": list(arguments)}
        return self._wait(
            self._ask("POST", "/collective_rpc", lambda answer: [dict(one) for one in answer["results"]], body)
        )

    def reset_prefix_cache(self) -> bool:
        """Drop what the server computed of earlier contexts; False if it cannot, for requests are under way.

        Raises:
            RequestLost: if the server refuses it.
            ServerError: if it does not answer.
        """
        return self._wait(self._ask("POST", "/reset_prefix_cache", lambda answer: bool(answer["success"])))

    def is_healthy(self) -> bool:
        """Return whether the server answers and its engine lives."""
        try:
            self._wait(self._ask("GET", "/health", lambda _: None))
        except (ServerError, RequestLost):
            return False
        return True

    def _start(self, work: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return self._start(work).result()

    async def _end(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    async def _ask(
        self, method: str, path: str, read: Callable[[Any], ResultT], body: Mapping[str, Any] | None = None
    ) -> ResultT:
        for attempt in range(1, self._retry.max_attempts + 1):
            try:
                response = await self._http.request(method, path, json=body)
                if response.status_code not in _TRY_AGAIN:
                    return _answer(f"{self.url}{path}", response, read)
                problem = f"status {response.status_code}: {_message(response)}"
            except httpx.ReadTimeout as error:
                raise ServerError(
                    f"the vLLM server at {self.url} gave no answer in {self._timeout_s:g} s",
                    "look at it, or raise server.timeout_s if it has much to do, then start the same command again",
                ) from error
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
            if attempt < self._retry.max_attempts:
                logger.debug("%s%s: %s; attempt %d follows", self.url, path, problem, attempt + 1)
                await asyncio.sleep(self._retry.wait_s(attempt, self._rng))
        raise ServerError(
            f"no vLLM server answers at {self.url} ({problem})",
            "see that it runs there (docs/training.md says how) and that no firewall is between, then start the same "
            "command again",
        )


def _answer(address: str, response: httpx.Response, read: Callable[[Any], ResultT]) -> ResultT:
    status = response.status_code
    if not response.is_success:
        raise RequestLost(f"{address} refuses, status {status}: {_message(response)}", status=status)
    try:
        return read(response.json() if response.content else None)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RequestLost(f"{address} answers with something that is no answer: {error!r}", status=status) from error


def _message(response: httpx.Response) -> str:
    """Return what an error says, shortened."""
    try:
        answer = response.json()
        text = str(answer.get("error", {}).get("message") or answer.get("detail") or answer)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(text.split())[:300]


def _probing() -> list[tuple[int, int, int]]:
    """Return the options of a socket that finds out when the other machine has gone without a word."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", _PROBE_S), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # not on every system
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
