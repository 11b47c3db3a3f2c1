"""How well a wish fits the item that it was written for, by the text encoder that the recommender reads with.

A small model invents: "a comedy with no words" for Return of the Jedi. Trained on such texts the recommender learns
that preferences say nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trm.training_run import item_text_vectors

if TYPE_CHECKING:
    from trm.data.dataset import Dataset
    from trm.types import TextEncoder


class FitJudge:
    """Compares wishes with the texts of all items."""

    def __init__(self, dataset: Dataset, encoder: TextEncoder, *, min_fit: float) -> None:
        """Encode the items.

        Args:
            dataset: its items' texts are read.
            encoder: texts to unit vectors.
            min_fit: the least share of the items that a wish must fit less well than its own, from 0 to 1.

        Raises:
            ValueError: if min_fit is out of its range.
        """
        if not 0 <= min_fit <= 1:
            raise ValueError(f"expected min_fit from 0 to 1, got {min_fit}")
        self._encoder, self._min_fit = encoder, min_fit
        self._items_NP = item_text_vectors(dataset, encoder)[1:]

    def share(self, wish: str, item_id: int) -> float:
        """Return the share of the items that the wish fits less well than this one, equals counted by half."""
        scores_N = self._items_NP @ self._encoder.encode([wish])[0]
        own = scores_N[item_id - 1]
        return float((scores_N < own).mean() + 0.5 * (scores_N == own).mean())

    def fits(self, wish: str, item_id: int) -> bool:
        """Return whether the wish was plausibly written for this item."""
        return self.share(wish, item_id) >= self._min_fit
