"""The agent *chat*: a model behind any OpenAI-compatible endpoint, hosted or one's own, that plays through its chat.

Two ways to tell the game as a conversation:

- *turns* (any endpoint): the prompt is the first message of the user, each action a message of the assistant, each
  observation the next message of the user.
- *continue* (vLLM's server and others that continue a message): the response so far, observations included, is one
  message of the assistant that the model goes on writing, which is how policies are trained here.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from threading import Thread
from typing import Any

import httpx
import numpy as np

from agents.base import AgentError, EpisodeView, answer_all
from agents.chat_client import RETRY, Budget, ChatClient, ChatReply, Message
from deeprec_env.config import build_game_config
from deeprec_env.protocol import (
    PREFERENCE_BEGIN,
    PREFERENCE_END,
    RECOMMENDATION_BEGIN,
    RECOMMENDATION_END,
    STOP_STRINGS,
    THINK_BEGIN,
    THINK_END,
)
from trm.client import RetryConfig

MODES = ("turns", "continue")
KEY_VARIABLE = "OPENAI_API_KEY"

_PROMPT_HEAD, _PROMPT_TAIL = "User:\n", f"\n\nAssistant:\n{THINK_BEGIN}\n"
_RULES = (
    f"Your thinking is open from the beginning: never write {THINK_BEGIN}, and write {THINK_END} once, before the "
    f"final list. Each of your messages is one turn, and ends with {PREFERENCE_END} or {RECOMMENDATION_END}. What a "
    "search finds is the next message."
)
_CONTINUE_OPTIONS: Mapping[str, Any] = {
    "add_generation_prompt": False,
    "continue_final_message": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
}


class ChatAgent:
    """Asks a chat endpoint for every turn, many episodes at a time; the slowest answer holds nobody up.

    Episodes that are under way go before fresh ones, so that about `concurrency` of them are unfinished at a time, and
    no more are lost when the budget ends. Nothing of an answer is changed, but for two things: a stop string that the
    endpoint has cut off is put back, and a leading <think>, which the prompt has opened already, is dropped.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        mode: str = "turns",
        temperature: float = 1.0,
        max_tokens: int = 2048,
        concurrency: int = 16,
        max_requests: int | None = None,
        max_total_tokens: int | None = None,
        timeout_s: float = RETRY.timeout_s,
        max_attempts: int = RETRY.max_attempts,
        key_variable: str = KEY_VARIABLE,
        extra: Mapping[str, Any] | None = None,
        game: Mapping[str, Any] | None = None,
        name: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Point at an endpoint.

        Args:
            url: such as http://127.0.0.1:8000/v1.
            model: as the endpoint calls it; it may be left out where the endpoint has only one.
            mode: turns or continue.
            temperature: of sampling.
            max_tokens: sampled tokens a turn at most.
            concurrency: requests at a time.
            max_requests: budget: requests in all, retries included.
            max_total_tokens: budget: tokens of prompts and answers in all. Requests that are under way when it is
                reached are still paid.
            timeout_s: for an answer.
            max_attempts: how often a request is tried.
            key_variable: the environment variable that holds the endpoint's key.
            extra: further fields of the request, such as {"top_p": 0.9}; null takes a field out.
            game: fields of GameConfig that the model was trained with, such as {"prompt_style": "compact"}.
            name: how it is called in tables; by default after the model.
            transport: sends; for tests.

        Raises:
            AgentError: if an option is out of its range, or the endpoint does not say which model it has.
            ValueError: if the game has no such field.
        """
        if mode not in MODES:
            raise AgentError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if concurrency < 1 or max_tokens < 1 or max_attempts < 1 or temperature < 0:
            raise AgentError(
                "the chat agent wants concurrency, max_tokens and max_attempts of at least 1 and temperature of at "
                f"least 0, got {concurrency}, {max_tokens}, {max_attempts} and {temperature}"
            )
        build_game_config(game or {})  # refuses what is no field
        self.game_options = dict(game or {})
        self._client = ChatClient(
            url,
            model=None if model is None else str(model),
            key=os.environ.get(key_variable),
            budget=Budget(max_requests=max_requests, max_total_tokens=max_total_tokens),
            retry=_retry(timeout_s, max_attempts),
            max_connections=concurrency,
            transport=transport,
        )
        self._mode, self._concurrency = mode, concurrency
        self._options = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "stop": list(STOP_STRINGS),
            **(_CONTINUE_OPTIONS if mode == "continue" else {}),
            **(extra or {}),
        }
        suffix = "" if temperature == 1.0 else f", temperature {temperature:g}"
        self.name = name or f"chat {self._client.model}{suffix}"
        asked = {"url": self._client.url, "model": self._client.model, "mode": mode, **self._options}
        self.fingerprint = json.dumps(asked, sort_keys=True)
        self._waiting: list[tuple[int, int, list[Message], int]] = []
        self._running: dict[Future[ChatReply], int] = {}
        self._tokens: dict[int, int | None] = {}
        self._failure: AgentError | None = None

    @property
    def budget(self) -> Budget:
        """What was used, and what may be."""
        return self._client.budget

    def close(self) -> None:
        """Close the connections; answers that are under way are waited for, and lost."""
        wait(self._running)
        self._abandon()
        self._client.close()

    def num_tokens(self, key: int) -> int | None:
        """Return how many tokens were sampled in the episode; None where the endpoint does not count."""
        return self._tokens.get(key)

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return one action an episode; errors as of `collect`."""
        return answer_all(self, episodes)

    def submit(self, episodes: Sequence[EpisodeView]) -> None:
        """Ask for an action of each episode as soon as its turn comes; see `collect`."""
        for view in episodes:
            if view.num_turns == 0:
                self._tokens[view.key] = 0
            seed = int(np.random.SeedSequence([view.seed, view.num_turns]).generate_state(1)[0]) >> 1
            heapq.heappush(self._waiting, (-view.num_turns, view.key, build_messages(view, self._mode), seed))
        if self._failure is None and not self._client.budget.is_spent:
            self._send()

    def collect(self) -> list[tuple[int, str]]:
        """Return key and action of the episodes that are answered, at least one of those that were submitted.

        After a failure nothing more is sent, but what is under way is still answered: it need not be paid twice.

        Raises:
            BudgetSpent: if requests are waiting, none is under way, and the budget allows no further one.
            EndpointError: if the endpoint has refused a request or did not answer, and none is under way.
        """
        if self._failure is None and not (self._running and self._client.budget.is_spent):
            self._send()
        answers: list[tuple[int, str]] = []
        while not answers:
            if not self._running:
                failure = self._failure or AgentError(f"{self.name} was asked for answers before any question")
                self._abandon()
                raise failure
            for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                key = self._running.pop(future)
                try:
                    answers.append((key, self._read(key, future.result())))
                except AgentError as error:
                    self._failure = self._failure or error
        return answers

    def _read(self, key: int, reply: ChatReply) -> str:
        known, sampled = self._tokens.get(key, 0), reply.num_sampled_tokens
        self._tokens[key] = None if known is None or sampled is None else known + sampled
        return read_action(reply)

    def _send(self) -> None:
        while self._waiting and len(self._running) < self._concurrency:
            _, key, messages, seed = heapq.heappop(self._waiting)
            future: Future[ChatReply] = Future()
            # A daemon: an endpoint that hangs must not keep a stopped command from ending, as a pool of threads would.
            Thread(target=self._complete, args=(future, messages, seed), daemon=True).start()
            self._running[future] = key

    def _complete(self, future: Future[ChatReply], messages: list[Message], seed: int) -> None:
        try:
            future.set_result(self._client.complete(messages, {"seed": seed, **self._options}))
        except BaseException as error:  # noqa: BLE001 - handed over to whoever waits for the answer
            future.set_exception(error)

    def _abandon(self) -> None:
        self._running, self._waiting, self._failure = {}, [], None


