"""A world small enough to read, without torch: items by genre, users who like one, and a retriever that knows both."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from deeprec_env.world import World
from trm.data.catalog import Catalog, Item
from trm.data.interactions import Interactions
from trm.data.splits import LeaveOneOut
from trm.types import Candidates, FloatArray, RetrievalQuery

GENRES = ("noir", "comedy", "western", "romance")
DECADES = ("1970s", "1980s", "1990s")


class FakeEncoder:
    """Bags of words, hashed into `dim` buckets with a sign; counts its calls."""

    def __init__(self, dim: int = 64) -> None:
        self.name = f"fake-{dim}"
        self.dim = dim
        self.num_calls = 0

    def encode(self, texts: Sequence[str]) -> FloatArray:
        self.num_calls += 1
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.casefold().replace(";", " ").replace(",", " ").replace(".", " ").split():
                digest = zlib.crc32(word.encode())
                vectors[row, digest % self.dim] += 1.0 if digest & 0x10000 else -1.0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(norms == 0, 1, norms), dtype=np.float32)


class FakeRetriever:
    """Scores an item by the text's likeness to the preference, then to the history; counts its calls."""

    def __init__(self, encoder: FakeEncoder, item_text_vectors: FloatArray) -> None:
        self.encoder = encoder
        self.item_text_vectors = item_text_vectors
        self.num_calls = 0
        self.queries: list[RetrievalQuery] = []

    def _scores(self, query: RetrievalQuery) -> FloatArray:
        history = self.item_text_vectors[list(query.history)].sum(axis=0) if query.history else 0.0
        preference = FakeEncoder(self.encoder.dim).encode([query.preference])[0]
        scores = self.item_text_vectors @ (preference * 10 + history)
        scores[0] = -np.inf
        return np.asarray(scores, dtype=np.float32)

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        self.num_calls += 1
        self.queries.extend(queries)
        answers = []
        for query in queries:
            scores = self._scores(query)
            if query.exclude_history:
                scores[list(query.history)] = -np.inf
            order = [int(i) for i in np.argsort(-scores, kind="stable") if np.isfinite(scores[i])][: query.k]
            answers.append(Candidates(tuple(order), tuple(float(scores[i]) for i in order)))
        return answers

    def ranks(self, queries: Sequence[RetrievalQuery], targets: Sequence[int]) -> np.ndarray:
        rows = [self._scores(query) for query in queries]
        return np.array([1 + int((row > row[t]).sum()) for row, t in zip(rows, targets, strict=True)])


def fake_items(num_items: int = 60) -> list[Item]:
    """Items cycle through genres and decades; among them a sequel, a shared title, tags and "Pokémon"."""
    titles = {1: "Iron Engine", 5: "Iron Engine 2", 9: "Twins", 13: "Twins", 17: "Pokémon: The Movie"}
    titles |= {21: "The <think> Tank </recommendation_list>", 25: "Two\nLines", 29: "12 Angry Robots", 33: "3. Third"}
    items = []
    for item_id in range(1, num_items + 1):
        genre = GENRES[item_id % len(GENRES)]
        decade = DECADES[item_id % len(DECADES)]
        title = titles.get(item_id, f"{genre.title()} Tale {item_id}")
        items.append(Item(item_id, str(item_id), title, {"genres": (genre,), "decade": (decade,)}))
    return items


def build_fake_world(*, num_items: int = 60, num_users: int = 12, seed: int = 0) -> World:
    """Return a world whose users mostly stay with one genre; user u has the id "u<u>"."""
    catalog = Catalog(fake_items(num_items))
    rng = np.random.default_rng(seed)
    histories = []
    for user in range(num_users):
        liked = [i for i in range(1, num_items + 1) if i % len(GENRES) == user % len(GENRES)]
        other = [i for i in range(1, num_items + 1) if i % len(GENRES) != user % len(GENRES)]
        sequence = [*rng.permutation(liked)[:6].tolist(), *rng.permutation(other)[:2].tolist()]
        histories.append([int(i) for i in rng.permutation(sequence)])
    lengths = [len(history) for history in histories]
    interactions = Interactions(
        user_ids=tuple(f"u{user}" for user in range(num_users)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_ids=np.concatenate(histories).astype(np.int64),
        timestamps=np.concatenate([np.arange(n) for n in lengths]).astype(np.int64),
    )
    encoder = FakeEncoder()
    texts = encoder.encode(["", *(catalog.text(i) for i in range(1, num_items + 1))])
    ids = rng.normal(size=(num_items + 1, 8)).astype(np.float32)
    ids[0] = 0.0
    return World(
        "fake",
        catalog,
        LeaveOneOut(interactions, num_items=num_items),
        retriever=FakeRetriever(encoder, texts),
        encoder=encoder,
        item_text_vectors=texts,
        item_id_vectors=ids,
    )
