"""Queries and answers as JSON records: one form for the retrieval service's clients and for recordings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trm.types import Candidates, RetrievalQuery


def query_record(query: RetrievalQuery) -> dict[str, Any]:
    """Return the query as JSON can hold it."""
    return {
        "history": [int(item_id) for item_id in query.history],
        "preference": sendable(query.preference),
        "k": query.k,
        "exclude_history": query.exclude_history,
    }


def read_query(record: Mapping[str, Any]) -> RetrievalQuery:
    """Return the query of a record; fields beside its own are ignored.

    Raises:
        KeyError: if a field is missing.
        TypeError: if the history is no list.
    """
    return RetrievalQuery(tuple(record["history"]), record["preference"], record["k"], record["exclude_history"])


def answer_record(answer: Candidates) -> dict[str, Any]:
    """Return the answer as JSON can hold it; its numbers come back as they are."""
    return {"item_ids": list(answer.item_ids), "scores": list(answer.scores)}


def read_answer(record: Mapping[str, Any]) -> Candidates:
    """Return the answer of a record; errors as of `read_query`."""
    return Candidates(tuple(map(int, record["item_ids"])), tuple(map(float, record["scores"])))


def sendable(text: str) -> str:
    """Return the text with halves of surrogate pairs, which no encoding can hold, replaced by "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
