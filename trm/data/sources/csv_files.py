"""Two CSV files of one's own: interactions (user, item, time) and items (id, title, whatever describes them)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trm.data.dataset import Dataset
from trm.data.sources.assemble import NO_FILTERS, Filters, Report, assemble_dataset, filter_events
from trm.data.sources.columns import ITEM, ItemColumns, read_items, untitled
from trm.data.sources.tables import Table, read_events

_USER = ("user_id", "userid", "user", "customer_id", "reviewerid")
_TIME = ("timestamp", "time", "date", "datetime", "unixreviewtime")
_BETWEEN_VALUES = "|"


def read_csv(
    interactions: Path,
    items: Path,
    *,
    name: str,
    attributes: Sequence[str] | None = None,
    filters: Filters = NO_FILTERS,
    progress: bool = False,
) -> Dataset:
    """Return the data set of two CSV files with headers, gzipped if their names end in .gz.

    Interactions have the columns `user_id`, `item_id` and, unless the file's order is the order of time, `timestamp`
    (seconds, milliseconds or ISO 8601). Items have `item_id`, `title` and, if there are any, `description`, `year` and
    columns that describe, whose values stand between "|". Some other usual names are understood. An item that the
    second file lacks is named by its id, and counted.

    Args:
        interactions: the first file.
        items: the second file.
        name: of the data set.
        attributes: the columns that describe; all that are nothing else, if not given.
        filters: which interactions stay.
        progress: show a bar on stderr.

    Raises:
        DataFormatError: if a file is not what it should be.
        FileNotFoundError: if there is no such file.
    """
    log = read_events(Table(interactions, progress=progress), user=_USER, item=ITEM, time=_TIME)
    report: Report = {"source": f"{interactions}, {items}"}
    events = filter_events(log, filters=filters, report=report)
    table = Table(items, progress=progress)
    columns = ItemColumns.of(table, attributes=attributes)
    described = read_items(table, columns, split=lambda field: field.split(_BETWEEN_VALUES), report=report)
    return assemble_dataset(name, events, described, report=report, describe_missing=untitled)
