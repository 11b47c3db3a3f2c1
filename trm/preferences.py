"""Preference texts from the catalogue's attributes, to train and to measure with. No whole title enters them.

Where a catalogue has few attributes, phrases that several titles share stand beside them (see keyphrases).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from trm.data.catalog import Catalog
from trm.keyphrases import KIND, keyphrases

TemplateSet = Literal["train", "test"]

_TEMPLATES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("{}", "; "),
        ("{}", ", "),
        ("something like {}", ", "),
        ("prefers {}", " and "),
        ("looking for {}", ", "),
        ("{}", " "),
    ),
    "test": (
        ("in the mood for {}", " with "),
        ("a fan of {}", " / "),
        ("wants more {}", ", "),
    ),
}
"""(frame, joiner) of the attributes. No frame of one set is in the other."""

VAGUE_WINDOW = 50
"""How many of the newest items of a history a vague preference looks at."""
_VAGUE_PER_KIND = 2


class PreferenceWriter:
    """Writes what a user might ask for. Randomness comes from the generators given alone."""

    def __init__(self, catalog: Catalog, *, templates: TemplateSet = "train") -> None:
        """Write for this catalogue.

        Args:
            catalog: items with attributes.
            templates: "train", or "test" for wordings that no model was trained on.

        Raises:
            ValueError: if there is no such set of templates.
        """
        if templates not in _TEMPLATES:
            raise ValueError(f"expected templates in {get_args(TemplateSet)}, got {templates!r}")
        self._templates = _TEMPLATES[templates]
        self._attributes: list[tuple[str, ...]] = [()]
        self._keys: list[tuple[tuple[str, str], ...]] = [()]
        mined = keyphrases(catalog)
        for item in catalog:
            keys = tuple((kind, value) for kind, values in item.attributes.items() for value in values)
            keys += tuple((KIND, phrase) for phrase in mined[item.item_id])
            self._keys.append(keys)
            self._attributes.append(tuple(dict.fromkeys(value for _, value in keys)))
        self._num_items_with = Counter(key for keys in self._keys for key in dict.fromkeys(keys))

    def informative(self, item_id: int, rng: np.random.Generator) -> str:
        """Return a text with all attributes of the item, in random order; "" if it has none."""
        return self._write(self._attributes[item_id], rng)

    def some(self, item_id: int, rng: np.random.Generator) -> str:
        """Return a text with at least one attribute of the item, each kept by a fair coin; "" if it has none."""
        values = self._attributes[item_id]
        kept = [value for value, keep in zip(values, rng.random(len(values)) < 0.5) if keep]
        return self._write(kept, rng) if kept else self.one(item_id, rng)

    def one(self, item_id: int, rng: np.random.Generator) -> str:
        """Return a text with one attribute of the item; "" if it has none."""
        values = self._attributes[item_id]
        if not values:
            return ""
        return self._write([values[rng.integers(len(values))]], rng)

    def vague(self, history: Sequence[int], rng: np.random.Generator) -> str:
        """Return a text with the commonest attributes of the history's newest items; "" if there are none.

        Of equally common ones those that more items of the catalogue have come first. To leak nothing the history must
        end before the target.
        """
        counts: Counter[tuple[str, str]] = Counter()
        for item_id in history[-VAGUE_WINDOW:]:
            counts.update(self._keys[item_id])
        taken: Counter[str] = Counter()
        values = []
        for kind, value in sorted(counts, key=lambda key: (-counts[key], -self._num_items_with[key], key)):
            if taken[kind] < _VAGUE_PER_KIND:
                taken[kind] += 1
                values.append(value)
        num_kept = int(rng.integers(1, len(values) + 1)) if values else 0
        return self._write(values[:num_kept], rng)

    def phrases(self, n: int) -> tuple[str, ...]:
        """Return the n attribute values that most items have, the commonest first (ties: by the alphabet)."""
        counts: Counter[str] = Counter()
        for (_, value), count in self._num_items_with.items():
            counts[value] += count
        return tuple(sorted(counts, key=lambda value: (-counts[value], value))[:n])

    def _write(self, values: Sequence[str], rng: np.random.Generator) -> str:
        if not values:
            return ""
        frame, joiner = self._templates[rng.integers(len(self._templates))]
        order = rng.permutation(len(values))
        return frame.format(joiner.join(values[place] for place in order))
