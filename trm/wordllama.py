"""A fast text encoder: the mean of static word-piece vectors from the weights in the package wordllama. Needs no torch.

Made for catalogues and services where all-MiniLM-L6-v2 is too slow; it knows words, but not their order.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trm.errors import TRMError
from trm.types import FloatArray

WORDLLAMA = "wordllama-256"

_PACKAGE = "wordllama"
_WEIGHTS = Path("weights", "l2_supercat_256.safetensors")
_TOKENIZER = Path("tokenizers", "l2_supercat_tokenizer_config.json")
_TENSOR = "embedding.weight"
_BATCH = 1024
_NORM_FLOOR = 1e-12


class WordLlamaEncoder:
    """Mean of the 256-dimensional vectors of a text's word pieces."""

    name = WORDLLAMA
    dim = 256
    max_tokens = 256
    """Longer texts are cut."""

    def __init__(self) -> None:
        """Load the weights (16 MB), about a tenth of a second; the package itself is not imported.

        Raises:
            TRMError: if the package with the weights, tokenizers or safetensors is missing.
        """
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise TRMError(f"expected the weights of {WORDLLAMA}, got none; run: pip install deeprec-env[fast]")
        self._folder = Path(next(iter(spec.submodule_search_locations)))
        try:
            from safetensors.numpy import load_file
            from tokenizers import Tokenizer
        except ImportError as error:
            raise TRMError(
                f"expected tokenizers and safetensors for {WORDLLAMA}, got {error}; run: pip install deeprec-env[fast]"
            ) from error
        self._vectors: FloatArray = load_file(self._folder / _WEIGHTS)[_TENSOR].astype(np.float32)
        self._tokenizer: Any = Tokenizer.from_file(str(self._folder / _TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), 256], each row of unit norm (an empty text: the zero row)."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        filled = [row for row, text in enumerate(texts) if text.strip()]
        for start in range(0, len(filled), _BATCH):
            rows = filled[start : start + _BATCH]
            clean = [texts[row].encode("utf-8", "replace").decode("utf-8") for row in rows]  # lone surrogates
            encodings = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
            rows = [row for row, row_ids in zip(rows, ids) if row_ids]
            ids = [row_ids for row_ids in ids if row_ids]
            if not ids:
                continue
            lengths = np.array([len(row_ids) for row_ids in ids])
            starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
            flat = np.fromiter((token for row_ids in ids for token in row_ids), dtype=np.int64, count=lengths.sum())
            sums = np.add.reduceat(self._vectors[flat], starts, axis=0)
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            vectors[rows] = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > _NORM_FLOOR)
        return vectors
