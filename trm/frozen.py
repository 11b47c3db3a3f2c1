"""A trained TRM for inference: numpy only, everything that cannot change at inference computed once.

Agrees with the torch model to 1e-4. Shapes: B batch, L positions, D width, H heads, K width of a head, P text
dimension, N items (0 is padding).
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trm.data.catalog import PAD
from trm.data.storage import written_folder
from trm.errors import CheckpointError
from trm.types import FloatArray

FORMAT_VERSION = 2
_ARRAYS = "trm.npz"
_CONFIG = "trm.json"
_MASKED = np.float32(-10_000.0)
_NORM_FLOOR = 1e-12
_CHUNK = 32
"""Histories encoded at once: few enough for a layer's arrays to stay in the processor's cache."""


class FrozenTRM:
    """The arrays of a trained model and the forward pass of a query. Never changes after construction."""

    def __init__(self, *, config: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> None:
        """Hold a model that `SteerTRM.export` gave.

        Raises:
            CheckpointError: if an array or a setting is missing, or the shapes do not fit together.
        """
        self.config = dict(config)
        self._arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
        for array in self._arrays.values():
            array.flags.writeable = False
        try:
            self.encoder_name: str = config["encoder_name"]
            self.max_history: int = config["max_history"]
            self._num_layers: int = config["num_layers"]
            self._num_heads: int = config["num_heads"]
            self._eps: float = config["layer_norm_eps"]
            self._temperature: float = config["temperature"]
            self._preference_scale: float = self._temperature / config["preference_temperature"]
            self._agreement: float = config.get("agreement", 0.0)
            self._agreement_level: float = config.get("agreement_level", 0.0)
            self._item_profiles = self._arrays["item_profiles"]
            self.item_table = self._arrays["item_table"]
            self.item_id_vectors = self._arrays["item_id_vectors"]
            self.item_text_vectors = self._arrays["item_text_vectors"]
            self._adaptor = self._arrays["adaptor"]
        except KeyError as error:
            raise CheckpointError(f"expected a whole TRM, got one without {error}; train it again") from error
        expected = (self.item_text_vectors.shape[1], self.item_table.shape[1])
        if self._adaptor.shape != expected or len(self.item_text_vectors) != len(self.item_table):
            raise CheckpointError(f"expected an adaptor of shape {expected}, got {self._adaptor.shape}")

    @property
    def num_items(self) -> int:
        """How many items there are, PAD not counted."""
        return len(self.item_table) - 1

    @property
    def dim(self) -> int:
        """The width of states, queries and item vectors."""
        return self.item_table.shape[1]

    @property
    def text_dim(self) -> int:
        """The dimension of the text encoder."""
        return self._adaptor.shape[0]

    @cached_property
    def item_vectors(self) -> FloatArray:
        """Unit vectors that queries are scored against, float32 [N + 1, D], row 0 zeros."""
        return _unit_rows(self.item_table)

    def encode_histories(self, histories: Sequence[tuple[int, ...]]) -> FloatArray:
        """Return the state after each history and beside it the mean of its items' adapted texts, float32 [B, 2 D].

        Those of an empty history are zeros.

        Args:
            histories: item ids, oldest first, without padding; only the last max_history count.

        Raises:
            ValueError: if an id is not in the catalogue.
        """
        states = np.zeros((len(histories), 2 * self.dim), dtype=np.float32)
        lengths = np.array([min(len(history), self.max_history) for history in histories], dtype=np.int64)
        order = np.argsort(lengths, kind="stable")
        order = order[lengths[order] > 0]
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            item_seq = np.full((len(rows), lengths[rows[-1]]), PAD, dtype=np.int64)
            for place, row in enumerate(rows):
                item_seq[place, : lengths[row]] = histories[row][-self.max_history :]
            self._check_ids(item_seq)
            states[rows, : self.dim] = self._last_states(item_seq, lengths[rows])
            states[rows, self.dim :] = self._item_profiles[item_seq].sum(axis=1) / lengths[rows, None]
        return states

    def queries(self, states: FloatArray, preference_vectors: FloatArray | None = None) -> FloatArray:
        """Return unit query vectors, float32 [B, D].

        Args:
            states: float32 [B, 2 D] of encode_histories.
            preference_vectors: float32 [B, P], unit text vectors; a zero row is an empty preference, whose query is the
                history's own. No preferences: all are.
        """
        own = _unit_rows(self._layer_norm(states[:, : self.dim], "output_norm"))
        if preference_vectors is None:
            return own
        fused = self._fused(states[:, : self.dim], preference_vectors @ self._adaptor)
        return np.where(preference_vectors.any(axis=1, keepdims=True), fused, own)

    def steered(self, states: FloatArray, preference_vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the vectors of queries with a preference, float32 [B, D], and the trust in them, float32 [B].

        An item's score is the larger of own @ item and vector @ item + trust, with own of `queries(states)`. The
        vectors are no unit vectors.

        Args:
            states: float32 [B, 2 D] of encode_histories.
            preference_vectors: float32 [B, P], unit text vectors, no zero rows.
        """
        own, profiles = self.queries(states), _unit_rows(states[:, self.dim :])
        preferences = preference_vectors @ self._adaptor
        fused = self._fused(states[:, : self.dim], preferences)
        norms = np.linalg.norm(preferences, axis=-1, keepdims=True)
        preferences = _unit_rows(preferences)
        scale = np.float32(self.dim**0.5)
        pairs = ((own, fused), (own, preferences), (fused, preferences), (profiles, preferences))
        cosines = [scale * np.vecdot(left, right)[:, None] for left, right in pairs]
        vectors = [scale * own, scale * fused, scale * preferences, scale**2 * profiles * preferences]
        features = self._layer_norm(np.concatenate([*vectors, *cosines, norms], axis=1), "gate.norm")
        log_odds = self._linear(_gelu(self._linear(features, "gate.linear_1")), "gate.linear_2")
        vectors_BD = np.float32(self._preference_scale) * fused + np.float32(self._agreement) * own
        return vectors_BD, np.float32(self._temperature) * log_odds[:, 0] - np.float32(
            self._agreement * self._agreement_level
        )

    def with_agreement(self, agreement: float, *, level: float) -> FrozenTRM:
        """Return the same model with another weight of the history in the ranking with a preference.

        Args:
            agreement: how much of an item's own score is added to its score with the preference; 0 as trained.
            level: the own score at which nothing is added; more is a gain, less a loss.
        """
        return FrozenTRM(config={**self.config, "agreement": agreement, "agreement_level": level}, arrays=self._arrays)

    def save(self, folder: Path) -> None:
        """Write the model into folder, whole or not at all; what was there before is replaced."""
        with written_folder(folder) as draft:
            self.write_files(draft)

    def write_files(self, folder: Path) -> None:
        """Write the model's files into an existing folder, beside what else is there."""
        np.savez(folder / _ARRAYS, **self._arrays)  # type: ignore[arg-type]
        text = json.dumps({"format_version": FORMAT_VERSION, **self.config}, indent=2)
        (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")

    def _fused(self, states_BD: FloatArray, preferences_BD: FloatArray) -> FloatArray:
        both = np.concatenate((states_BD, preferences_BD, states_BD * preferences_BD), axis=1)
        correction = self._linear(_gelu(self._linear(both, "fusion.linear_1")), "fusion.linear_2")
        summed = self._linear(states_BD, "fusion.state") + preferences_BD + correction
        return _unit_rows(self._layer_norm(summed, "fusion.norm"))

    def _check_ids(self, item_seq: np.ndarray) -> None:
        largest, smallest = item_seq.max(), item_seq.min()
        if largest > self.num_items or smallest < PAD:
            raise ValueError(
                f"expected item ids in 1..{self.num_items}, got {largest if smallest >= PAD else smallest}"
            )

    def _last_states(self, item_seq_BL: np.ndarray, lengths_B: np.ndarray) -> FloatArray:
        """Return the state at each sequence's last item, float32 [B, D]; the last layer computes no other."""
        length = item_seq_BL.shape[1]
        x_BLD = self.item_table[item_seq_BL] + self._arrays["position_embedding.weight"][:length]
        x_BLD = self._layer_norm(x_BLD, "input_norm")
        causal_LL = np.where(np.tri(length, dtype=bool), np.float32(0), _MASKED)
        rows = np.arange(len(item_seq_BL))
        for number in range(self._num_layers):
            prefix = f"encoder.layer.{number}."
            if number + 1 < self._num_layers:
                x_BLD = self._layer(x_BLD, x_BLD, causal_LL, prefix)
            else:
                last_B1D = x_BLD[rows, lengths_B - 1][:, None]
                mask_B11L = np.where(np.arange(length) < lengths_B[:, None], np.float32(0), _MASKED)[:, None, None]
                x_BLD = self._layer(last_B1D, x_BLD, mask_B11L, prefix)
        return x_BLD[:, 0] if self._num_layers else x_BLD[rows, lengths_B - 1]

    def _layer(self, x_BLD: FloatArray, all_BLD: FloatArray, mask: FloatArray, prefix: str) -> FloatArray:
        """Return one post-norm layer's output for the positions x, which attend to all."""
        attention = prefix + "multi_head_attention."
        q, k, v = (
            self._heads(self._linear(source, attention + name))
            for source, name in ((x_BLD, "query"), (all_BLD, "key"), (all_BLD, "value"))
        )
        scores_BHLL = q @ k.transpose(0, 1, 3, 2) / np.float32(math.sqrt(q.shape[-1])) + mask
        scores_BHLL -= scores_BHLL.max(axis=-1, keepdims=True)
        weights_BHLL = np.exp(scores_BHLL, out=scores_BHLL)
        weights_BHLL /= weights_BHLL.sum(axis=-1, keepdims=True)
        context_BLD = (weights_BHLL @ v).transpose(0, 2, 1, 3).reshape(x_BLD.shape)
        x_BLD = self._layer_norm(self._linear(context_BLD, attention + "out_linear") + x_BLD, attention + "LayerNorm")
        feed_forward = prefix + "feed_forward."
        hidden = _gelu(self._linear(x_BLD, feed_forward + "linear_1"))
        return self._layer_norm(self._linear(hidden, feed_forward + "linear_2") + x_BLD, feed_forward + "LayerNorm")

    def _heads(self, x_BLD: FloatArray) -> FloatArray:
        batch, length, _ = x_BLD.shape
        return x_BLD.reshape(batch, length, self._num_heads, -1).transpose(0, 2, 1, 3)

    def _linear(self, x: FloatArray, name: str) -> FloatArray:
        flat = x.reshape(-1, x.shape[-1]) @ self._arrays[name + ".weight"].T
        flat += self._arrays[name + ".bias"]
        return flat.reshape(*x.shape[:-1], -1)

    def _layer_norm(self, x: FloatArray, name: str) -> FloatArray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.vecdot(centred, centred)[..., None] / np.float32(x.shape[-1])
        centred /= np.sqrt(variance + np.float32(self._eps))
        centred *= self._arrays[name + ".weight"]
        centred += self._arrays[name + ".bias"]
        return centred


def load_frozen(folder: Path) -> FrozenTRM:
    """Return the model that `FrozenTRM.save` wrote.

    Raises:
        CheckpointError: if a file is missing, damaged or of another version.
    """
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        version = config.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{folder}: expected format version {FORMAT_VERSION}, got {version}; train it again")
        with (folder / _ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return FrozenTRM(config=config, arrays={name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{folder}: expected a trained TRM, got {error}; train it again") from error


def _unit_rows(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, np.float32(_NORM_FLOOR))


def _gelu(x: FloatArray) -> FloatArray:
    y = _erf(x * np.float32(1 / math.sqrt(2)))
    y += 1
    y *= x
    y *= np.float32(0.5)
    return y


def _erf(x: FloatArray) -> FloatArray:
    """Return the error function to 2e-7 (Abramowitz and Stegun 7.1.26); numpy has none."""
    t = np.abs(x)
    t *= np.float32(0.3275911)
    t += 1
    np.reciprocal(t, out=t)
    y = t * np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        y += np.float32(coefficient)
        y *= t
    np.multiply(x, x, out=t)
    np.negative(t, out=t)
    y *= np.exp(t, out=t)
    np.subtract(1, y, out=y)
    return np.copysign(y, x, out=y)
