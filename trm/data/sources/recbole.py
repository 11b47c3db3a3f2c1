"""RecBole's atomic files: `<name>.inter` and, if there is one, `<name>.item`, tab-separated, columns `name:type`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trm.data.catalog import Item
from trm.data.dataset import Dataset
from trm.data.sources.assemble import NO_FILTERS, Filters, Report, assemble_dataset, filter_events
from trm.data.sources.columns import ItemColumns, read_items, untitled
from trm.data.sources.tables import Table, read_events
from trm.errors import DataFormatError

_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def read_recbole(
    folder: Path, *, name: str | None = None, filters: Filters = NO_FILTERS, progress: bool = False
) -> Dataset:
    """Return the data set of a folder of atomic files.

    Columns of type token and token_seq describe the items (a sequence's values stand between spaces, or in quotes);
    numbers do not. Without `<name>.item`, or where it has no title, an item is named by its id.

    Args:
        folder: holds one `*.inter`.
        name: of the data set; "recbole-" and the file's name, if not given.
        filters: which interactions stay.
        progress: show a bar on stderr.

    Raises:
        DataFormatError: if a file is not what it should be, or the folder holds not one `*.inter`.
    """
    found = sorted(folder.glob("*.inter"))
    if len(found) != 1:
        raise DataFormatError(f"{folder}: expected one file *.inter, got {[path.name for path in found] or 'none'}")
    interactions, described = found[0], found[0].with_suffix(".item")
    log = read_events(
        _AtomicTable(interactions, progress=progress),
        user=["user_id", "user"],
        item=["item_id", "item"],
        time=["timestamp", "time"],
    )
    report: Report = {"source": str(folder)}
    events = filter_events(log, filters=filters, report=report)
    items: Iterator[Item] = iter(())
    if described.is_file():
        table = _AtomicTable(described)
        columns = ItemColumns.of(table, attributes=table.not_read_by_role)
        items = read_items(table, columns, split=_values, report=report)
    return assemble_dataset(
        name or f"recbole-{interactions.stem}", events, items, report=report, describe_missing=untitled
    )


class _AtomicTable(Table):
    """A table whose header names the columns' types."""

    def __init__(self, path: Path, *, progress: bool = False) -> None:
        super().__init__(path, separator="\t", quoted=False, progress=progress)
        parts = [name.partition(":") for name in self.header]
        for name, _, kind in parts:
            if kind not in ("token", "token_seq", "float", "float_seq"):
                raise DataFormatError(f"{path}:1: expected columns such as 'item_id:token', got {name!r} of {kind!r}")
        self.header = [name for name, _, _ in parts]
        self._tokens = [name for name, _, kind in parts if kind.startswith("token")]

    @property
    def not_read_by_role(self) -> list[str]:
        """The columns of tokens that are neither id nor title nor description nor year."""
        roles = ItemColumns.of(self, attributes=())
        taken = {roles.item, roles.title, roles.description, roles.year}
        return [name for name in self._tokens if self.header.index(name) not in taken]


def _values(field: str) -> Sequence[str]:
    if field[:1] in "'\"[":
        return [one or other for one, other in _QUOTED.findall(field)]
    return field.split(" ")
