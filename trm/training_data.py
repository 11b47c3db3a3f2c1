"""What the TRM trains on: windows of the training sequences with a preference at every position.

Shapes: B windows, L positions, P text dimension, M training interactions, Q distinct preference texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from trm.data.dataset import Dataset
from trm.preferences import PreferenceWriter
from trm.types import FloatArray, IntArray, TextEncoder
from trm.written_preferences import WrittenPreferences

_TEXTS_PER_KIND = 5_000
"""About how many texts of a kind are written, as every one costs milliseconds to encode; an item gets 1 to 3.

A vague text is made from every n-th prefix, n so that there are no more, and stands for the positions up to the next.
"""


_ItemWriter = Callable[[int, np.random.Generator], str]


@dataclass(frozen=True, kw_only=True)
class PreferenceMix:
    """How often a training position gets which preference; what is left is informative (all attributes)."""

    empty: float = 0.25
    """Only saves time: the history's own ranking learns from every position, whatever its preference."""
    vague: float = 0.21
    one: float = 0.255
    some: float = 0.075
    other: float = 0.075
    """What another, random item is asked for by: one, some or all of its attributes. Teaches mistrust."""

    def __post_init__(self) -> None:
        """Check the shares.

        Raises:
            ValueError: if a share is negative or they sum to more than 1.
        """
        shares = (self.empty, self.vague, self.one, self.some, self.other)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"expected shares of at least 0 that sum to at most 1, got {self}")


@dataclass(frozen=True)
class Batch:
    """Windows of one training step."""

    items: IntArray
    """int64 [B, L], oldest first, right-padded with 0."""
    targets: IntArray
    """int64 [B, L], the item that followed each position; 0 where there is none."""
    preference_rows: IntArray
    """int64 [B, L], rows of TrainingData.preference_vectors; row 0 is the empty preference."""


