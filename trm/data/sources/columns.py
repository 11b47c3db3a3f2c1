"""Items from the columns of a table: which column is what, and what becomes of the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trm.data.catalog import PAD, Item
from trm.data.sources.assemble import Report, count
from trm.data.sources.tables import Table
from trm.errors import DataFormatError

ITEM = ("item_id", "itemid", "item", "id", "asin", "parent_asin")
TITLE = ("title", "item_title", "movie_title", "product_title", "name", "item_name")
DESCRIPTION = ("description", "desc")
YEAR = ("year", "release_year", "movie_year")

_FIRST_YEAR = 1000
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class ItemColumns:
    """Where an item table holds what; None where it does not."""

    item: int
    title: int | None
    description: int | None
    year: int | None
    attributes: tuple[tuple[str, int], ...]
    """(kind, place) of every other column."""

    @classmethod
    def of(cls, table: Table, *, attributes: Sequence[str] | None = None) -> ItemColumns:
        """Return the columns of a table by their names.

        Args:
            table: of items.
            attributes: the columns that describe; all that are nothing else, if not given.

        Raises:
            DataFormatError: if there is no column with the item's id, or none of an attribute that was asked for.
        """
        roles = table.require(ITEM), table.column(TITLE), table.column(DESCRIPTION), table.column(YEAR)
        if attributes is None:
            attributes = [name for place, name in enumerate(table.header) if place not in roles]
        return cls(*roles, attributes=tuple((name.casefold(), table.require([name.casefold()])) for name in attributes))


def read_items(
    table: Table, columns: ItemColumns, *, split: Callable[[str], Sequence[str]], report: Report
) -> Iterator[Item]:
    """Yield the items of a table, to be numbered later; plain numbers are no attributes.

    An item without a title is named by its id, and counted.

    Args:
        table: of items.
        columns: its columns.
        split: the values of an attribute's field.
        report: grows by what is counted.

    Raises:
        DataFormatError: if a row has no id.
    """
    for where, row in table:
        source_id = row[columns.item]
        if not source_id:
            raise DataFormatError(f"{where}: expected the id of an item, got none")
        title = "" if columns.title is None else " ".join(row[columns.title].split())
        if not title:
            count(report, "items_without_title")
        attributes = {}
        for kind, place in columns.attributes:
            values = (" ".join(value.split()) for value in split(row[place]))
            if kept := tuple(dict.fromkeys(value for value in values if value and not _NUMBER.fullmatch(value))):
                attributes[kind] = kept
        year = None if columns.year is None else _year(row[columns.year])
        if year is not None:
            attributes["decade"] = (f"{year // 10 * 10}s",)
        yield Item(
            item_id=PAD,
            source_id=source_id,
            title=title or source_id,
            attributes=attributes,
            description="" if columns.description is None else " ".join(row[columns.description].split()),
            year=year,
        )


def untitled(source_id: str) -> Item:
    """Return the item that stands for one that no table describes: its id is its title."""
    return Item(item_id=PAD, source_id=source_id, title=source_id, attributes={})


def _year(text: str) -> int | None:
    found = re.fullmatch(r"(\d{4})(?:\.0)?(?:-.*)?", text.strip())
    return int(found[1]) if found and int(found[1]) >= _FIRST_YEAR else None