def _retry(timeout_s: float, max_attempts: int) -> RetryConfig:
    return RetryConfig(
        connect_timeout_s=RETRY.connect_timeout_s,
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        backoff_s=RETRY.backoff_s,
        max_backoff_s=RETRY.max_backoff_s,
    )


def build_messages(view: EpisodeView, mode: str) -> list[Message]:
    """Return the conversation that an episode is, up to where the model is to write."""
    question = view.prompt.removesuffix(_PROMPT_TAIL).removeprefix(_PROMPT_HEAD)
    if mode == "continue":
        response = "".join(turn.action + turn.observation for turn in view.turns)
        return [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"{THINK_BEGIN}\n{response}"},
        ]
    messages = [{"role": "system", "content": _RULES}, {"role": "user", "content": question}]
    for turn in view.turns:
        messages.append({"role": "assistant", "content": turn.action})
        messages.append({"role": "user", "content": turn.observation.strip()})
    return messages


def read_action(reply: ChatReply) -> str:
    """Return the action that a reply is, with its stop string, without a thinking block opened once more.

    An endpoint that does not say which stop string ended a reply is believed to have cut off the one that is missing.
    """
    text = reply.text
    if text.lstrip().startswith(THINK_BEGIN):
        text = text.lstrip().removeprefix(THINK_BEGIN)
    if reply.finish != "stop":
        return text
    if reply.says_stop:
        stop = reply.stop or ""
        return text if stop not in STOP_STRINGS or text.endswith(stop) else text + stop
    for begin, end in ((RECOMMENDATION_BEGIN, RECOMMENDATION_END), (PREFERENCE_BEGIN, PREFERENCE_END)):
        if text.rfind(begin) > text.rfind(end):
            return text + end
    return text
