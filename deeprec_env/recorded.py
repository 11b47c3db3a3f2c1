"""Services that give back what was recorded: the game played again without a recommender or a text encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from deeprec_env.errors import DeepRecError
from deeprec_env.world import World
from trm.types import Candidates, FloatArray, RetrievalQuery, TextEncoder


class NotRecorded(DeepRecError):
    """Something was asked for that the record does not hold."""


class RecordedRetriever:
    """Hands out recorded answers in the order in which they were given."""

    def __init__(self, answers: Iterable[Sequence[int]] = ()) -> None:
        """Hold the answers, item ids best first."""
        self.load(answers)

    def load(self, answers: Iterable[Sequence[int]]) -> None:
        """Put other answers in the place of what is left."""
        self._answers = [Candidates(tuple(ids), ()) for ids in answers]
        self._next = 0

    @property
    def num_left(self) -> int:
        """How many answers have not been handed out."""
        return len(self._answers) - self._next

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        """Return the next answers, without scores, whatever is asked.

        Raises:
            NotRecorded: if there are fewer left than queries.
        """
        if self.num_left < len(queries):
            raise NotRecorded(f"expected {len(queries)} recorded answers, got {self.num_left}; the play is another one")
        start, self._next = self._next, self._next + len(queries)
        return self._answers[start : self._next]


class RecordedEncoder:
    """Gives back recorded vectors by text."""

    def __init__(self, encoder: TextEncoder, vector_by_text: Mapping[str, FloatArray]) -> None:
        """Hold the vectors that the encoder gave.

        Args:
            encoder: whose name and width this one has.
            vector_by_text: float32 [dim] each.
        """
        self.name = encoder.name
        self.dim = encoder.dim
        self._row_by_text = {text: row for row, text in enumerate(vector_by_text)}
        self._vectors = np.array(list(vector_by_text.values()), dtype=np.float32).reshape(-1, encoder.dim)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), dim].

        Raises:
            NotRecorded: if a text is not among the recorded ones.
        """
        try:
            return self._vectors[[self._row_by_text[text] for text in texts]]
        except KeyError as error:
            raise NotRecorded(f"expected a text whose vector was recorded, got {error.args[0]!r}") from None


def recorded_world(world: World, retriever: RecordedRetriever, encoder: TextEncoder | None = None) -> World:
    """Return the same items and users with a recorded recommender, and with a recorded encoder if one is given."""
    return World(
        world.name,
        world.catalog,
        world.splits,
        retriever=retriever,
        encoder=encoder or world.encoder,
        item_text_vectors=world.item_text_vectors,
        item_id_vectors=world.item_id_vectors,
    )
