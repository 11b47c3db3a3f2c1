"""Where candidates come from, by a word: this process, a service, a recording.

http://127.0.0.1:6001                       a retrieval service (`deeprec serve recall`)
record:runs/a.jsonl                         this process, every retrieval kept in the file
record:runs/a.jsonl@http://127.0.0.1:6001   a service, kept as well
replay:runs/a.jsonl                         the file alone
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from trm.recording import RecordingRetriever, ReplayRetriever
from trm.types import RankingRetriever

TOKEN_VARIABLE = "DEEPREC_TOKEN"
"""The environment variable of the bearer token of services."""


def service_token() -> str | None:
    """Return the bearer token of this process's environment; None if there is none."""
    return os.environ.get(TOKEN_VARIABLE) or None


def recorded_file(source: str) -> tuple[str, Path]:
    """Return ("record" or "replay", its file); ("", the empty path) for a source that is no recording."""
    kind, _, rest = source.partition(":")
    return (kind, Path(rest.partition("@")[0])) if kind in ("record", "replay") else ("", Path())


def build_retriever(source: str | None, local: Callable[[], RankingRetriever], *, recommender: str) -> RankingRetriever:
    """Return the Retriever that the source names.

    Args:
        source: see above; None and "" mean this process.
        local: builds the Retriever of this process.
        recommender: the fingerprint of the local one, which a service must share.

    Raises:
        ValueError: if the source has another form.
        RetrieverError: if a service cannot be reached or serves something else.
        DataFormatError: if a recording is damaged.
    """
    if not source:
        return local()
    kind, _, rest = source.partition(":")
    if kind in ("http", "https"):
        from trm.client import HttpRetriever  # httpx, which only this needs

        return HttpRetriever(source, token=service_token()).checked(recommender)
    if kind == "record" and rest:
        recorded = rest.partition("@")[2]
        inner = build_retriever(recorded, local, recommender=recommender)
        return RecordingRetriever(inner, recorded_file(source)[1], recommender=recommender)
    if kind == "replay" and rest:
        return ReplayRetriever(recorded_file(source)[1])
    raise ValueError(f"expected http://HOST:PORT, record:FILE or replay:FILE, got {source!r}")


def source_of(*, retriever: str | None, record: Path | None, replay: Path | None) -> str | None:
    """Return the source that the three options of the command line mean together; None if none is given.

    Raises:
        ValueError: if a replay is combined with another.
    """
    if replay is not None:
        if retriever or record is not None:
            raise ValueError("--replay answers alone; leave out --retriever and --record")
        return f"replay:{replay}"
    if record is not None:
        return f"record:{record}@{retriever}" if retriever else f"record:{record}"
    return retriever
