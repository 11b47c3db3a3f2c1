"""Histories without any text: a line a user, `user item item …`, oldest first."""

from __future__ import annotations

from pathlib import Path

from trm.data.dataset import Dataset
from trm.data.sources.assemble import NO_FILTERS, EventLog, Filters, Report, assemble_dataset, filter_events
from trm.data.sources.columns import untitled
from trm.data.sources.lines import read_lines
from trm.errors import DataFormatError


def read_ids(path: Path, *, name: str | None = None, filters: Filters = NO_FILTERS, progress: bool = False) -> Dataset:
    """Return the data set of a file of ids; an item's id is its title, and the place in the line is the time.

    Args:
        path: the file, gzipped if its name ends in .gz.
        name: of the data set; "ids-" and the file's name, if not given.
        filters: which interactions stay.
        progress: show a bar on stderr.

    Raises:
        DataFormatError: if a user has two lines, or the file is no text.
        FileNotFoundError: if there is no such file.
    """
    log = EventLog()
    line_by_user: dict[str, int] = {}
    for number, line in read_lines(path, progress=progress):
        user_id, *history = line.split() or [""]
        if not user_id:
            continue
        if user_id in line_by_user:
            raise DataFormatError(
                f"{path}:{number}: expected one line a user, got {user_id!r} as in line {line_by_user[user_id]}"
            )
        line_by_user[user_id] = number
        for place, source_id in enumerate(history):
            log.append(user_id, source_id, place)
    if len(log) == 0:
        raise DataFormatError(f"{path}: expected lines such as '7 31 32 33', got none")
    report: Report = {"source": str(path)}
    events = filter_events(log, filters=filters, report=report)
    return assemble_dataset(
        name or f"ids-{path.name.split('.')[0]}", events, (), report=report, describe_missing=untitled
    )
