"""Data sets of other packages: found by the entry point group `deeprec.datasets`, read by four functions.

A package says `my_loans = "my_package.reader"` (or `"my_package.reader:Loans"`), and `my_loans` is a data set wherever
one is named. Built-in names cannot be taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, runtime_checkable

from trm.data.catalog import Item
from trm.data.dataset import Dataset
from trm.data.refs import PLUGIN_GROUP, DatasetRef
from trm.data.sources.assemble import EventLog, Filters, Report, assemble_dataset, filter_events
from trm.data.sources.columns import untitled
from trm.errors import DataFormatError


@runtime_checkable
class DatasetReader(Protocol):
    """Four functions: a module that has them, or a class, which is built with what stands behind the name's colon."""

    def source(self) -> str:
        """Return where the raw data stand; what was prepared from another place is prepared again."""
        ...

    def filters(self) -> Filters:
        """Return which interactions stay where nothing else is asked for."""
        ...

    def events(self) -> Iterable[tuple[str, str, int]]:
        """Yield (user id, item id, time in milliseconds), in any order; the order counts where times are equal."""
        ...

    def items(self) -> Iterable[Item]:
        """Yield the items, with any `item_id`: they are numbered later. One without interactions is left out."""
        ...


def load_reader(ref: DatasetRef) -> DatasetReader:
    """Return the reader of a plug-in data set.

    Raises:
        DataFormatError: if the package cannot be imported, or lacks one of the four functions.
        ValueError: if the reader takes nothing behind the colon, or wants something there.
    """
    name, _, argument = ref.name.partition(":")
    point = _points()[name]
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise DataFormatError(f"cannot load {point.value!r}, which brings the data set {name!r}: {error}") from error
    if inspect.isclass(found):
        arguments = [argument] if argument else []
        try:
            inspect.signature(found).bind(*arguments)
        except TypeError as error:
            raise ValueError(f"the data set {name!r} is read by {point.value}, got {ref.name!r}: {error}") from error
        found = found(*arguments)
    elif argument:
        raise ValueError(f"expected {name!r} with nothing behind it, got {ref.name!r}")
    missing = [function for function in ("source", "filters", "events", "items") if not hasattr(found, function)]
    if missing:
        raise DataFormatError(
            f"expected {point.value!r} to have source, filters, events and items, got no {missing[0]}"
        )
    reader: DatasetReader = found
    return reader


def read_plugin(reader: DatasetReader, *, name: str, filters: Filters) -> Dataset:
    """Return the data set that a reader reads.

    Raises:
        DataFormatError: if it yields something else than events.
        ValueError: if no event is left after the filters.
    """
    log = EventLog()
    for number, event in enumerate(reader.events()):
        try:
            user, item, time_ms = event
            log.append(str(user), str(item), int(time_ms))
        except (TypeError, ValueError) as error:
            raise DataFormatError(
                f"{name}: expected event {number} to be (user id, item id, milliseconds), got {event!r}"
            ) from error
    report: Report = {"source": reader.source()}
    events = filter_events(log, filters=filters, report=report)
    return assemble_dataset(name, events, reader.items(), report=report, describe_missing=untitled)


@cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=PLUGIN_GROUP)}
