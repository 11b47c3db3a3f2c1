"""The errors of the environment, and the one way in which it suggests a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeepRecError(Exception):
    """Base of all errors of the deeprec_env package that are not about an argument's value."""


class EpisodeEnded(DeepRecError):
    """A step was asked of an episode that has ended."""


def unknown_name(kind: str, value: object, valid: Iterable[str]) -> ValueError:
    """Return the error for a name that is not among the valid ones, with the closest of them.

    Args:
        kind: what the name is, in the caller's words ("stage").
        value: what was given.
        valid: the names that would have done.
    """
    names = [str(name) for name in valid]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ValueError(f"expected {kind} to be one of {', '.join(map(repr, names))}, got {value!r}{hint}")
