"""The one forward pass of SFT and GRPO: log-probabilities of the sampled tokens and nothing else.

Shape legend: N sequences, T tokens, M sampled tokens of all sequences in row order, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from agents.grpo.attention import pack_rows, packed_options, packs, shares_prefixes
from agents.grpo.batch import TokenBatch
from agents.grpo.loss import logps_and_entropy

CHUNK_NUMBERS = 2**26
"""Logits that are made at a time: 256 MB in float32, 441 tokens of a vocabulary of 152,000."""
NOTHING = torch.zeros((1, 2), dtype=torch.int64), torch.tensor([[False, True]])
"""Ids and mask of what a rank computes, and weighs by 0, while others have one micro-batch more."""


def batch_rows(batch: TokenBatch, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Return ids [n, t] and mask [n, t] of these rows, cut to the longest of them."""
    width = int(batch.lengths_N[rows].max())
    return batch.ids_NT[rows, :width], batch.mask_NT[rows, :width]


def sampled_logps(
    model: PreTrainedModel, ids_NT: Tensor, mask_NT: Tensor, *, chunk_numbers: int = CHUNK_NUMBERS
) -> tuple[Tensor, Tensor]:
    """Return float32 [M] log-probabilities, with gradient, and float32 [M] entropies, without.

    Where the model's attention takes it the sequences lie in one row without padding, see `agents.grpo.attention`; else
    padding stands on the right, where causal attention keeps it from every real token, so no mask is needed. Logits are
    made for positions before sampled tokens only: a large vocabulary costs nothing on observations. More than
    `chunk_numbers` of them are made chunk by chunk, and again in the backward pass, so that they never lie in memory
    together.

    Args:
        model: a causal model.
        ids_NT: int64 [N, T].
        mask_NT: bool [N, T], column 0 False, at least one True.
        chunk_numbers: logits at a time.
    """
    hidden_MD, targets_M = _hidden_before(model, ids_NT, mask_NT), ids_NT[mask_NT]
    size = max(1, chunk_numbers // int(model.config.vocab_size))
    if len(targets_M) <= size:
        return _scores(model, hidden_MD, targets_M)
    parts = [
        checkpoint(
            _scores, model, hidden_MD[start : start + size], targets_M[start : start + size], use_reentrant=False
        )
        for start in range(0, len(targets_M), size)
    ]
    return torch.cat([logps for logps, _ in parts]), torch.cat([entropies for _, entropies in parts])


def _hidden_before(model: PreTrainedModel, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Return [M, D], the hidden states that the sampled tokens are predicted from."""
    if not packs(model):
        hidden_NTD = model.base_model(input_ids=ids_NT, use_cache=False).last_hidden_state
        return hidden_NTD[:, :-1][mask_NT[:, 1:]]
    share = shares_prefixes(model)
    packing = pack_rows(ids_NT, mask_NT, share_prefixes=share).to(ids_NT.device)
    options = packed_options(packing, share_prefixes=share)
    hidden_UD = model.base_model(input_ids=packing.ids_U[None], use_cache=False, **options).last_hidden_state[0]
    return hidden_UD[packing.before_M]


def _scores(model: PreTrainedModel, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    return logps_and_entropy(model.get_output_embeddings()(hidden_MD), targets_M)


class Scorer(torch.nn.Module):
    """`sampled_logps` as a module, for backends that watch what a module's forward pass does."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap the model; it is shared, not copied."""
        super().__init__()
        self.model = model

    def forward(self, ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies, float32 [M] each."""
        return sampled_logps(self.model, ids_NT, mask_NT)
