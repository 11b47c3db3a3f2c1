"""The loans of a small library: four functions make a data set (see trm.data.plugins.DatasetReader)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from trm.data.catalog import Item
from trm.data.sources.assemble import Filters

FOLDER = Path(__file__).parent


def source() -> str:
    """Return where the raw data stand; another place, or another version, has the data set prepared anew."""
    return f"{FOLDER.name} 0.1.0"


def filters() -> Filters:
    """Return what is left out unless the command line says otherwise: readers with fewer than three loans."""
    return Filters(min_interactions=3)


def events() -> Iterator[tuple[str, str, int]]:
    """Yield reader, book and the loan's time in milliseconds."""
    for loan in _records("loans.jsonl"):
        yield str(loan["reader"]), str(loan["book"]), int(loan["day"]) * 86_400_000


def items() -> Iterator[Item]:
    """Yield the books. What stands in `attributes` is what preferences can ask for."""
    for book in _records("books.jsonl"):
        attributes = {"genres": tuple(book["genres"]), "decade": (book["decade"],)}
        yield Item(0, str(book["book"]), str(book["title"]), attributes)


def _records(name: str) -> Iterator[dict]:
    with (FOLDER / name).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
