"""Sequences without padding: rows of tokens in one row, attention within each, and which implementation does it.

flash-attn takes such a row with the sequences' boundaries. Elsewhere torch's sdpa does, through `packed_sdpa` here: the
model runs on one row of distinct tokens, and only attention spreads them out into sequences. There a prefix that
several sequences share, such as the prompt of a group's rollouts, stands in the row once, for a token's hidden state
depends on nothing but the tokens before it.

Shape legend: N sequences, T positions, U tokens of the packed row, M sampled tokens, H heads, D head size.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agents.base import AgentError

PACKED_SDPA = "packed_sdpa"
_VARLEN = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
_EVERYWHERE = "full_attention"


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the tokens of N rows lie in one packed row."""

    ids_U: Tensor
    """int64, the packed tokens."""
    positions_U: Tensor
    """int64, each token's position in its sequence."""
    place_NT: Tensor
    """int64, where in the packed row position t of sequence n is; any place beyond the sequence's end."""
    home_U: Tensor
    """int64, a place of each packed token in the flattened place_NT."""
    lengths: tuple[int, ...]
    """Tokens of each sequence, prefixes included."""
    before_M: Tensor
    """int64, in the order of mask_NT: the packed token that predicts each sampled one."""

    def to(self, device: torch.device) -> Packing:
        """Return the same on a device."""
        tensors = (self.ids_U, self.positions_U, self.place_NT, self.home_U)
        ids_U, positions_U, place_NT, home_U = (tensor.to(device) for tensor in tensors)
        return Packing(ids_U, positions_U, place_NT, home_U, self.lengths, self.before_M.to(device))


def pack_rows(ids_NT: Tensor, mask_NT: Tensor, *, share_prefixes: bool) -> Packing:
    """Return the rows as one, each up to the token before its last sampled one, which nothing needs.

    Two rows [5, 6, 7, 8] and [5, 6, 9, 4] whose last two tokens are sampled become [5, 6, 7, 9] if they share their
    prefix [5, 6], and [5, 6, 7, 5, 6, 9] if not.

    Args:
        ids_NT: int64 [N, T].
        mask_NT: bool [N, T], True on sampled tokens; column 0 False; at least one True.
        share_prefixes: whether prefixes that rows have in common stand there once.
    """
    ids, mask = ids_NT.cpu().numpy(), mask_NT.cpu().numpy()
    width = ids.shape[1]
    lengths = np.where(mask.any(axis=1), width - 1 - mask[:, ::-1].argmax(axis=1), 0)
    place = np.zeros((len(ids), max(1, int(lengths.max()))), dtype=np.int64)
    # In a dictionary's order of what is packed, no earlier row has more in common with a row than the one before it.
    packed = np.where(np.arange(width) < lengths[:, None], ids, -1)
    order = np.lexsort(packed.T[::-1]) if share_prefixes else np.arange(len(ids))
    homes: list[np.ndarray] = []
    count, previous = 0, -1
    for row in order[lengths[order] > 0]:
        length = int(lengths[row])
        shared = (
            0 if previous < 0 or not share_prefixes else _common(ids[row, :length], ids[previous, : lengths[previous]])
        )
        place[row, :shared] = place[previous, :shared]
        place[row, shared:length] = np.arange(count, count + length - shared)
        homes.append(row * place.shape[1] + np.arange(shared, length))
        count, previous = count + length - shared, int(row)
    home = np.concatenate(homes)
    rows, columns = np.divmod(home, place.shape[1])
    sampled = np.argwhere(mask)
    return Packing(
        ids_U=torch.from_numpy(ids[rows, columns]),
        positions_U=torch.from_numpy(columns),
        place_NT=torch.from_numpy(place),
        home_U=torch.from_numpy(home),
        lengths=tuple(lengths.tolist()),
        before_M=torch.from_numpy(place[sampled[:, 0], sampled[:, 1] - 1]),
    )


