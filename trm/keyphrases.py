"""Short phrases that say what an item is, mined from titles: for catalogues whose attributes say little.

A keyphrase stands in the titles of several items, so that it describes and does not name. Knows no preferences.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

from trm.data.catalog import Catalog

KIND = "keyphrase"
"""Stands beside the catalogue's own kinds of attributes."""
RICH_FROM = 2.0
"""Attribute values an item, on average, from which a catalogue needs no keyphrases."""
MAX_PHRASES = 4
"""Of one item."""
MIN_ITEMS = 3
"""Items whose titles must share a phrase; half the square root of the catalogue's size if that is more."""

_MAX_WORDS = 2
_MAX_SHARE = 0.1
"""Of the catalogue: a phrase of more items says nothing."""
_MAX_TITLE_SHARE = 0.7
"""Of a title's words that an item's phrases may use, so that they never spell the title."""
_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*|[^\w\s]")
_LETTERS = re.compile(r"[^\W\d_]{3,}")
_STOP_WORDS = frozenset(
    (
        *("a", "about", "all", "an", "and", "any", "are", "as", "at", "be", "by", "each", "for", "from", "has", "in"),
        *(
            "inch",
            "into",
            "is",
            "it",
            "its",
            "new",
            "no",
            "not",
            "of",
            "off",
            "on",
            "or",
            "ounce",
            "our",
            "out",
            "over",
        ),
        *("oz", "pack", "per", "piece", "pieces", "set", "than", "that", "the", "their", "them", "these", "this", "to"),
        *("under", "up", "use", "used", "uses", "using", "was", "we", "were", "when", "which", "will", "with"),
        *("without", "x", "you", "your"),
    )
)
_MINED: WeakKeyDictionary[Catalog, list[tuple[str, ...]]] = WeakKeyDictionary()


def keyphrases(catalog: Catalog) -> list[tuple[str, ...]]:
    """Return the phrases of each item by id, or none of any where the catalogue does not need them; mined once."""
    if catalog not in _MINED:
        nothing: list[tuple[str, ...]] = [()] * (catalog.num_items + 1)
        _MINED[catalog] = mine_keyphrases(catalog) if needs_keyphrases(catalog) else nothing
    return _MINED[catalog]


def mine_keyphrases(catalog: Catalog) -> list[tuple[str, ...]]:
    """Return at most MAX_PHRASES phrases of each item, the most telling first, lower case; index 0 (PAD) has none.

    Phrases are one or two words of the title, side by side, that neither few nor very many titles share. They are
    chosen by inverse document frequency, no two with a common word; none repeats an attribute, and together they use at
    most 70 % of the title's words.
    """
    titles = [_title_runs(item.title) for item in catalog]
    counts: Counter[str] = Counter()
    for runs in titles:
        counts.update({" ".join(phrase) for phrase in _phrases(runs)})
    smallest = max(MIN_ITEMS, round(catalog.num_items**0.5 / 2))
    largest = max(smallest, _MAX_SHARE * catalog.num_items)
    idf = {
        phrase: math.log(catalog.num_items / count) for phrase, count in counts.items() if smallest <= count <= largest
    }
    return [(), *(_chosen(runs, _attribute_words(catalog, place), idf) for place, runs in enumerate(titles, start=1))]


def needs_keyphrases(catalog: Catalog) -> bool:
    """Return whether the catalogue's items have fewer than RICH_FROM attribute values on average."""
    num_values = sum(len(values) for item in catalog for values in item.attributes.values())
    return num_values < RICH_FROM * catalog.num_items


def _title_runs(title: str) -> list[list[str]]:
    """Return the title's words, lower case, in runs without punctuation between them."""
    runs: list[list[str]] = [[]]
    for token in _WORD.findall(title.casefold()):
        if token[0].isalnum():
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _phrases(runs: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
    for run in runs:
        for start in range(len(run)):
            for stop in range(start + 1, min(start + _MAX_WORDS, len(run)) + 1):
                phrase = tuple(run[start:stop])
                if _tells(phrase):
                    yield phrase


def _tells(phrase: tuple[str, ...]) -> bool:
    """Return whether no stop word stands at an end and some word has three letters in a row."""
    if phrase[0] in _STOP_WORDS or phrase[-1] in _STOP_WORDS:
        return False
    return any(_LETTERS.search(word) for word in phrase)


def _attribute_words(catalog: Catalog, item_id: int) -> frozenset[str]:
    values = (value for values in catalog[item_id].attributes.values() for value in values)
    return frozenset(word for value in values for run in _title_runs(value) for word in run)


def _chosen(runs: Sequence[Sequence[str]], attribute_words: frozenset[str], idf: dict[str, float]) -> tuple[str, ...]:
    found = {phrase for phrase in _phrases(runs) if " ".join(phrase) in idf}
    order = sorted(found, key=lambda phrase: (-idf[" ".join(phrase)], len(phrase), phrase))
    left = _MAX_TITLE_SHARE * len({word for run in runs for word in run})
    taken: set[str] = set(attribute_words)
    chosen: list[str] = []
    for phrase in order:
        if len(chosen) == MAX_PHRASES:
            break
        if taken.isdisjoint(phrase) and len(set(phrase)) <= left:
            taken.update(phrase)
            left -= len(set(phrase))
            chosen.append(" ".join(phrase))
    return tuple(chosen)
