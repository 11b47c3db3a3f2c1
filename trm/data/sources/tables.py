"""Tables in text files, a header, then a row a line, split by commas (quoted where need be) or tabs; events in them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from trm.data.sources.assemble import EventLog
from trm.data.sources.lines import parse_time, read_lines
from trm.errors import DataFormatError

_SEPARATORS = (";", "\t", ",", "|")


class Table:
    """A table whose rows are read as they are asked for; its header is read at once."""

    def __init__(self, path: Path, *, separator: str = ",", quoted: bool = True, progress: bool = False) -> None:
        """Open the file.

        Args:
            path: UTF-8 text, gzipped if its name ends in .gz.
            separator: one character.
            quoted: whether fields may stand in double quotes.
            progress: show a bar on stderr.

        Raises:
            DataFormatError: if there is no header.
            FileNotFoundError: if there is no such file.
        """
        self.path = path
        self._num_lines = 0
        lines = self._counted(read_lines(path, encoding="utf-8-sig", progress=progress))
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        self._rows = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        try:
            self.header = [name.strip() for name in next(self._rows)]
        except (StopIteration, csv.Error) as error:
            raise DataFormatError(f"{path}:1: expected a header, got an empty file or a bad line") from error
        other = next((mark for mark in _SEPARATORS if len(self.header) == 1 and mark in self.header[0]), None)
        if other is not None:
            raise DataFormatError(
                f"{path}:1: expected columns split by {separator!r}, got one column that holds {other!r}; "
                f"write the file anew with {separator!r} between the columns"
            )

    def column(self, names: Sequence[str]) -> int | None:
        """Return the place of the first of these columns that there is; case does not matter."""
        places = {name.casefold(): place for place, name in reversed(list(enumerate(self.header)))}
        return next((places[name] for name in names if name in places), None)

    def require(self, names: Sequence[str]) -> int:
        """Return the place of the first of these columns that there is.

        Raises:
            DataFormatError: if there is none.
        """
        place = self.column(names)
        if place is None:
            raise DataFormatError(f"{self.path}:1: expected a column {' or '.join(names)}, got {self.header}")
        return place

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (where, fields) of every row that is not blank.

        Raises:
            DataFormatError: if a row has not as many fields as the header.
        """
        num_fields = len(self.header)
        try:
            for fields in self._rows:
                where = f"{self.path}:{self._num_lines}"
                if len(fields) == num_fields:
                    yield where, fields
                elif fields:
                    raise DataFormatError(f"{where}: expected {num_fields} fields, got {len(fields)}")
        except csv.Error as error:
            raise DataFormatError(
                f"{self.path}:{self._num_lines}: expected a row of a table, got {error}; does a quote lack its end?"
            ) from error

    def _counted(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        for number, line in lines:
            self._num_lines = number
            yield line + "\n"


def read_events(table: Table, *, user: Sequence[str], item: Sequence[str], time: Sequence[str]) -> EventLog:
    """Return the interactions of a table whose columns have one of these names; without a time the file's order counts.

    Raises:
        DataFormatError: if there is no column of the user or the item, or a row lacks its value.
    """
    user_at, item_at, time_at = table.require(user), table.require(item), table.column(time)
    log = EventLog()
    for where, row in table:
        if not row[user_at] or not row[item_at]:
            raise DataFormatError(f"{where}: expected a user and an item, got {row[user_at]!r} and {row[item_at]!r}")
        log.append(row[user_at], row[item_at], 0 if time_at is None else parse_time(row[time_at], where=where))
    if len(log) == 0:
        raise DataFormatError(f"{table.path}: expected interactions, got none after the header")
    return log
