"""MovieLens-100K as it is, with a recommender that needs no training: neighbours of the latest items, and words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deeprec_env.world import World
from trm.data.dataset import Dataset
from trm.data.sources.movielens import read_ml100k
from trm.text_encoder import HashingEncoder
from trm.types import Candidates, FloatArray, RetrievalQuery

LATEST = 20
WORDS_COUNT = 2.0
"""Weight of the preference against the history."""


class NeighbourRetriever:
    """Scores items by cosine of their users with those of the history's latest items, and by the preference's words."""

    def __init__(self, dataset: Dataset, encoder: HashingEncoder, item_text_vectors: FloatArray) -> None:
        self._encoder = encoder
        self._texts = item_text_vectors
        chosen_UI = np.zeros((dataset.splits.num_users, dataset.catalog.num_items + 1), dtype=np.float32)
        for user in range(dataset.splits.num_users):
            chosen_UI[user, dataset.splits.train_sequence(user)] = 1.0
        unit_UI = chosen_UI / np.maximum(np.linalg.norm(chosen_UI, axis=0), 1.0)
        self.likeness_II = unit_UI.T @ unit_UI
        np.fill_diagonal(self.likeness_II, 0.0)
        self._answers: dict[RetrievalQuery, Candidates] = {}

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        """Return the best of each query; equal scores are ordered by item id. Answers are kept."""
        for query in queries:
            if query not in self._answers:
                self._answers[query] = self._answer(query)
        return [self._answers[query] for query in queries]

    def _answer(self, query: RetrievalQuery) -> Candidates:
        own = self.likeness_II[list(query.history[-LATEST:])].mean(axis=0)
        scores = own / own.max() + WORDS_COUNT * (self._texts @ self._encoder.encode([query.preference])[0])
        scores[[0, *(query.history if query.exclude_history else ())]] = -np.inf
        order = np.argsort(-scores, kind="stable")[: query.k]
        return Candidates(tuple(order.tolist()), tuple(scores[order].tolist()))


def movielens_world(folder: Path) -> World:
    """Return the world of MovieLens-100K from GroupLens' folder."""
    dataset = read_ml100k(folder)
    encoder, catalog = HashingEncoder(256), dataset.catalog
    texts = encoder.encode(["", *(catalog.attribute_line(item_id) for item_id in range(1, catalog.num_items + 1))])
    retriever = NeighbourRetriever(dataset, encoder, texts)
    projection = np.random.default_rng(0).normal(size=(len(texts), 64)).astype(np.float32)
    return World(
        dataset.name,
        catalog,
        dataset.splits,
        retriever=retriever,
        encoder=encoder,
        item_text_vectors=texts,
        item_id_vectors=retriever.likeness_II @ projection,
    )