class TrainingData:
    """The training sequences of a data set and a pool of preference texts, encoded once."""

    def __init__(
        self,
        dataset: Dataset,
        encoder: TextEncoder,
        *,
        mix: PreferenceMix,
        max_history: int,
        seed: int,
        written: WrittenPreferences | None = None,
    ) -> None:
        """Write and encode the preferences: all the text encoding that the training does."""
        splits = dataset.splits
        sequences = [splits.train_sequence(user) for user in range(splits.num_users)]
        self._lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self._lengths)[:-1]))
        self._flat = np.concatenate(sequences)
        self._max_history = max_history
        self._mix = mix
        self._num_variants = min(3, max(1, _TEXTS_PER_KIND // dataset.catalog.num_items))
        rng = np.random.default_rng([seed, 0])
        pool = _TextPool()
        writer = PreferenceWriter(dataset.catalog, templates="train")
        self._one, self._some, self._informative = (
            pool.item_rows(write, num_items=dataset.catalog.num_items, num_variants=self._num_variants, rng=rng)
            for write in (writer.one, writer.some, writer.informative)
        )
        self._vague = self._vague_rows(writer, pool, rng=rng)
        if written is not None:
            self._mix_in(written, pool)
        self.preference_vectors: FloatArray = encoder.encode(pool.texts)

    @property
    def num_positions(self) -> int:
        """How many (prefix, target) pairs the training sequences hold."""
        return int(np.maximum(self._lengths - 1, 0).sum())

    @property
    def num_windows(self) -> int:
        """How many windows the training sequences are cut into, at the least."""
        return int(np.ceil(np.maximum(self._lengths - 1, 0) / self._max_history).sum())

    def batches(self, rng: np.random.Generator, *, batch_size: int, max_positions: int) -> Iterator[Batch]:
        """Yield one epoch: every position once, in random windows, or a random choice of about max_positions."""
        starts, lengths = self._windows(rng)
        order = rng.permutation(len(starts))
        if lengths.sum() > max_positions:
            order = order[: max(1, int(np.searchsorted(np.cumsum(lengths[order]), max_positions)))]
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            yield self._batch(starts[chosen], lengths[chosen], rng)

    def _windows(self, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return where windows of at most max_history inputs start in the flat sequences, and their lengths.

        A longer sequence is cut at a random phase, so that each position comes with every length of context.
        """
        starts, lengths = [], []
        for start, inputs in zip(self._starts, self._lengths - 1):
            if inputs < 1:
                continue
            phase = int(rng.integers(1, self._max_history + 1)) if inputs > self._max_history else self._max_history
            cuts = np.concatenate(([0], np.arange(phase, inputs, self._max_history), [inputs]))
            starts.append(start + cuts[:-1])
            lengths.append(np.diff(cuts))
        return np.concatenate(starts), np.concatenate(lengths)

    def _batch(self, starts_B: IntArray, lengths_B: IntArray, rng: np.random.Generator) -> Batch:
        columns_L = np.arange(lengths_B.max())
        inside_BL = columns_L < lengths_B[:, None]
        places_BL = np.where(inside_BL, starts_B[:, None] + columns_L, 0)
        targets_BL = np.where(inside_BL, self._flat[places_BL + 1], 0)
        return Batch(
            items=np.where(inside_BL, self._flat[places_BL], 0),
            targets=targets_BL,
            preference_rows=np.where(inside_BL, self._draw_preferences(places_BL, targets_BL, rng), 0),
        )

    def _draw_preferences(self, places_BL: IntArray, targets_BL: IntArray, rng: np.random.Generator) -> IntArray:
        mix = self._mix
        shape = targets_BL.shape
        variants_BL = rng.integers(self._num_variants, size=shape)
        bounds = np.cumsum([mix.empty, mix.vague, mix.one, mix.some, mix.other])
        kinds_BL = np.searchsorted(bounds, rng.random(shape), side="right")
        others_BL = rng.integers(1, len(self._one), size=shape)
        about_item = (self._one, self._some, self._informative)
        choices = (
            np.zeros_like(targets_BL),
            self._vague[places_BL],
            self._one[targets_BL, variants_BL],
            self._some[targets_BL, variants_BL],
            np.choose(rng.integers(3, size=shape), [rows[others_BL, variants_BL] for rows in about_item]),
            self._informative[targets_BL, variants_BL],
        )
        return np.choose(kinds_BL, choices)

    def _mix_in(self, written: WrittenPreferences, pool: _TextPool) -> None:
        """Let an item's written texts stand for half or more of its "some", a beginning's for the vague after it."""
        for item_id, texts in written.by_item.items():
            places = self._some[item_id, ::2]
            places[:] = np.resize([pool.row(text) for text in texts], len(places))
        for (user, length), texts in written.by_prefix.items():
            places = self._vague[self._starts[user] : self._starts[user] + self._lengths[user]][length - 1 :]
            places[:] = np.resize([pool.row(text) for text in texts], len(places))

    def _vague_rows(self, writer: PreferenceWriter, pool: _TextPool, *, rng: np.random.Generator) -> IntArray:
        """Return a pool row for each place in the flat sequences, made from items up to this place alone: int64 [M]."""
        rows = np.zeros(len(self._flat), dtype=np.int64)
        stride = math.ceil(len(self._flat) / _TEXTS_PER_KIND)
        for start, length in zip(self._starts, self._lengths):
            sequence = self._flat[start : start + length].tolist()
            for place in range(0, length, stride):
                rows[start + place : start + length] = pool.row(writer.vague(sequence[: place + 1], rng))
        return rows


class _TextPool:
    """Distinct texts and their rows; row 0 is the empty text."""

    def __init__(self) -> None:
        self._row_by_text = {"": 0}

    @property
    def texts(self) -> list[str]:
        return list(self._row_by_text)

    def row(self, text: str) -> int:
        return self._row_by_text.setdefault(text, len(self._row_by_text))

    def item_rows(self, write: _ItemWriter, *, num_items: int, num_variants: int, rng: np.random.Generator) -> IntArray:
        """Return rows of texts of each item, int64 [num_items + 1, num_variants]; PAD has the empty text."""
        rows = np.zeros((num_items + 1, num_variants), dtype=np.int64)
        for item_id in range(1, num_items + 1):
            rows[item_id] = [self.row(write(item_id, rng)) for _ in range(num_variants)]
        return rows
