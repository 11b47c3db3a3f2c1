"""Items and the catalogue: ids, titles, attributes and the text that is embedded. THE place of PAD; reads no files."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

PAD = 0
"""The id that is no item; items have the ids 1..num_items."""

MAX_DESCRIPTION_CHARS = 300
"""How much of a description goes into an item's text."""


def normalize_title(text: str) -> str:
    """Return the form under which titles are compared: NFKC, case folded, white space folded and stripped."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


@dataclass(frozen=True)
class Item:
    """One entry of the catalogue, e.g. `Item(1, "1", "Toy Story (1995)", {"genres": ("Comedy",)}, year=1995)`."""

    item_id: int
    """Dense, from 1."""
    source_id: str
    """The id in the raw files."""
    title: str
    """One line, as people write it; several items may share a title."""
    attributes: Mapping[str, tuple[str, ...]]
    """Values by kind, e.g. {"genres": ("Action", "Thriller"), "decade": ("1990s",)}; no kind is empty."""
    description: str = ""
    year: int | None = None


class Catalog:
    """All items of a data set, under the ids 1..num_items. Never changes after construction."""

    def __init__(self, items: Sequence[Item]) -> None:
        """Hold the items.

        Args:
            items: at position i the item with the id i + 1.

        Raises:
            ValueError: if there is no item, or the ids are not 1..len(items) in this order.
        """
        if not items:
            raise ValueError("expected at least one item, got none")
        for expected, item in enumerate(items, start=1):
            if item.item_id != expected:
                raise ValueError(f"expected item ids 1..{len(items)} in order, got {item.item_id} at place {expected}")
        self._items = tuple(items)

    @property
    def num_items(self) -> int:
        """How many items there are, PAD not counted; also the largest id."""
        return len(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, int) and 1 <= item_id <= len(self._items)

    def __getitem__(self, item_id: int) -> Item:
        if not 1 <= item_id <= len(self._items):
            raise IndexError(f"expected an item id in 1..{len(self._items)}, got {item_id}")
        return self._items[item_id - 1]

    def __repr__(self) -> str:
        return f"Catalog(num_items={self.num_items})"

    def title(self, item_id: int) -> str:
        """Return the item's title as people write it."""
        return self[item_id].title

    def find(self, title: str) -> tuple[int, ...]:
        """Return the ids of all items with this title (see normalize_title), ascending; () if there is none."""
        return self._ids_by_title.get(normalize_title(title), ())

    def attribute_line(self, item_id: int) -> str:
        """Return the attributes in one line, e.g. "Action, Thriller; 1990s"; "" if there is none."""
        return "; ".join(", ".join(values) for values in self[item_id].attributes.values())

    def text(self, item_id: int) -> str:
        """Return the text that stands for the item where it is embedded: title, attributes, clipped description."""
        item = self[item_id]
        parts = (item.title, self.attribute_line(item_id), _clip(item.description, MAX_DESCRIPTION_CHARS))
        return ". ".join(part for part in parts if part)

    @cached_property
    def has_texts(self) -> bool:
        """Whether any item has more than its id: a title, an attribute or a description."""
        return any(item.title != item.source_id or item.attributes or item.description for item in self._items)

    @cached_property
    def attribute_values(self) -> Mapping[str, Mapping[str, int]]:
        """The number of items by value by kind, the commonest value first (ties: by the alphabet)."""
        counts: dict[str, Counter[str]] = {}
        for item in self._items:
            for kind, values in item.attributes.items():
                counts.setdefault(kind, Counter()).update(values)
        return {
            kind: dict(sorted(counter.items(), key=lambda entry: (-entry[1], entry[0])))
            for kind, counter in counts.items()
        }

    @cached_property
    def _ids_by_title(self) -> dict[str, tuple[int, ...]]:
        ids: dict[str, list[int]] = {}
        for item in self._items:
            ids.setdefault(normalize_title(item.title), []).append(item.item_id)
        return {title: tuple(found) for title, found in ids.items()}


def _clip(text: str, max_chars: int) -> str:
    """Return text, cut at the last space before max_chars where it is longer."""
    if len(text) <= max_chars:
        return text
    head = text[:max_chars]
    return head.rsplit(" ", 1)[0] if " " in head else head
