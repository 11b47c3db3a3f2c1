"""Markdown as a person reads it in a terminal: its tables drawn, each with what fits into the width."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_CELLS = re.compile(r"(?<!\\)\|")
_INTERVAL = re.compile(r" (?=[(\[])")
_UNBOUNDED = 100_000
_RULE = re.compile(r"[|:\- ]+")


def say_markdown(text: str) -> None:
    """Write Markdown to standard output: as it is into files and pipes, with its tables drawn on a terminal."""
    if not sys.stdout.isatty():
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        return
    from rich.console import Console

    draw_markdown(text, Console())


def draw_markdown(text: str, console: Console) -> None:
    """Write Markdown with every table drawn; a table too wide for the console is turned, agents side by side."""
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if not is_table:
            for line in lines:
                console.print(line, markup=False, highlight=False, soft_wrap=len(line) <= console.width)
            continue
        rows = [row for row in map(_cells, lines) if not all(map(_RULE.fullmatch, row))]
        for part in _that_fit(rows, console):
            console.print(part)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELLS.split(line.strip())[1:-1]]


def _that_fit(rows: Sequence[Sequence[str]], console: Console) -> Iterator[Table]:
    """Yield the rows as one table, or, where that is too wide, turned into tables of as many columns as fit."""
    if _width(table := _table(rows), console) <= console.width:
        yield table
        return
    heading, *body = rows
    while body:
        count = len(body)
        while count > 1 and _width(_turned(heading, body[:count]), console) > console.width:
            count -= 1
        yield _turned(heading, body[:count])
        body = body[count:]


def _width(table: Table, console: Console) -> int:
    """Return how many columns of characters the table takes where nothing bounds it."""
    return console.measure(table, options=console.options.update(width=_UNBOUNDED)).maximum


def _turned(heading: Sequence[str], body: Sequence[Sequence[str]]) -> Table:
    return _table(list(zip(heading, *body, strict=True)))


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """Return the rows with the first as heading; an interval stands below its number."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    first, *others = rows
    table = Table(box=box.SIMPLE_HEAD, show_lines=False, pad_edge=False)
    for place, name in enumerate(first):
        table.add_column(Text(_INTERVAL.sub("\n", name)), justify="left" if place == 0 else "right")
    for row in others:
        table.add_row(*(Text(_INTERVAL.sub("\n", cell)) for cell in row))
    return table
