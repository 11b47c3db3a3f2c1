"""Sampling from a vLLM server, on this machine or another one: `vllm serve` in its development mode.

Requests are sent as they come and answered as they end; the server's prefix cache makes a later turn pay for its new
tokens only. After each update the first process writes the weights into a folder that the server's machine sees too,
has the server load them and drop its cache, and removes them. Nothing is sampled from other weights unnoticed: when the
last completion is there, the server is asked which weights it has.

Importing this module does not import vLLM.
"""

from __future__ import annotations

import functools
import queue
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from agents.base import AgentError, EngineError
from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, SamplingParams, all_at_once
from agents.grpo.generation.served_model import ServedModel
from agents.grpo.generation.vllm_client import RequestLost, ServerError, VllmClient
from agents.grpo.policy import Policy
from agents.grpo.ranks import Ranks


class VllmServerGenerator:
    """A StreamingGenerator around one vLLM server, which all processes of a run share."""

    def __init__(
        self, url: str, *, weights: Path, weights_there: str = "", dtype: str = "float32", timeout_s: float = 1800.0
    ) -> None:
        """Point at a server; nothing is sent before `follow`.

        Args:
            url: such as http://HOST:8000.
            weights: a folder that belongs to this run and that the server's machine sees; weights pass through it.
            weights_there: the same folder in the server's words, if it is mounted elsewhere there.
            dtype: what the server computes in; weights are written in it.
            timeout_s: for the whole answer to a turn, and for taking weights.

        Raises:
            ValueError: if the url is none, or there is no such dtype.
        """
        self._client = VllmClient(url, timeout_s=timeout_s)
        self._served = ServedModel(self._client, weights, folder_there=weights_there, dtype=dtype)
        self._model: PreTrainedModel | None = None
        self._max_length = 0
        self._pushed = ""
        """The name of the weights that the server must have."""
        self._pending: dict[int, Future[Any]] = {}
        self._arrived: queue.SimpleQueue[tuple[int, Future[Any]]] = queue.SimpleQueue()
        self._ended: list[tuple[int, Completion]] = []

    def close(self) -> None:
        """Give up what is under way and close the connections."""
        self.abandon()
        self._client.close()

    def follow(self, policy: Policy) -> None:
        """Take the weights from this policy's model from now on, beginning at once. All ranks must call it.

        Raises:
            ServerError: if the server is not there or cannot sample from such a policy, on all ranks.
        """
        self._model, self._max_length = policy.model, policy.max_length
        _on_all_ranks(lambda: self._served.check(policy))
        self.weights_changed()

    def weights_changed(self) -> None:
        """Push the followed model's weights to the server and drop its prefix cache. All ranks must call it.

        Raises:
            AgentError: if requests are under way.
            ServerError: if the server does not take the weights, on all ranks.
        """
        if self._pending:
            raise AgentError(f"expected no requests under way when weights change, got {len(self._pending)}")
        if self._model is None:
            return
        ranks, model = Ranks.current(), self._model
        name = ranks.gather(uuid.uuid4().hex)[0]
        _on_all_ranks(lambda: self._served.push(model, name) if ranks.first else None)
        self._pushed = name

    @property
    def num_pending(self) -> int:
        """Requests that were submitted and not collected yet."""
        return len(self._pending)

    def submit(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> None:
        """Hand requests to the server and return at once.

        Raises:
            ValueError: if a context is empty, or leaves no room for a token.
        """
        for request in requests:
            if not 0 < len(request.ids) < self._max_length:
                raise ValueError(
                    f"expected a context of 1 to {self._max_length - 1} tokens, got {len(request.ids)} for request "
                    f"{request.key}"
                )
            future = self._client.complete(self._body(request, params))
            self._pending[request.key] = future
            future.add_done_callback(functools.partial(self._arrive, request.key))

    def collect(self) -> list[tuple[int, Completion]]:
        """Return key and completion of at least one request, as soon as one has ended; [] if none is under way.

        Raises:
            EngineError: if the server gave some up; what others have ended comes with the next call.
            ServerError: if the server is gone, or has other weights; everything is given up.
        """
        try:
            lost: dict[int, str] = {}
            while self._pending and not self._ended and not lost:
                self._take(*self._arrived.get(), lost)
                while not self._arrived.empty():
                    self._take(*self._arrived.get(), lost)
            reasons = ", ".join(sorted(set(lost.values())))
            if lost:
                self._check_alive(reasons)
            if not self._pending and (lost or self._ended):
                self._served.check_weights(self._pushed)
        except ServerError:
            self.abandon()
            raise
        if lost:
            raise EngineError(f"the vLLM server gave up {len(lost)} requests ({reasons})", keys=list(lost))
        ended, self._ended = self._ended, []
        return ended

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        """Return one completion a request, when all have ended.

        Raises:
            EngineError: if the server gave some up; the others are given up with them.
            ServerError: as of `collect`.
        """
        return all_at_once(self, requests, params)

    def abandon(self) -> None:
        """Give up all that is under way; nothing of it is ever collected."""
        pending, self._pending, self._ended = self._pending, {}, []
        for future in pending.values():
            future.cancel()

    def _body(self, request: GenerationRequest, params: SamplingParams) -> dict[str, Any]:
        return {
            "model": self._served.name,
            "prompt": list(request.ids),
            "max_tokens": min(params.max_tokens, self._max_length - len(request.ids)),
            "temperature": params.temperature,
            "seed": request.seed,
            "stop_token_ids": sorted(params.stop_ids),
            "stop": list(params.stop_strings),
            "include_stop_str_in_output": True,
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # The server finds stop strings in the text of the tokens, tags that are special tokens included.
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            # What is left out would be taken from the model's generation_config.json, if it has one.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def _arrive(self, key: int, future: Future[Any]) -> None:
        """Take an answer in, in the client's thread."""
        self._arrived.put((key, future))

    def _take(self, key: int, future: Future[Any], lost: dict[int, str]) -> None:
        """Take note of an answer, unless it was given up."""
        if self._pending.get(key) is not future:
            return
        del self._pending[key]
        try:
            self._ended.append((key, _completion(future.result())))
        except RequestLost as error:
            lost[key] = str(error)

    def _check_alive(self, reasons: str) -> None:
        """Make sure that a server which gave up requests, for these reasons, lives, so that the others can go on."""
        if not self._client.is_healthy():
            raise ServerError(
                f"the vLLM server at {self._client.url} has died ({reasons})",
                "start it anew there, then start the same command again",
            )


def _completion(choice: Any) -> Completion:
    """Return the first choice of an answer, with the log-probabilities that vLLM reports: raw, of temperature 1."""
    try:
        ids, logps = tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])
        finish = FinishReason(choice["finish_reason"])
    except (KeyError, TypeError, ValueError) as error:
        raise RequestLost(f"expected token ids with log-probabilities, got {error!r}", status=200) from error
    if not ids or len(ids) != len(logps):
        raise RequestLost(f"expected a log-probability a token, got {len(logps)} of {len(ids)}", status=200)
    return Completion(ids, logps, finish)


def _on_all_ranks(action: Callable[[], None]) -> None:
    """Do something on this rank; what fails on one is raised on all. All ranks must call it."""
    failure: ServerError | None = None
    try:
        action()
    except ServerError as error:
        failure = error
    for words in Ranks.current().gather(None if failure is None else (failure.what, failure.remedy)):
        if words is not None:
            raise ServerError(*words) from failure