def _common(one: np.ndarray, other: np.ndarray) -> int:
    limit = min(len(one), len(other))
    differing = np.flatnonzero(one[:limit] != other[:limit])
    return int(differing[0]) if len(differing) else limit


def packed_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return causal attention within the sequences of a packed row, [1, U, H, D]; without `packing` plain sdpa.

    Args:
        module: the attention layer.
        query: [1, H, U, D] of the packed row.
        key: likewise, of perhaps fewer heads.
        value: likewise.
        attention_mask: not looked at if there is a packing.
        packing: of the row.
        **options: of sdpa.
    """
    if packing is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found
    # One lookup for all three: its gradient is a quick one, unlike that of an index.
    parts = [part[0].transpose(0, 1).flatten(1) for part in (query, key, value)]
    spread = functional.embedding(packing.place_NT, torch.cat(parts, dim=1))
    shapes = [(*packing.place_NT.shape, part.shape[1], part.shape[3]) for part in (query, key, value)]
    split = spread.split([part.shape[1] for part in parts], dim=2)
    rows = [part.reshape(shape).transpose(1, 2) for part, shape in zip(split, shapes, strict=True)]
    # Padding stands on the right, where causal attention keeps it from every real token.
    options["is_causal"] = True
    output, _ = sdpa_attention_forward(module, rows[0], rows[1], rows[2], None, **options)
    return functional.embedding(packing.home_U, output.flatten(2).flatten(0, 1)).unflatten(1, output.shape[2:])[
        None
    ], None


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)


def choose_attention(model: PreTrainedModel, name: str, *, precision: str) -> None:
    """Set a model's attention in place.

    Args:
        model: on its device.
        name: of an implementation of transformers, or auto: flash-attn where it works, else `packed_sdpa`, or sdpa for
            models whose layers cannot be packed.
        precision: fp32 or bf16; flash-attn takes bf16.

    Raises:
        AgentError: if it does not work here.
    """
    if name == "auto":
        on_gpu = model.device.type == "cuda" and precision == "bf16"
        name = "flash_attention_2" if on_gpu and importlib.util.find_spec("flash_attn") else PACKED_SDPA
        if name == PACKED_SDPA and not _is_packable(model):
            name = "sdpa"
    if name == model.config._attn_implementation:
        return
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise AgentError(f"attention {name!r} does not work here: {error}; choose sdpa") from error


def packs(model: PreTrainedModel) -> bool:
    """Return whether the model's attention takes packed rows."""
    return _is_packable(model) and model.config._attn_implementation in (PACKED_SDPA, *_VARLEN)


def shares_prefixes(model: PreTrainedModel) -> bool:
    """Return whether the model's attention takes packed rows in which prefixes stand once."""
    return bool(model.config._attn_implementation == PACKED_SDPA)


def _is_packable(model: PreTrainedModel) -> bool:
    """Return whether every layer is plain causal attention by transformers' interface, not recurrent, not windowed."""
    kinds = getattr(model.config, "layer_types", None) or (_EVERYWHERE,)
    windowed = getattr(model.config, "sliding_window", None) is not None and not hasattr(model.config, "layer_types")
    return bool(model._supports_sdpa) and not model._is_stateful and not windowed and set(kinds) == {_EVERYWHERE}


def packed_options(packing: Packing, *, share_prefixes: bool) -> dict[str, Any]:
    """Return what a model's forward is given beside the packed ids for its attention to stay within sequences."""
    device = packing.ids_U.device
    options: dict[str, Any] = {"position_ids": packing.positions_U[None]}
    if share_prefixes:
        # A mask of four dimensions is handed on as it is; else one of U x U would be made. A model that lost the
        # packing on the way would use it, and have a loss that is not a number rather than a wrong one.
        return {**options, "packing": packing, "attention_mask": torch.full((1, 1, 1, 1), torch.nan, device=device)}
    lengths = [length for length in packing.lengths if length]
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    longest = max(lengths)
    return {
        **options,
        **{"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds},
        **{"max_length_q": longest, "max_length_k": longest},
    }
