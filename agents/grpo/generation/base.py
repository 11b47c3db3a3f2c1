"""What a sampling engine takes and gives. Token ids in, token ids out; no text, no environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class FinishReason(StrEnum):
    """Why an engine ended a completion."""

    STOP = "stop"
    """A stop token was sampled; it is the last of the ids."""
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

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: if a value is out of its range.
        """
        if self.max_tokens < 1 or self.temperature < 0:
            raise ValueError(
                f"expected max_tokens >= 1 and temperature >= 0, got {self.max_tokens} and {self.temperature}"
            )


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
