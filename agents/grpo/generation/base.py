"""What a sampling engine takes and gives. Token ids in, token ids out; no text, no environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from agents.base import EngineError


class FinishReason(StrEnum):
    """Why an engine ended a completion."""

    STOP = "stop"
    """A stop token was sampled, or a token that completes a stop string; it is the last of the ids, and whole."""
    LENGTH = "length"
    """max_tokens were sampled."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample, for all requests of a call."""

    max_tokens: int
    """Tokens a completion at most; at least 1."""
    stop_ids: frozenset[int]
    """Tokens that end a completion; they are kept in it."""
    temperature: float = 1.0
    """0 takes the likeliest token; its log-probability is still that of temperature 1."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a completion, for tokenizers that write them as several tokens. The token in which one ends is
    kept whole, with whatever else it holds. The engine must know the tokenizer."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: if a value is out of its range.
        """
        if self.max_tokens < 1 or self.temperature < 0:
            raise ValueError(
                f"expected max_tokens >= 1 and temperature >= 0, got {self.max_tokens} and {self.temperature}"
            )
        if "" in self.stop_strings:
            raise ValueError(f"expected stop_strings without an empty one, got {self.stop_strings!r}")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion that is wanted."""

    key: int
    """Names the episode; an engine may keep what it computed for a key's earlier context."""
    ids: Sequence[int]
    """The whole context: prompt and all turns so far."""
    seed: int
    """What is sampled depends on the context, this number and the weights only, not on the other requests."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What was sampled for one request."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    """Log-probabilities in nats of `ids` at temperature 1."""
    finish: FinishReason


@runtime_checkable
class Generator(Protocol):
    """Samples completions."""

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        """Return one completion a request, in their order."""
        ...

    def weights_changed(self) -> None:
        """Drop all that was computed with the old weights; to be called after each update of the policy."""
        ...


@runtime_checkable
class StreamingGenerator(Generator, Protocol):
    """A Generator whose requests need not wait for one another."""

    def submit(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> None:
        """Hand requests to the engine and return at once; their keys differ from those that are under way."""
        ...

    def collect(self) -> list[tuple[int, Completion]]:
        """Return key and completion of at least one request, as soon as one has ended; [] if none is under way.

        Raises:
            EngineError: if some are lost; what others have ended comes with the next call.
        """
        ...

    def abandon(self) -> None:
        """Give up all that is under way; nothing of it is ever collected."""
        ...


class Barrier:
    """A plain Generator as a streaming one: whoever was submitted waits for the slowest."""

    def __init__(self, generator: Generator) -> None:
        """Wrap the generator."""
        self._generator = generator
        self._waiting: list[GenerationRequest] = []
        self._params: SamplingParams | None = None

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        """Return one completion a request, in their order."""
        return self._generator.generate(requests, params)

    def weights_changed(self) -> None:
        """Drop all that was computed with the old weights."""
        self._generator.weights_changed()

    def submit(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> None:
        """Take note of requests.

        Raises:
            ValueError: if others wait that are to be sampled differently.
        """
        if self._waiting and params != self._params:
            raise ValueError(f"expected the sampling of the requests that wait, {self._params}, got {params}")
        self._waiting.extend(requests)
        self._params = params

    def abandon(self) -> None:
        """Forget the requests that wait."""
        self._waiting = []

    def collect(self) -> list[tuple[int, Completion]]:
        """Return the completions of all that wait, by key."""
        requests, self._waiting = sorted(self._waiting, key=lambda request: request.key), []
        if not requests or self._params is None:
            return []
        completions = self._generator.generate(requests, self._params)
        return [(request.key, completion) for request, completion in zip(requests, completions, strict=True)]


def all_at_once(
    generator: StreamingGenerator, requests: Sequence[GenerationRequest], params: SamplingParams
) -> list[Completion]:
    """Return one completion a request, in their order, when all have ended; nothing else may be under way.

    Raises:
        EngineError: if some are lost; the others are given up with them.
    """
    places = [GenerationRequest(place, request.ids, request.seed) for place, request in enumerate(requests)]
    generator.submit(places, params)
    found: dict[int, Completion] = {}
    while len(found) < len(requests):
        try:
            found.update(generator.collect())
        except EngineError as error:
            generator.abandon()
            raise EngineError(str(error), keys=[requests[place].key for place in error.keys]) from error
    return [found[place] for place in range(len(requests))]


def streaming(generator: Generator) -> StreamingGenerator:
    """Return the generator itself if it streams, else one that waits for the slowest."""
    return generator if isinstance(generator, StreamingGenerator) else Barrier(generator)
