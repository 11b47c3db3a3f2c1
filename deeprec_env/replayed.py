"""A world without a recommender: what the rewards need of it is kept beside a recording of its retrievals.

`record:FILE` writes `FILE.world.npz`, `replay:FILE` reads it; then neither a trained TRM nor torch is needed, and the
text encoder only if a reward embeds a text.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trm.errors import DataFormatError
from trm.types import FloatArray, TextEncoder

if TYPE_CHECKING:
    from deeprec_env.world import World


class KeptVectors(NamedTuple):
    """What the rewards need of a recommender."""

    encoder_name: str
    encoder_dim: int
    item_text_vectors: FloatArray
    """float32 [num_items + 1, D], unit rows, row 0 zeros."""
    item_id_vectors: FloatArray
    """float32 [num_items + 1, d], row 0 zeros."""


class LateEncoder:
    """A text encoder that is loaded when the first text is to be embedded."""

    def __init__(self, name: str, dim: int) -> None:
        self.name = name
        self.dim = dim

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), dim], each row of unit norm (an empty text: the zero row)."""
        from trm.text_encoder import load_encoder

        return load_encoder(self.name).encode(texts)


def vectors_file(recording: Path) -> Path:
    """Return where the vectors of a recording lie."""
    return recording.with_name(f"{recording.name}.world.npz")


def keep_vectors(world: World, recording: Path) -> None:
    """Write the world's vectors beside a recording, whole or not at all."""
    path = vectors_file(recording)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    encoder: TextEncoder = world.encoder
    with draft.open("wb") as file:
        np.savez_compressed(
            file,
            encoder_name=np.array(encoder.name),
            encoder_dim=np.array(encoder.dim),
            item_text_vectors=world.item_text_vectors,
            item_id_vectors=world.item_id_vectors,
        )
    draft.replace(path)


def load_vectors(recording: Path) -> KeptVectors:
    """Return the vectors that lie beside a recording.

    Raises:
        DataFormatError: if they are missing or damaged.
    """
    path = vectors_file(recording)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return KeptVectors(
                str(arrays["encoder_name"]),
                int(arrays["encoder_dim"]),
                arrays["item_text_vectors"],
                arrays["item_id_vectors"],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataFormatError(
            f"{path}: expected the vectors of a recording, got {error}; record the run again"
        ) from error
