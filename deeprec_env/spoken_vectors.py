"""Lets a preference be a vector: the game speaks texts, so a vector gets a text, and the recommender hears the vector.

Owns neither environment nor wrapper (see `wrappers`).
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from deeprec_env.world import World
from trm.retriever import TRMRetriever
from trm.types import FloatArray, TextEncoder

_MAX_SPOKEN = 8192
"""Vectors remembered; one is looked up only while the episode is played in which it was spoken."""
_WORLDS: weakref.WeakKeyDictionary[World, SpokenWorld] = weakref.WeakKeyDictionary()


class SpokenEncoder:
    """A text encoder that returns the spoken vector for the text of one, and the other encoder's for all else."""

    def __init__(self, encoder: TextEncoder) -> None:
        """Wrap an encoder; it has the same name, for the recommender cannot tell them apart."""
        self.name = encoder.name
        self.dim = encoder.dim
        self._encoder = encoder
        self._vector_by_text: OrderedDict[str, FloatArray] = OrderedDict()

    def speak(self, vector: FloatArray, *, near: str = "") -> str:
        """Return the text that stands for the vector from now on; the same for the same vector.

        Args:
            vector: float32 [dim]; its length does not count. Zeros are the empty preference.
            near: words that say what the vector is like, for whoever reads the transcript.
        """
        norm = float(np.linalg.norm(vector))
        if norm == 0.0:
            return ""
        unit = np.asarray(vector / norm, dtype=np.float32)
        digest = hashlib.blake2s(unit.tobytes(), digest_size=6).hexdigest()
        text = f"{near} (vector {digest})".strip()
        self._vector_by_text[text] = unit
        self._vector_by_text.move_to_end(text)
        if len(self._vector_by_text) > _MAX_SPOKEN:
            self._vector_by_text.popitem(last=False)
        return text

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), dim], each row of unit norm (an empty text: the zero row)."""
        spoken = self._vector_by_text
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        others = [place for place, text in enumerate(texts) if text not in spoken]
        if others:
            vectors[others] = self._encoder.encode([texts[place] for place in others])
        for place, text in enumerate(texts):
            if text in spoken:
                vectors[place] = spoken[text]
        return vectors


def recommender(world: World) -> TRMRetriever:
    """Return the world's in-process recommender.

    Raises:
        TypeError: if it has another one.
    """
    if not isinstance(world.retriever, TRMRetriever):
        raise TypeError(
            f"expected a world whose recommender is a TRM in this process, got {type(world.retriever).__name__}; "
            "numeric views need its vectors"
        )
    return world.retriever


class SpokenWorld(World):
    """A world whose recommender and reward hear spoken vectors. Get it by `spoken_world`."""

    encoder: SpokenEncoder

    def __init__(self, world: World) -> None:
        encoder = SpokenEncoder(world.encoder)
        super().__init__(
            world.name,
            world.catalog,
            world.splits,
            retriever=TRMRetriever(recommender(world).frozen, encoder),
            encoder=encoder,
            item_text_vectors=world.item_text_vectors,
            item_id_vectors=world.item_id_vectors,
        )
        self._silent = world

    def __reduce__(self) -> Any:
        """Pickle by the world that it was made from."""
        return spoken_world, (self._silent,)


def spoken_world(world: World) -> SpokenWorld:
    """Return the same world with a recommender that hears spoken vectors; one for each world.

    Raises:
        TypeError: if its recommender is not a TRM in this process.
    """
    if isinstance(world, SpokenWorld):
        return world
    if world not in _WORLDS:
        _WORLDS[world] = SpokenWorld(world)
    return _WORLDS[world]
