"""Amazon Reviews 2023, the raw layout: `<Category>.jsonl[.gz]` (reviews) and `meta_<Category>.jsonl[.gz]` (items)."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trm.data.catalog import PAD, Item
from trm.data.dataset import Dataset
from trm.data.sources.assemble import EventLog, Events, Report, assemble_dataset, count, filter_events
from trm.data.sources.lines import parse_int, parse_json_object, read_lines
from trm.errors import DataFormatError

MAX_STORED_DESCRIPTION_CHARS = 2000
"""How much of a description is kept in the prepared data set."""

_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>")


def raw_files(folder: Path, category: str) -> tuple[Path, Path] | None:
    """Return the files (reviews, items) of a category in folder, plain or gzipped; None unless both are there."""
    found = []
    for stem in (category, f"meta_{category}"):
        paths = [path for path in (folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz") if path.is_file()]
        if not paths:
            return None
        found.append(paths[0])
    return found[0], found[1]


def read_amazon2023(
    folder: Path, category: str, *, min_interactions: int = 5, k_core: int = 0, progress: bool = False
) -> Dataset:
    """Return a category of Amazon Reviews 2023: every review is an interaction, an item is a `parent_asin`.

    Reviews of one user with equal timestamps keep the order of the file. An item that the meta file does not describe,
    or describes without a title, is named after its brand and id, or its id alone, and counted.

    Args:
        folder: holds both files.
        category: as in the file names, e.g. "Video_Games".
        min_interactions: users with fewer reviews, as found in the file, are left out.
        k_core: if not 0, keep only users and items with at least this many interactions among those kept.
        progress: show a bar on stderr.

    Raises:
        DataFormatError: if a file is not what it should be.
        FileNotFoundError: if one of the files is lacking.
    """
    files = raw_files(folder, category)
    if files is None:
        raise FileNotFoundError(
            f"expected {category}.jsonl[.gz] and meta_{category}.jsonl[.gz] in {folder}, got none or one; "
            "get both from Amazon Reviews 2023"
        )
    reviews, meta = files
    log = _read_reviews(reviews, progress=progress)
    report: Report = {"source": f"{reviews.name}, {meta.name}"}
    events = filter_events(log, min_interactions=min_interactions, k_core=k_core, report=report)
    if len(events) == 0:
        raise DataFormatError(
            f"{reviews}: expected users with at least {min_interactions} reviews, got none of {len(log)} reviews"
        )
    items = _read_items(meta, category, events=events, report=report, progress=progress)
    return assemble_dataset(
        f"amazon-{category}",
        events,
        items,
        report=report,
        describe_missing=lambda source_id: Item(item_id=PAD, source_id=source_id, title=source_id, attributes={}),
    )


def _read_reviews(path: Path, *, progress: bool) -> EventLog:
    log = EventLog()
    for where, review in _records(path, progress=progress):
        source_id = review.get("parent_asin") or review.get("asin")
        user_id, timestamp = review.get("user_id"), review.get("timestamp")
        for name, value in (("parent_asin", source_id), ("user_id", user_id), ("timestamp", timestamp)):
            if value is None or value == "":
                raise DataFormatError(f"{where}: expected a review with {name!r}, got none")
        log.append(str(user_id), str(source_id), parse_int(str(timestamp), what="'timestamp'", where=where))
    return log


def _read_items(path: Path, category: str, *, events: Events, report: Report, progress: bool) -> Iterator[Item]:
    """Yield the described items, to be numbered later; others (never taken, seen before) by id alone, to be counted."""
    wanted = {events.source_ids[index] for index in set(events.items.tolist())}
    for where, record in _records(path, progress=progress):
        source_id = record.get("parent_asin") or record.get("asin")
        if not source_id:
            raise DataFormatError(f"{where}: expected an item with 'parent_asin', got none")
        if source_id in wanted:
            wanted.remove(source_id)
            yield _item(str(source_id), record, category=category, report=report)
        else:
            yield Item(item_id=PAD, source_id=str(source_id), title=str(source_id), attributes={})


def _item(source_id: str, record: dict[str, Any], *, category: str, report: Report) -> Item:
    brand = _clean(record.get("store"))
    title = _clean(record.get("title"))
    if not title:
        count(report, "items_without_title")
        title = f"{brand} {source_id}".strip()
    elif title != " ".join(str(record["title"]).split()):
        count(report, "titles_with_entities")
    attributes: dict[str, tuple[str, ...]] = {}
    if brand:
        attributes["brand"] = (brand,)
    if categories := _categories(record, category=category):
        attributes["categories"] = categories
    description = " ".join(_texts(record.get("description")) or _texts(record.get("features")))
    description = " ".join(_MARKUP.sub(" ", description).split())
    if not description:
        count(report, "items_without_description")
    return Item(
        item_id=PAD,
        source_id=source_id,
        title=title,
        attributes=attributes,
        description=description[:MAX_STORED_DESCRIPTION_CHARS],
    )


def _categories(record: dict[str, Any], *, category: str) -> tuple[str, ...]:
    """Return the item's categories, once each, without the one that all items of the data set share."""
    shared = _plain(category)
    named = _texts(record.get("categories")) or _texts([record.get("main_category")])
    return tuple(dict.fromkeys(name for name in named if _plain(name) != shared))


def _plain(name: str) -> str:
    """Return a category's name so that "Industrial & Scientific" equals "Industrial_and_Scientific"."""
    return " ".join(name.replace("_", " ").replace("&", " and ").casefold().split())


def _texts(value: object) -> list[str]:
    """Return the non-empty texts of a field that holds a list, a text or nothing."""
    values = value if isinstance(value, list) else [value]
    return [text for text in (_clean(entry) for entry in values) if text]


def _clean(value: object) -> str:
    """Return one line of text without HTML entities; "" for anything but text."""
    if not isinstance(value, str):
        return ""
    text = value
    for _ in range(2):  # Some titles were escaped twice: "&amp;quot;".
        text = html.unescape(text)
    return " ".join(text.split())


def _records(path: Path, *, progress: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) of every line that is not blank."""
    with tqdm(desc=path.name, unit=" lines", disable=not progress) as bar:
        for number, line in read_lines(path):
            bar.update()
            if line.strip():
                where = f"{path}:{number}"
                yield where, parse_json_object(line, where=where)
