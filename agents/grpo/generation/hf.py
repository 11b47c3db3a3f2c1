"""Sampling from a transformers model with a loop and a key-value cache of our own.

Each request owns a row of the cache, written at the row's own positions: no left padding, no holes, and rows of any
length side by side. The rows of the last call are kept: a later turn of an episode pays for its new tokens only.

Shape legend: B rows, S positions, H key-value heads, D head size, Q query tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, SamplingParams
from agents.grpo.generation.stops import StopWatch
from agents.grpo.loss import token_logps

_BLOCK = 64
"""The cache grows by this many positions at a time."""
_COMPACT_BELOW = 0.7
"""Rows that ended are dropped from the decoding batch when fewer than this share of it still sample."""


class RowCache:
    """Keys and values [B, H, S, D] a layer, in the shape of a transformers cache: each row writes where it is told."""

    def __init__(self, num_layers: int, num_rows: int) -> None:
        self.num_rows = num_rows
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._write_BQ = torch.empty(0)
        self._visible = 0

    def prepare(self, write_BQ: Tensor) -> None:
        """Say where the next forward's tokens go: position write_BQ[b, q] of row b."""
        self._write_BQ = write_BQ
        self._visible = int(write_BQ.max()) + 1

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store the new keys and values [B, H, Q, D] and return all that is visible, [B, H, S, D]."""
        stored = self._layers[layer_idx]
        if stored is None or stored[0].shape[2] < self._visible:
            stored = (self._grow(keys, stored and stored[0]), self._grow(values, stored and stored[1]))
            self._layers[layer_idx] = stored
        rows_B1 = torch.arange(keys.shape[0]).unsqueeze(1)
        # Advanced indices around a slice come first: the target is [B, Q, H, D].
        stored[0][rows_B1, :, self._write_BQ] = keys.transpose(1, 2)
        stored[1][rows_B1, :, self._write_BQ] = values.transpose(1, 2)
        return stored[0][:, :, : self._visible], stored[1][:, :, : self._visible]

    def _grow(self, new: Tensor, old: Tensor | None) -> Tensor:
        size = -(-self._visible // _BLOCK) * _BLOCK
        grown = new.new_zeros((new.shape[0], new.shape[1], size, new.shape[3]))
        if old is not None:
            grown[:, :, : old.shape[2]] = old
        return grown

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are always given, never derived from the cache."""
        return 0

    def select(self, rows: Sequence[int | None]) -> RowCache:
        """Return a new cache with these rows in this order; None makes an empty row."""
        picked = RowCache(len(self._layers), len(rows))
        index = torch.tensor([row or 0 for row in rows])
        for layer, stored in enumerate(self._layers):
            if stored is not None:
                picked._layers[layer] = (stored[0][index], stored[1][index])
        return picked


@dataclass(slots=True)
class _Row:
    """One request while it is decoded."""

    request: GenerationRequest
    known: list[int]
    """Tokens whose keys and values are in the cache."""
    uniforms: np.ndarray
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: FinishReason | None = None


