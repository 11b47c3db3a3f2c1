"""The data layout of the original DeepRec, read: `<folder>/Retrieval/{meta.json,train_id,valid_id,test_id.jsonl}`.

A line of the three `_id` files is `{"idx": user, "history": [ids], "target": id}`; `meta.json` is `{id: {"title": …,
"categories" or "category": …}}`. What `deeprec_export` writes beyond that is understood, so that nothing gets lost on
the way there and back. The embeddings are not read: the text encoder and the TRM make their own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm.data.catalog import Catalog, Item
from trm.data.dataset import Dataset
from trm.data.interactions import Interactions
from trm.data.sources.assemble import Report, count, log_report
from trm.data.sources.lines import parse_json_object, read_lines
from trm.data.splits import MIN_INTERACTIONS
from trm.errors import DataFormatError

RETRIEVAL = "Retrieval"
META = "meta.json"
ID_FILES = {"test": "test_id.jsonl", "valid": "valid_id.jsonl", "train": "train_id.jsonl"}
CATEGORIES_AS_TEXT = "categories_as_text"
"""In the account: the layout held an item's categories as one text, "A, B", and gets them back so."""

_SEPARATOR = ", "

logger = logging.getLogger(__name__)


@dataclass
class _User:
    user_id: str
    sequence: list[str]
    """All items, oldest first."""
    written_times: list[int] | None

    def times(self) -> Sequence[int]:
        """Return the timestamps as they were written, or the places in the sequence."""
        if self.written_times is not None and len(self.written_times) == len(self.sequence):
            return self.written_times
        return range(len(self.sequence))

    def extend(self, earlier: list[str], *, held_out: int) -> bool:
        """Continue the sequence to the past by one that ends held_out items before it; False if they contradict."""
        known = self.sequence[:-held_out]
        shared = min(len(known), len(earlier))
        if shared == 0 or known[-shared:] != earlier[-shared:]:
            return False
        self.sequence = earlier[: len(earlier) - shared] + self.sequence
        return True

    def holds(self, part: list[str]) -> bool:
        """Return whether part stands in the sequence, without gaps."""
        size = len(part)
        return any(self.sequence[at : at + size] == part for at in range(len(self.sequence) - size + 1))


def read_deeprec(folder: Path, *, name: str | None = None) -> Dataset:
    """Return the data set of a folder in the original layout.

    A user's sequence is the test line's history and target, continued to the past by the other lines where they reach
    further back. Without timestamps the place in it is the time. Training lines that are no part of the sequence of
    the user of that idx are counted and left out: what trains is every sequence but its last two items.

    Args:
        folder: holds `Retrieval/`.
        name: of the data set; "deeprec-" and the folder's name, if not given.

    Raises:
        DataFormatError: if a file is not what it should be, or the validation lines contradict the test lines.
        FileNotFoundError: if a file is lacking.
    """
    files = folder / RETRIEVAL
    report: Report = {"source": str(folder)}
    items = _read_meta(files / META, report)
    users = _read_users(files, items, report)
    if not users:
        raise DataFormatError(f"{files / ID_FILES['test']}: expected lines of users, got an empty file")
    places = {source_id: item.item_id for source_id, item in items.items()}
    lengths = [len(user.sequence) for user in users.values()]
    interactions = Interactions(
        user_ids=tuple(user.user_id for user in users.values()),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        item_ids=np.array([places[item] for user in users.values() for item in user.sequence], dtype=np.int64),
        timestamps=np.array([time for user in users.values() for time in user.times()], dtype=np.int64),
    )
    catalog = Catalog(list(items.values()))
    counts = interactions.num_users, catalog.num_items, interactions.num_interactions
    report |= dict(zip(("users", "items", "interactions"), counts))
    dataset = Dataset(name or f"deeprec-{folder.resolve().name}", catalog, interactions, report=report)
    log_report(dataset.name, report)
    return dataset


