"""What evaluation keeps: one row a user, in a file an agent, written as it comes and read again by later runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

FORMAT = 1
"""The version of the row files; files of another are not read."""

PlayedTurn = tuple[str, tuple[int, ...]]
"""An action and the candidates that it got, best first."""


@dataclass(frozen=True, slots=True)
class UserRow:
    """How one user's episode went. What has a default of None is unknown in rows of older files."""

    user_index: int
    user_id: str
    rank: int
    """The target's place in the recommended list, 1 to top_k; 0 if it is not there or the episode is malformed."""
    num_searches: int
    well_formed: bool
    """Whether the episode ended in a well-formed recommendation."""
    in_pool: bool
    """Whether the target is among all candidates seen."""
    reward: float
    seconds: float
    turns: tuple[PlayedTurn, ...] = ()
    """The actions, each with what its search returned: enough to play the episode again without agent and recommender.
    Rows of older files have none."""
    failure: str | None = None
    """Why the episode is not well-formed, a MalformedReason; None if it is."""
    recommended_ids: tuple[int, ...] | None = None
    """The recommended items, best first, PAD for a title that no item has; () without a list."""
    novelty: float | None = None
    """Mean self-information of the recommended items in bits, see `breakdown.novelty_of`; None without a list too."""
    tokens: int | None = None
    """What the agent sampled, where it counts that."""
    history_length: int | None = None
    """Items that the user had chosen before."""
    target_count: int | None = None
    """How often the target occurs in the training part of the data."""
    trm_rank: int | None = None
    """Where the recommender without a preference ranks the target; 1 is best, None where it cannot say."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file of rows is about; all of it, but `order` and what follows it, keys the file."""

    agent: str
    fingerprint: str
    """The agent's own, where it has one: its options or its weights."""
    dataset: str
    world: str
    """A checksum of catalogue size and item vectors, so that rows of another TRM are not reused."""
    split: str
    seed: int
    game: str
    """The rules, as text."""
    order: int = 0
    """The agent's place in tables: first evaluated, first shown."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The rules again, as `build_game_config` takes them; none in older files."""
    num_items: int = 0
    """The size of the catalogue; 0 in older files."""

    @property
    def key(self) -> str:
        """A file name: the agent's name for people, a digest of everything for certainty."""
        content = {**dataclasses.asdict(self), "order": 0, "format": FORMAT}
        del content["options"], content["num_items"]  # `game` and `world` say the same
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        slug = re.sub(r"[^a-z0-9]+", "-", self.agent.casefold()).strip("-") or "agent"
        return f"{slug}-{digest}"


@dataclass(frozen=True, slots=True)
class AgentResult:
    """One agent's rows and where they come from."""

    header: Header
    rows: tuple[UserRow, ...]


def load_results(out: Path) -> list[AgentResult]:
    """Return what `evaluate` has kept under `out`, by place in the table; of equal questions the newest answer only.

    Two files ask the same when agent, data set, split and rules are equal; they differ when an agent or a TRM was
    trained anew.
    """
    newest: dict[tuple[str, ...], AgentResult] = {}
    for path in sorted(_rows_folder(out).glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        header, rows = read_rows(path)
        if header is not None and rows:
            question = (header.agent, header.dataset, header.split, header.game)
            newest[question] = AgentResult(header, tuple(rows.values()))
    return sorted(newest.values(), key=lambda result: (result.header.dataset, result.header.order, result.header.agent))


def read_rows(path: Path) -> tuple[Header | None, dict[int, UserRow]]:
    """Return header and rows of a file of `evaluate`; whatever is cut short, or of another format, is left out."""
    # Not splitlines: texts of models hold line ends of every kind.
    first, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    header = _header_of(first)
    if header is None:
        return None, {}
    rows: dict[int, UserRow] = {}
    for number, line in enumerate(lines, start=2):
        try:
            row = _row_of(json.loads(line))
            rows[row.user_index] = row
        except (TypeError, ValueError, AttributeError):
            logger.warning("%s: line %d is not a row and is left out", path, number)
    return header, rows


def read_header(path: Path) -> Header | None:
    """Return what a file of `evaluate` is about; None if it is cut short, or of another format."""
    with path.open(encoding="utf-8") as stream:
        return _header_of(stream.readline())


def _header_of(line: str) -> Header | None:
    try:
        record: dict[str, Any] = json.loads(line)
        return Header(**record) if record.pop("format", None) == FORMAT else None
    except (TypeError, ValueError, AttributeError):
        return None


def _row_of(record: dict[str, Any]) -> UserRow:
    turns = tuple((action, tuple(ids)) for action, ids in record.pop("turns", ()))
    recommended = record.pop("recommended_ids", None)
    return UserRow(**record, turns=turns, recommended_ids=None if recommended is None else tuple(recommended))


def _rows_folder(out: Path) -> Path:
    return out / "rows"


class RowStore:
    """The rows of one agent: read at the beginning, appended to line by line."""

    def __init__(self, out: Path | None, header: Header) -> None:
        """Name what is kept; nothing is read or written before the store is entered.

        Args:
            out: where rows are kept, under rows/; None keeps nothing.
            header: whose rows they are; its place in the order is found here.
        """
        self.header = header
        self.rows: dict[int, UserRow] = {}
        self._path = None if out is None else _rows_folder(out) / f"{header.key}.jsonl"
        self._stream: IO[str] | None = None

    def __enter__(self) -> RowStore:
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        headers = [read_header(path) for path in self._path.parent.glob("*.jsonl")]
        orders = [found.order for found in headers if found is not None]
        order = max(orders, default=-1) + 1
        if self._path.exists():
            found, self.rows = read_rows(self._path)
            order = order if found is None else found.order
        self.header = dataclasses.replace(self.header, order=order)
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        first = json.dumps({"format": FORMAT, **dataclasses.asdict(self.header)})
        draft.write_text("".join(f"{line}\n" for line in (first, *self._lines())), encoding="utf-8")
        draft.replace(self._path)
        self._stream = self._path.open("a", encoding="utf-8")
        return self

    def _lines(self) -> Iterable[str]:
        return (json.dumps(dataclasses.asdict(row)) for row in self.rows.values())

    def add(self, row: UserRow) -> None:
        """Keep a row, and have it on its way to the disk before this returns."""
        self.rows[row.user_index] = row
        if self._stream is not None:
            self._stream.write(json.dumps(dataclasses.asdict(row)) + "\n")
            self._stream.flush()

    def __exit__(self, *exc_info: object) -> None:
        if self._stream is not None:
            self._stream.close()
