"""What ends a run, in words: what happened, and what to do about it."""

from __future__ import annotations

import errno
import textwrap

import torch

from agents.base import AgentError
from trm.errors import RetrieverError

FAILURES = (AgentError, RetrieverError, OSError, MemoryError, RuntimeError)
"""After which a run's state is saved. torch reports most of its troubles, memory among them, as RuntimeError."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "No available memory",
    "desired GPU memory",
)
"""As torch and vLLM say it."""
_LONGEST = 400
_AGAIN = "then start the same command again"


class Halt(AgentError):
    """The run cannot go on. All ranks raise it together, and the weights are what they were before this step."""

    def __init__(self, what: str, remedy: str) -> None:
        """Say what happened and what to do, half a sentence each."""
        super().__init__(what)
        self.what, self.remedy = what, remedy


def describe(error: BaseException) -> tuple[str, str] | None:
    """Return what happened and what to do, half a sentence each; None for an error that is no known trouble."""
    if isinstance(error, Halt):
        return error.what, error.remedy
    what = textwrap.shorten(str(error), _LONGEST, placeholder=" …") or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RetrieverError):
            return f"the retriever failed ({what})", (
                f"bring it back (deeprec serve recall, or another --retriever), {_AGAIN}"
            )
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return f"the disk is full ({what})", f"make room there, {_AGAIN}"
        if _memory(cause):
            return f"out of memory ({what})", (
                "lower users_per_step (or change engine_memory of vLLM) if it came in sampling, lower "
                f"micro_batch_tokens or set backend.gradient_checkpointing if it came in the update, {_AGAIN}"
            )
        cause = cause.__cause__
    return (what, f"see to that, {_AGAIN}") if isinstance(error, AgentError | OSError) else None


def _memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | ValueError) and any(words in str(error) for words in _MEMORY_WORDS)
