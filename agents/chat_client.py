"""Any OpenAI-compatible endpoint for chat completions over httpx: retries with backoff, a budget, typed errors.

Knows neither episodes nor the protocol of the game.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from agents.base import AgentError
from trm.client import RetryConfig

logger = logging.getLogger(__name__)

Message = dict[str, str]
"""{"role": "system", "user" or "assistant", "content": text}."""

RETRY = RetryConfig(connect_timeout_s=10.0, timeout_s=300.0, max_attempts=6, backoff_s=1.0, max_backoff_s=60.0)
MAX_RETRY_AFTER_S = 120.0
"""A longer wait that an endpoint asks for is cut to this."""
_TRY_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_TOO_LONG = re.compile(r"context.?length|context.?window|maximum context|too many tokens|prompt is too long", re.I)


class EndpointError(AgentError):
    """The endpoint refuses a request, or does not answer in spite of all retries."""


class BudgetSpent(AgentError):
    """As many requests or tokens were used as were allowed; what has been played is kept."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What a model said."""

    text: str
    finish: str
    """stop, length, content_filter, …; "context" where the conversation was too long for the model."""
    stop: str | None = None
    """The stop string that ended it, where the endpoint says so."""
    says_stop: bool = False
    """Whether the endpoint says which stop string ended it."""
    num_prompt_tokens: int | None = None
    num_sampled_tokens: int | None = None


