"""A chat endpoint in this process that plays by the book: it searches once, and keeps the order of what comes back."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import httpx

from deeprec_env.protocol import ITEM_LIST_BEGIN, PREFERENCE_BEGIN, RECOMMENDATION_BEGIN, RECOMMENDATION_END, THINK_END

Fault = Callable[[int], httpx.Response | Exception | None]
"""From a request's number, from 0, to what is answered in its place; None answers it well."""


class Endpoint:
    """Answers chat completions; as hosted ones do, it cuts the stop string off."""

    def __init__(self, *, top_k: int = 10, fault: Fault | None = None, usage: bool = True, stop_reason: bool = False):
        self.top_k, self._fault, self._usage, self._stop_reason = top_k, fault, usage, stop_reason
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models = ["tiny"]
        self.max_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._handle)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": name} for name in self.models]})
        assert request.url.path == "/v1/chat/completions"
        body = json.loads(request.content)
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.keys.append(request.headers.get("authorization"))
            self._at_once += 1
            self.max_at_once = max(self.max_at_once, self._at_once)
        try:
            fault = self._fault(number) if self._fault else None
            if isinstance(fault, Exception):
                raise fault
            return fault or httpx.Response(200, json=self._reply(body))
        finally:
            with self._lock:
                self._at_once -= 1

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        question = [message["role"] for message in body["messages"]].index("user")
        said = "\n".join(message["content"] for message in body["messages"][question + 1 :])
        if ITEM_LIST_BEGIN in said:
            titles = re.findall(r"^\d+\. (.*)$", said.rpartition(ITEM_LIST_BEGIN)[2], re.MULTILINE)[: self.top_k]
            lines = "\n".join(f"{place}. {title}" for place, title in enumerate(titles, start=1))
            text, stop = f"In their order.\n{THINK_END}\n{RECOMMENDATION_BEGIN}\n{lines}\n", RECOMMENDATION_END
        else:
            text, stop = f"I look.\n{PREFERENCE_BEGIN} ", "<|end_of_preference|>"
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if self._stop_reason:
            choice["stop_reason"] = stop
        usage = {"prompt_tokens": 100, "completion_tokens": 7} if self._usage else None
        return {"choices": [choice], "usage": usage}