def _read_meta(path: Path, report: Report) -> dict[str, Item]:
    """Return the items by the layout's ids, numbered in its order."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataFormatError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(records, dict) or not records:
        raise DataFormatError(f"{path}: expected an object of items by id, got {str(records)[:80]!r}")
    if all(isinstance(record, dict) and isinstance(record.get("categories"), str) for record in records.values()):
        report[CATEGORIES_AS_TEXT] = "yes"
    return {
        source_id: _item(source_id, record, item_id=place, where=f"{path}: item {source_id!r}", report=report)
        for place, (source_id, record) in enumerate(records.items(), start=1)
    }


def _item(source_id: str, record: object, *, item_id: int, where: str, report: Report) -> Item:
    if not isinstance(record, dict):
        raise DataFormatError(f"{where}: expected an object with a title, got {str(record)[:80]!r}")
    title = str(record.get("title") or "")
    if not title.strip():
        count(report, "items_without_title")
    written = record.get("attributes")
    if written is None:
        written = {kind: record[kind] for kind in ("categories", "category") if record.get(kind)}
    if not isinstance(written, Mapping):
        raise DataFormatError(f"{where}: expected attributes by kind, got {str(written)[:80]!r}")
    attributes = {str(kind): _values(str(kind), field, where=where) for kind, field in written.items()}
    return Item(
        item_id=item_id,
        source_id=str(record.get("source_id", source_id)),
        title=title or source_id,
        attributes={kind: values for kind, values in attributes.items() if values},
        description=str(record.get("description", "")),
        year=record.get("year"),
    )


def _values(kind: str, field: object, *, where: str) -> tuple[str, ...]:
    if isinstance(field, str):
        return tuple(field.split(_SEPARATOR)) if kind == "categories" else (field,)
    if isinstance(field, list):
        return tuple(str(value) for value in field)
    raise DataFormatError(f"{where}: expected a text or a list as {kind}, got {str(field)[:80]!r}")


def _read_users(files: Path, items: Mapping[str, Item], report: Report) -> dict[str, _User]:
    users: dict[str, _User] = {}
    for where, idx, sequence, record in _id_lines(files / ID_FILES["test"], items):
        if idx in users:
            raise DataFormatError(f"{where}: expected one line a user, got a second of idx {idx}")
        if len(sequence) < MIN_INTERACTIONS:
            raise DataFormatError(f"{where}: expected a history of two items or more, got {len(sequence) - 1}")
        users[idx] = _User(str(record.get("user_id", idx)), sequence, record.get("timestamps"))
    for where, idx, sequence, _ in _id_lines(files / ID_FILES["valid"], items):
        if idx not in users:
            raise DataFormatError(f"{where}: expected a user of {ID_FILES['test']}, got idx {idx}")
        if not users[idx].extend(sequence, held_out=1):
            raise DataFormatError(f"{where}: expected the test history of idx {idx} without its last item, got another")
    strangers = 0
    for _, idx, sequence, _ in _id_lines(files / ID_FILES["train"], items):
        user = users.get(idx)
        if user is None or not (user.extend(sequence, held_out=2) or user.holds(sequence)):
            strangers += 1
    report["training_lines_of_no_known_sequence"] = strangers
    if strangers:
        logger.warning(
            "%s: %d lines are no part of the sequence of the user of that idx and are left out",
            files / ID_FILES["train"],
            strangers,
        )
    return users


def _id_lines(path: Path, items: Mapping[str, Item]) -> Iterator[tuple[str, str, list[str], dict[str, Any]]]:
    """Yield (where, idx, history and target, record) of every line."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = parse_json_object(line, where=where)
        idx, history, target = (record.get(name) for name in ("idx", "history", "target"))
        if idx is None or target is None or not isinstance(history, list):
            raise DataFormatError(f"{where}: expected idx, history (a list of ids) and target, got {line[:80]!r}")
        sequence = [str(source_id) for source_id in (*history, target)]
        unknown = [source_id for source_id in sequence if source_id not in items]
        if unknown:
            raise DataFormatError(f"{where}: expected items of {META}, got the id {unknown[0]!r}")
        yield where, str(idx), sequence, record