class Budget:
    """Counts requests and tokens of all threads, and says when no further request may begin."""

    def __init__(self, *, max_requests: int | None = None, max_total_tokens: int | None = None) -> None:
        """Set the limits; None is none.

        Raises:
            AgentError: if a limit is below 1.
        """
        for name, limit in (("max_requests", max_requests), ("max_total_tokens", max_total_tokens)):
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
                raise AgentError(f"{name} must be a number of at least 1, got {limit!r}")
        self.max_requests, self.max_total_tokens = max_requests, max_total_tokens
        self.num_requests = 0
        self.num_tokens = 0
        """Of prompts and answers."""
        self._lock = threading.Lock()

    @property
    def is_spent(self) -> bool:
        """Whether no further request may begin."""
        with self._lock:
            return self._is_spent()

    def _is_spent(self) -> bool:
        requests = self.max_requests is not None and self.num_requests >= self.max_requests
        return requests or (self.max_total_tokens is not None and self.num_tokens >= self.max_total_tokens)

    def take_request(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            BudgetSpent: if it may not be.
        """
        with self._lock:
            if self._is_spent():
                raise BudgetSpent(
                    f"the budget is spent: {self.num_requests} requests and {self.num_tokens} tokens of at most "
                    f"{self.max_requests or 'any'} and {self.max_total_tokens or 'any'}; finished episodes are kept, "
                    "the same command with a larger budget goes on"
                )
            self.num_requests += 1

    def add_tokens(self, reply: ChatReply) -> None:
        """Count what a reply has cost.

        Raises:
            EndpointError: if tokens are limited and the endpoint does not count them.
        """
        if reply.num_prompt_tokens is None or reply.num_sampled_tokens is None:
            if self.max_total_tokens is not None and reply.finish != "context":
                raise EndpointError("the endpoint does not say how many tokens it used; limit max_requests instead")
            return
        with self._lock:
            self.num_tokens += reply.num_prompt_tokens + reply.num_sampled_tokens


class ChatClient:
    """One endpoint and one model. Threads may share it."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        budget: Budget | None = None,
        retry: RetryConfig = RETRY,
        max_connections: int = 16,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Point at an endpoint; it is asked for its models if none is named.

        Args:
            url: such as http://127.0.0.1:8000/v1; requests go to URL/chat/completions.
            model: as the endpoint calls it.
            key: the bearer token; it is sent, and never written anywhere.
            budget: what may be used.
            retry: timeouts and retries.
            max_connections: at a time.
            sleep: waits; for tests.
            transport: sends; for tests.

        Raises:
            AgentError: if the url is none, or the endpoint has not just one model where none is named.
        """
        if not url.startswith(("http://", "https://")):
            raise AgentError(f"expected an address such as chat:http://127.0.0.1:8000/v1, got {url!r}")
        if httpx.URL(url).userinfo:
            raise AgentError("the address holds a name or password, which results would show; set a key variable")
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        self.budget = budget or Budget()
        self._retry, self._sleep = retry, sleep
        self._rng = random.Random()
        self._client = httpx.Client(
            timeout=httpx.Timeout(retry.timeout_s, connect=retry.connect_timeout_s, pool=None),
            limits=httpx.Limits(max_connections=max_connections),
            headers={} if not key else {"Authorization": f"Bearer {key}"},
            transport=transport,
        )
        self.model = model or self._only_model()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatReply:
        """Return the model's next message.

        Args:
            messages: the conversation.
            options: further fields of the request; those that are None are left out.

        Raises:
            BudgetSpent: if no request is left.
            EndpointError: if the endpoint refuses, or does not answer in spite of all retries.
        """
        body = {"model": self.model, "messages": list(messages), **options}
        body = {name: value for name, value in body.items() if value is not None}
        reply = self._ask("POST", f"{self.url}/chat/completions", _read_reply, body)
        self.budget.add_tokens(reply)
        return reply

    def _only_model(self) -> str:
        found = self._ask("GET", f"{self.url}/models", lambda answer: [str(entry["id"]) for entry in answer["data"]])
        if len(found) != 1:
            raise AgentError(
                f"{self.url} serves {', '.join(found) or 'no model'}; name one: chat:{self.url}?model=NAME"
            )
        return str(found[0])

    def _ask(self, method: str, url: str, read: Callable[[Any], Any], body: Mapping[str, Any] | None = None) -> Any:
        for attempt in range(1, self._retry.max_attempts + 1):
            if body is not None:
                self.budget.take_request()
            asked_wait_s = 0.0
            try:
                response = self._client.request(method, url, json=body)
                if response.status_code not in _TRY_AGAIN:
                    return _answer(url, response, read)
                problem = f"status {response.status_code}: {_message(response)}"
                asked_wait_s = _retry_after(response)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt < self._retry.max_attempts:
                wait_s = max(self._retry.wait_s(attempt, self._rng), asked_wait_s)
                logger.warning("%s: %s; attempt %d follows in %.1f s", url, problem, attempt + 1, wait_s)
                self._sleep(wait_s)
        raise EndpointError(f"{url} did not answer in {self._retry.max_attempts} attempts; the last one: {problem}")


def _answer(url: str, response: httpx.Response, read: Callable[[Any], Any]) -> Any:
    if response.is_success:
        try:
            return read(response.json())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise EndpointError(f"{url} answered with something that is no answer: {error!r}") from error
    message = _message(response)
    if response.status_code == 400 and _TOO_LONG.search(message):
        return ChatReply("", "context")
    hint = "; set the variable that holds the key" if response.status_code in (401, 403) else ""
    raise EndpointError(f"{url} refuses the request, status {response.status_code}: {message}{hint}")


def _read_reply(answer: Any) -> ChatReply:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    stop = choice.get("stop_reason")
    return ChatReply(
        text=choice["message"].get("content") or "",
        finish=str(choice.get("finish_reason") or ""),
        stop=stop if isinstance(stop, str) else None,
        says_stop="stop_reason" in choice,
        num_prompt_tokens=usage.get("prompt_tokens"),
        num_sampled_tokens=usage.get("completion_tokens"),
    )


def _message(response: httpx.Response) -> str:
    """Return what an error says, shortened, with its code where there is one."""
    try:
        error = response.json()["error"]
        text = f"{error.get('code') or ''} {error.get('message') or ''}" if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(text.split())[:300]


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(MAX_RETRY_AFTER_S, max(0.0, float(response.headers.get("retry-after", "0"))))
    except ValueError:  # a date: the endpoint's clock is not ours
        return 0.0
