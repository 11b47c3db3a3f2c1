"""Record and replay: every retrieval kept in a file, and a Retriever that answers from it and from nothing else.

A file is JSON lines: first {"format": 1, "recommender": "773c2eb2"}, then a line for each different query with its
answer. A line that was cut short by a crash is dropped when the file is opened again. One process writes at a time.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import logging
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from trm.errors import DataFormatError, ReplayMiss, RetrieverError
from trm.types import Candidates, IntArray, RankingRetriever, RetrievalQuery
from trm.wire import answer_record, query_record, read_answer, read_query

logger = logging.getLogger(__name__)

FORMAT = 1

_Ranked = tuple[RetrievalQuery, int]


class _Tape:
    """What a file holds, in memory."""

    def __init__(self) -> None:
        self.answers: dict[RetrievalQuery, Candidates] = {}
        self.ranks: dict[_Ranked, int] = {}
        self.recommender = ""
        """The fingerprint of the recommender that was recorded."""
        self.num_good_bytes = 0
        """Up to the end of the last whole line."""

    def read(self, path: Path) -> None:
        content = path.read_bytes()
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it is cut short")
                self._add(json.loads(line), number)
            except (ValueError, KeyError, TypeError) as error:
                if number == 1 or self.num_good_bytes + len(line) < len(content):
                    raise DataFormatError(
                        f"{path}, line {number}: expected a recorded retrieval, got {error}; record it again"
                    ) from error
                logger.warning("%s: the last line was cut short and is dropped", path)
                return
            self.num_good_bytes += len(line)

    def _add(self, record: Mapping[str, Any], number: int) -> None:
        if number == 1:
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}")
            self.recommender = record["recommender"]
            return
        query = read_query(record)
        if "target" in record:
            self.ranks[query, record["target"]] = record["rank"]
        else:
            self.answers[query] = read_answer(record)


class RecordingRetriever:
    """Another Retriever's answers, each different one also written to a file before it is given."""

    def __init__(self, retriever: RankingRetriever, path: Path, *, recommender: str = "") -> None:
        """Open the file; what it holds already is kept and not written twice (but asked again).

        Args:
            retriever: answers.
            path: the file.
            recommender: the fingerprint of what answers.

        Raises:
            DataFormatError: if the file is no recording, or one of another recommender.
            RetrieverError: if another process is writing it.
        """
        self._retriever = retriever
        self._tape = _Tape()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: IO[str] = path.open("a", encoding="utf-8")
        weakref.finalize(self, self._stream.close)
        self._lock(path)
        if path.stat().st_size:
            self._tape.read(path)
            if self._tape.recommender != recommender:
                raise DataFormatError(
                    f"{path}: expected a recording of the recommender {recommender!r}, got one of "
                    f"{self._tape.recommender!r}; record into another file"
                )
            self._stream.truncate(self._tape.num_good_bytes)
        if not self._tape.num_good_bytes:
            self._write({"format": FORMAT, "recommender": recommender})
            self._stream.flush()

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        """Return the other Retriever's answers."""
        answers = self._retriever.retrieve(queries)
        for query, answer in zip(queries, answers, strict=True):
            if query not in self._tape.answers:
                self._tape.answers[query] = answer
                self._write({**query_record(query), **answer_record(answer)})
        self._stream.flush()
        return answers

    def ranks(self, queries: Sequence[RetrievalQuery], targets: Sequence[int]) -> IntArray:
        """Return the other Retriever's ranks."""
        ranks = self._retriever.ranks(queries, targets)
        for query, target, rank in zip(queries, targets, ranks.tolist(), strict=True):
            if (query, int(target)) not in self._tape.ranks:
                self._tape.ranks[query, int(target)] = rank
                self._write({**query_record(query), "target": int(target), "rank": rank})
        self._stream.flush()
        return ranks

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RetrieverError(f"{path} is being recorded by another process; record into another file") from error

    def _write(self, record: Mapping[str, object]) -> None:
        self._stream.write(json.dumps(record) + "\n")


class ReplayRetriever:
    """Answers from a recording; asks nobody."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            DataFormatError: if it is no recording.
            FileNotFoundError: if there is none.
        """
        self._path = path
        self._tape = _Tape()
        self._tape.read(path)

    @property
    def recommender(self) -> str:
        """The fingerprint of the recommender that was recorded."""
        return self._tape.recommender

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        """Return one Candidates a query, in the order of the queries.

        Raises:
            ReplayMiss: if one of them was not recorded.
        """
        answers = self._tape.answers
        for query in queries:
            if query not in answers:
                raise ReplayMiss(self._miss(query))
        return [answers[query] for query in queries]

    def ranks(self, queries: Sequence[RetrievalQuery], targets: Sequence[int]) -> IntArray:
        """Return each target's rank; errors as of `retrieve`."""
        ranks = self._tape.ranks
        for query, target in zip(queries, targets, strict=True):
            if (query, int(target)) not in ranks:
                raise ReplayMiss(f"{self._path} holds no rank of item {target} {_described(query)}; record it again")
        return np.asarray([ranks[query, int(target)] for query, target in zip(queries, targets)], dtype=np.int64)

    def _miss(self, query: RetrievalQuery) -> str:
        recorded = {known.preference for known in self._tape.answers if known.history == query.history}
        near = difflib.get_close_matches(query.preference, recorded, n=1, cutoff=0.0)
        hint = f"nearest is {near[0]!r}" if near else "nothing was recorded for this history"
        return f"{self._path} holds no retrieval {_described(query)} ({hint}); record the run again"


def _described(query: RetrievalQuery) -> str:
    history = ", ".join(map(str, query.history[-3:]))
    return (
        f"for preference {query.preference!r}, k={query.k}, exclude_history={query.exclude_history} and a history of "
        f"{len(query.history)} items ending in {history or 'nothing'}"
    )