class HFGenerator:
    """A Generator around a causal model of transformers, which the trainer may update in place."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Build the engine.

        Args:
            model: shared, not copied; call `weights_changed` after each update of it.
            tokenizer: decodes what is sampled, to find stop strings in it; wanted where there are any.
        """
        self._model, self._tokenizer = model, tokenizer
        self._num_layers = int(model.config.num_hidden_layers)
        self._kept: dict[int, tuple[int, list[int]]] = {}
        self._cache = RowCache(self._num_layers, 0)

    def weights_changed(self) -> None:
        """Drop the cache."""
        self._kept = {}
        self._cache = RowCache(self._num_layers, 0)

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        """Return one completion a request. Rows of the previous call whose context goes on are not computed again.

        Raises:
            ValueError: if a context is empty, or there are stop strings and no tokenizer.
        """
        if not requests:
            return []
        device = self._model.device
        # New tensors are made where the model is; on CPUs they are anyway, and the context costs time at every call.
        with contextlib.nullcontext() if device.type == "cpu" else device:
            return self._generate(requests, params)

    def _generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        watch = self._stop_watch(params)
        was_training = self._model.training
        self._model.eval()
        rows, cache = self._open_rows(requests, params)
        logits_BV = self._prefill(rows, cache)
        live = list(range(len(rows)))
        """The row of `rows` that each row of the decoding batch stands for."""
        done: list[tuple[RowCache, list[int]]] = []
        while True:
            self._sample(logits_BV, [rows[index] for index in live], params, watch)
            active = [place for place, index in enumerate(live) if rows[index].finish is None]
            if not active:
                break
            if len(active) < _COMPACT_BELOW * len(live):
                ended = [place for place, index in enumerate(live) if rows[index].finish is not None]
                done.append((cache.select(ended), [live[place] for place in ended]))
                cache, live = cache.select(active), [live[place] for place in active]
            logits_BV = self._decode([rows[index] for index in live], cache)
        self._keep(rows, [*done, (cache, live)])
        self._model.train(was_training)
        return [Completion(tuple(row.ids), tuple(row.logps), row.finish or FinishReason.STOP) for row in rows]

    def _stop_watch(self, params: SamplingParams) -> StopWatch | None:
        if not params.stop_strings:
            return None
        if self._tokenizer is None:
            raise ValueError(
                f"expected a tokenizer for stop strings, got None and {params.stop_strings!r}; give one to HFGenerator"
            )
        return StopWatch(self._tokenizer, params.stop_strings)

    def _open_rows(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> tuple[list[_Row], RowCache]:
        rows, sources = [], []
        for request in requests:
            if not request.ids:
                raise ValueError(f"expected a context of at least one token, got none for request {request.key}")
            place, known = self._kept.get(request.key, (None, []))
            # The last token of a context must go through the model even if the cache knows it: its logits are wanted.
            if place is None or len(known) >= len(request.ids) or list(request.ids[: len(known)]) != known:
                place, known = None, []
            uniforms = np.random.default_rng(request.seed).random(params.max_tokens)
            rows.append(_Row(request, list(known), uniforms))
            sources.append(place)
        return rows, self._cache.select(sources)

    def _prefill(self, rows: Sequence[_Row], cache: RowCache) -> Tensor:
        """Run the tokens that the cache lacks, padded on the right, and return the logits of each row's last one."""
        fresh = [list(row.request.ids[len(row.known) :]) for row in rows]
        width = max(len(ids) for ids in fresh)
        ids_BQ = torch.tensor([ids + [0] * (width - len(ids)) for ids in fresh])
        starts_B1 = torch.tensor([[len(row.known)] for row in rows])
        # Padding is written behind the row's end, where the mask hides it until real tokens overwrite it.
        hidden_BQ = self._forward(ids_BQ, starts_B1 + torch.arange(width), cache)
        for row, ids in zip(rows, fresh, strict=True):
            row.known.extend(ids)
        last_B = torch.tensor([len(ids) - 1 for ids in fresh])
        return self._head(hidden_BQ[torch.arange(len(rows)), last_B])

    def _decode(self, rows: Sequence[_Row], cache: RowCache) -> Tensor:
        """Run each row's newest token (an ended row's last one again, unseen) and return the logits after it."""
        ids_B1 = torch.tensor([[row.ids[-1]] for row in rows])
        positions_B1 = torch.tensor([[len(row.known)] for row in rows])
        hidden_B1 = self._forward(ids_B1, positions_B1, cache)
        for row in rows:
            if row.finish is None:
                row.known.append(row.ids[-1])
        return self._head(hidden_B1[:, 0])

    def _forward(self, ids_BQ: Tensor, positions_BQ: Tensor, cache: RowCache) -> Tensor:
        cache.prepare(positions_BQ)
        visible = int(positions_BQ.max()) + 1
        allowed_BQS = torch.arange(visible) <= positions_BQ.unsqueeze(-1)
        limit = int(self._model.config.max_position_embeddings) - 1
        output = self._model.base_model(
            input_ids=ids_BQ,
            attention_mask=allowed_BQS.unsqueeze(1),
            position_ids=positions_BQ.clamp(max=limit),
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def _head(self, hidden_BD: Tensor) -> Tensor:
        logits_BV: Tensor = self._model.get_output_embeddings()(hidden_BD)
        return logits_BV.float()

    def _sample(self, logits_BV: Tensor, rows: Sequence[_Row], params: SamplingParams, watch: StopWatch | None) -> None:
        """Append one token to each row that has not ended."""
        ids_B = _pick(logits_BV, rows, params.temperature)
        logps_B = token_logps(logits_BV, ids_B)
        for row, token, logp in zip(rows, ids_B.tolist(), logps_B.tolist(), strict=True):
            if row.finish is not None:
                continue
            row.ids.append(token)
            row.logps.append(logp)
            if token in params.stop_ids or (watch is not None and watch.completed(row.ids)):
                row.finish = FinishReason.STOP
            elif len(row.ids) == params.max_tokens:
                row.finish = FinishReason.LENGTH

    def _keep(self, rows: Sequence[_Row], parts: Sequence[tuple[RowCache, list[int]]]) -> None:
        """Keep the rows of this call and forget those of the one before."""
        self._cache = _join([part for part, _ in parts], self._num_layers)
        order = [index for _, indices in parts for index in indices]
        self._kept = {rows[index].request.key: (place, rows[index].known) for place, index in enumerate(order)}


def _pick(logits_BV: Tensor, rows: Sequence[_Row], temperature: float) -> Tensor:
    """Return int64 [B]: the token where each row's own uniform number meets the cumulated probabilities."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    # float64: the tail of a large vocabulary must not vanish in the sum.
    cumulated_BV = torch.softmax(logits_BV.double() / temperature, dim=-1).cumsum(dim=-1)
    uniform_B1 = torch.tensor([[row.uniforms[min(len(row.ids), len(row.uniforms) - 1)]] for row in rows])
    ids_B = torch.searchsorted(cumulated_BV, uniform_B1 * cumulated_BV[:, -1:], right=True).squeeze(1)
    return ids_B.clamp(max=logits_BV.shape[1] - 1)


def _join(parts: Sequence[RowCache], num_layers: int) -> RowCache:
    """Return the rows of all parts in one cache, the shorter ones filled up with zeros."""
    joined = RowCache(num_layers, sum(part.num_rows for part in parts))
    filled = [part for part in parts if part.num_rows]
    for layer in range(num_layers):
        pairs = [part._layers[layer] for part in filled]
        size = max(pair[0].shape[2] for pair in pairs if pair is not None)
        joined._layers[layer] = (
            torch.cat([_pad_positions(pair[0], size) for pair in pairs if pair is not None]),
            torch.cat([_pad_positions(pair[1], size) for pair in pairs if pair is not None]),
        )
    return joined


def _pad_positions(tensor: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, 0, 0, size - tensor.shape[2]))
