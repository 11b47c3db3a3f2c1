"""Amazon Reviews, the raw files of 2023 and of 2018: one JSON object a line, reviews and items apart.

Every review is an interaction, several of one user for one item too. Reviews of one user with equal timestamps keep the
order of the file.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm.data.catalog import PAD, Item
from trm.data.dataset import Dataset
from trm.data.sources.assemble import EventLog, Events, Filters, Report, assemble_dataset, count, filter_events
from trm.data.sources.lines import parse_int, parse_json_object, read_lines
from trm.errors import DataFormatError

MAX_STORED_DESCRIPTION_CHARS = 2000
"""How much of a description is kept in the prepared data set."""

DEFAULT_FILTERS = Filters(min_interactions=5)

_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>")
_TITLE_MARKUP = re.compile(r"</?(?:a|b|br|div|em|font|h\d|i|img|li|p|span|strong|sub|sup|u|ul)(?:\s[^<>]*)?/?>", re.I)
_SCRIPT = re.compile(r"getTime\(|function\s*\(|\{\s*display:")
"""Of the page that was fetched; some fields of 2018 hold it instead of a text."""


@dataclass(frozen=True, kw_only=True)
class AmazonLayout:
    """How the files and fields of one edition are named."""

    edition: str
    key: str
    """Begins the names of its data sets."""
    review_files: tuple[str, ...]
    item_file: str
    item_id: tuple[str, ...]
    """The first of these fields that is there names the item."""
    user_id: str
    timestamp: str
    timestamp_ms: int
    """The unit of timestamp."""
    brand: str
    categories: str
    features: str

    def find(self, folder: Path, category: str) -> tuple[Path, Path] | None:
        """Return the files (reviews, items) of a category in folder, plain or gzipped; None unless both are there."""
        reviews, items = (
            next((path for name in names for path in _either(folder / name.format(category)) if path.is_file()), None)
            for names in (self.review_files, (self.item_file,))
        )
        return (reviews, items) if reviews and items else None

    def file_names(self, category: str) -> str:
        """Return how the two files are called, for messages."""
        reviews = " or ".join(f"{name.format(category)}[.gz]" for name in self.review_files)
        return f"{reviews} and {self.item_file.format(category)}[.gz] of {self.edition}"


AMAZON_2023 = AmazonLayout(
    edition="Amazon Reviews 2023",
    key="amazon",
    review_files=("{}.jsonl",),
    item_file="meta_{}.jsonl",
    item_id=("parent_asin", "asin"),
    user_id="user_id",
    timestamp="timestamp",
    timestamp_ms=1,
    brand="store",
    categories="categories",
    features="features",
)
AMAZON_2018 = AmazonLayout(
    edition="Amazon Reviews 2018",
    key="amazon-2018",
    review_files=("{}_5.json", "{}.json"),
    item_file="meta_{}.json",
    item_id=("asin",),
    user_id="reviewerID",
    timestamp="unixReviewTime",
    timestamp_ms=1000,
    brand="brand",
    categories="category",
    features="feature",
)


def read_amazon(
    folder: Path,
    category: str,
    *,
    layout: AmazonLayout = AMAZON_2023,
    filters: Filters = DEFAULT_FILTERS,
    progress: bool = False,
) -> Dataset:
    """Return a category of Amazon Reviews.

    An item that the item file does not describe, or describes without a title, is named after its brand and id, or its
    id alone, and counted.

    Args:
        folder: holds both files.
        category: as in the file names, e.g. "Video_Games".
        layout: the edition.
        filters: which reviews stay.
        progress: show a bar on stderr.

    Raises:
        DataFormatError: if a file is not what it should be.
        FileNotFoundError: if one of the files is lacking.
    """
    files = layout.find(folder, category)
    if files is None:
        raise FileNotFoundError(f"expected {layout.file_names(category)} in {folder}, got none or one; get both")
    reviews, meta = files
    log = _read_reviews(reviews, layout, progress=progress)
    report: Report = {"source": f"{reviews.name}, {meta.name}"}
    events = filter_events(log, filters=filters, report=report)
    if len(events) == 0:
        raise DataFormatError(f"{reviews}: expected users with {filters}, got none of {len(log)} reviews")
    items = _read_items(meta, layout, category, events=events, report=report, progress=progress)
    return assemble_dataset(
        f"{layout.key}-{category}",
        events,
        items,
        report=report,
        describe_missing=lambda source_id: Item(item_id=PAD, source_id=source_id, title=source_id, attributes={}),
    )


def _either(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(f"{path.name}.gz")


def _read_reviews(path: Path, layout: AmazonLayout, *, progress: bool) -> EventLog:
    log = EventLog()
    for where, review in _records(path, progress=progress):
        source_id, user_id = _item_id(review, layout), review.get(layout.user_id)
        timestamp = review.get(layout.timestamp)
        for name, value in ((layout.item_id[0], source_id), (layout.user_id, user_id), (layout.timestamp, timestamp)):
            if value is None or value == "":
                raise DataFormatError(f"{where}: expected a review with {name!r}, got none")
        if not isinstance(timestamp, int):
            timestamp = parse_int(str(timestamp), what=repr(layout.timestamp), where=where)
        log.append(str(user_id), str(source_id), timestamp * layout.timestamp_ms)
    return log


def _item_id(record: dict[str, Any], layout: AmazonLayout) -> Any:
    return next((record[name] for name in layout.item_id if record.get(name)), None)


def _read_items(
    path: Path, layout: AmazonLayout, category: str, *, events: Events, report: Report, progress: bool
) -> Iterator[Item]:
    """Yield the described items, to be numbered later; others (never taken, seen before) by id alone, to be counted."""
    wanted = {events.source_ids[index] for index in set(events.items.tolist())}
    for where, record in _records(path, progress=progress):
        source_id = _item_id(record, layout)
        if not source_id:
            raise DataFormatError(f"{where}: expected an item with {layout.item_id[0]!r}, got none")
        source_id = str(source_id)
        if source_id in wanted:
            wanted.remove(source_id)
            yield _item(source_id, record, layout, category=category, report=report)
        else:
            yield Item(item_id=PAD, source_id=source_id, title=source_id, attributes={})


def _item(source_id: str, record: dict[str, Any], layout: AmazonLayout, *, category: str, report: Report) -> Item:
    brand = _clean(record.get(layout.brand)).removeprefix("by ")
    title = " ".join(_TITLE_MARKUP.sub(" ", _clean(record.get("title"))).split())
    if not title:
        count(report, "items_without_title")
        title = f"{brand} {source_id}".strip()
    elif title != " ".join(str(record["title"]).split()):
        count(report, "titles_with_entities")
    attributes: dict[str, tuple[str, ...]] = {}
    if brand:
        attributes["brand"] = (brand,)
    if categories := _categories(record, layout, category=category):
        attributes["categories"] = categories
    description = " ".join(_texts(record.get("description")) or _texts(record.get(layout.features)))
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


def _categories(record: dict[str, Any], layout: AmazonLayout, *, category: str) -> tuple[str, ...]:
    """Return the item's categories, once each, without the one that all items of the data set share."""
    shared = _plain(category)
    named = _texts(record.get(layout.categories)) or _texts([record.get("main_category")])
    return tuple(dict.fromkeys(name for name in named if _plain(name) != shared and not _MARKUP.search(name)))


def _plain(name: str) -> str:
    """Return a category's name so that "Industrial & Scientific" equals "Industrial_and_Scientific"."""
    return " ".join(name.replace("_", " ").replace("&", " and ").casefold().split())


def _texts(value: object) -> list[str]:
    """Return the non-empty texts of a field that holds a list, a text or nothing."""
    values = value if isinstance(value, list) else [value]
    return [text for text in (_clean(entry) for entry in values) if text]


def _clean(value: object) -> str:
    """Return one line of text without HTML entities; "" for anything but text, and for the code of a page."""
    if not isinstance(value, str) or _SCRIPT.search(value):
        return ""
    text = value
    for _ in range(2):  # Some titles were escaped twice: "&amp;quot;".
        text = html.unescape(text)
    return " ".join(text.split())


def _records(path: Path, *, progress: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) of every line that is not blank."""
    for number, line in read_lines(path, progress=progress):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_json_object(line, where=where)
