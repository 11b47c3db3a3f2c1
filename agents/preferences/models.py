"""Who writes: a model behind an OpenAI-compatible endpoint, or one that an engine of this project samples from.

chat:http://127.0.0.1:8000/v1?model=NAME      any endpoint for chat completions
hf:MODEL, vllm:MODEL, MODEL                   a model that this process holds, by transformers (the default) or vLLM

MODEL is a folder in Hugging Face format, a GGUF file, a name of the hub, or package:NAME (a package with such a file).
Options stand behind a "?": temperature, max_tokens; of chat also model, concurrency, max_requests, max_total_tokens.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl

import yaml

from agents.base import AgentError
from agents.preferences.prompts import Asked

if TYPE_CHECKING:
    import httpx
    from transformers import PreTrainedTokenizerBase

    from agents.grpo.generation.base import Generator

KEY_VARIABLE = "OPENAI_API_KEY"
_MAX_CONTEXT = 2048
"""Tokens of a question and its answer at most."""


@dataclass(frozen=True)
class Reply:
    """What a model said to a question."""

    asked: Asked
    text: str
    is_cut: bool = False
    """Whether it ran into the limit of tokens, so that its last line is a piece."""


class TextModel(Protocol):
    """Answers questions in words."""

    name: str
    """Stands in the file of what it wrote."""

    def answer(self, asked: Sequence[Asked]) -> Iterator[Reply]:
        """Yield a reply to each question, in any order, as they come.

        Raises:
            AgentError: if the model cannot answer any more; what was yielded before is good.
        """
        ...


class ChatModel:
    """Asks an endpoint, several questions at a time."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        temperature: float = 0.7,
        max_tokens: int = 256,
        concurrency: int = 16,
        max_requests: int | None = None,
        max_total_tokens: int | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Point at an endpoint; its key, if it wants one, stands in the variable OPENAI_API_KEY.

        Args:
            url: such as http://127.0.0.1:8000/v1.
            model: as the endpoint calls it; it may be left out where the endpoint has only one.
            temperature: of sampling.
            max_tokens: of an answer at most.
            concurrency: questions at a time.
            max_requests: requests in all, retries included.
            max_total_tokens: tokens of questions and answers in all.
            transport: sends; for tests.

        Raises:
            AgentError: if the endpoint does not say which model it has, or an option is out of its range.
        """
        from agents.chat_client import Budget, ChatClient

        if concurrency < 1 or max_tokens < 1 or temperature < 0:
            raise AgentError(
                "expected concurrency and max_tokens of at least 1 and temperature of at least 0, got "
                f"{concurrency}, {max_tokens} and {temperature}"
            )
        self._concurrency = concurrency
        self._client = ChatClient(
            url,
            model=None if model is None else str(model),
            key=os.environ.get(KEY_VARIABLE),
            budget=Budget(max_requests=max_requests, max_total_tokens=max_total_tokens),
            max_connections=concurrency,
            transport=transport,
        )
        self._options = {"temperature": temperature, "max_tokens": max_tokens}
        self.name = f"chat {self._client.model}"

    def answer(self, asked: Sequence[Asked]) -> Iterator[Reply]:
        """See TextModel."""
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="chat") as pool:
            futures = {pool.submit(self._client.complete, one.messages, self._options): one for one in asked}
            try:
                for future in as_completed(futures):
                    reply = future.result()
                    yield Reply(futures[future], reply.text, is_cut=reply.finish == "length")
            finally:
                for future in futures:
                    future.cancel()


class EngineModel:
    """Samples from a model that this process holds, a batch at a time."""

    def __init__(
        self,
        generator: Generator,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        max_context: int,
        temperature: float = 0.7,
        max_tokens: int = 128,
    ) -> None:
        """Bind an engine.

        Args:
            generator: the engine.
            tokenizer: of its model; its chat template is used if it has one.
            name: of the model.
            max_context: tokens of question and answer at most; a question is cut at its beginning.
            temperature: of sampling.
            max_tokens: of an answer at most.
        """
        from agents.grpo.generation.base import SamplingParams

        self.name = name
        self._generator, self._tokenizer = generator, tokenizer
        self._max_question = max(1, max_context - max_tokens)
        ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self._params = SamplingParams(max_tokens, frozenset(ends), temperature)

    @classmethod
    def build(cls, model: str, *, engine: str = "hf", temperature: float = 0.7, max_tokens: int = 128) -> EngineModel:
        """Return the model of a folder, a file, the hub or a package.

        Raises:
            AgentError: if there is none, or vLLM does not start.
        """
        from agents.grpo.engines import Engine
        from agents.grpo.pretrained import load_pretrained

        policy = load_pretrained(model, max_tokens=_MAX_CONTEXT, with_tags=False)
        return cls(
            Engine(engine).follow(policy),
            policy.tokenizer,
            name=model.rstrip("/"),
            max_context=policy.max_length,
            temperature=temperature,
            max_tokens=max_tokens,
        )

    def answer(self, asked: Sequence[Asked]) -> Iterator[Reply]:
        """See TextModel."""
        from agents.grpo.generation.base import FinishReason, GenerationRequest, streaming

        requests = [GenerationRequest(key, self._question(one), one.seed) for key, one in enumerate(asked)]
        generator = streaming(self._generator)
        generator.submit(requests, self._params)
        try:
            while ended := generator.collect():
                for key, completion in ended:
                    text = self._tokenizer.decode(list(completion.ids), skip_special_tokens=True)
                    yield Reply(asked[key], str(text), is_cut=completion.finish == FinishReason.LENGTH)
        finally:
            generator.abandon()

    def _question(self, asked: Asked) -> list[int]:
        messages = [dict(message) for message in asked.messages]
        if self._tokenizer.chat_template:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        ids: list[int] = self._tokenizer(str(text), add_special_tokens=False)["input_ids"]
        return ids[-self._max_question :]


def make_text_model(spec: str) -> TextModel:
    """Return the model that a specification names; see above.

    Raises:
        AgentError: if there is no such model, or it does not take these options.
    """
    name, _, query = spec.strip().partition("?")
    kind, colon, rest = name.partition(":")
    options: dict[str, Any] = {key: yaml.safe_load(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    factory: Callable[..., TextModel] = EngineModel.build
    if kind == "chat" and colon:
        factory = ChatModel
    elif kind in ("hf", "vllm") and colon:
        options["engine"] = kind
    else:
        rest = name
    if not rest:
        raise AgentError(f"expected chat:URL, hf:MODEL, vllm:MODEL or MODEL, got {spec!r}")
    try:
        inspect.signature(factory).bind(rest, **options)
    except TypeError as error:
        raise AgentError(f"{kind} takes {inspect.signature(factory)}, got {options}: {error}") from error
    return factory(rest, **options)
