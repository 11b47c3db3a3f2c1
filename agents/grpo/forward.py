"""The one forward pass of SFT and GRPO: log-probabilities of the sampled tokens and nothing else.

Shape legend: N sequences, T tokens, M sampled tokens of all sequences in row order, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.grpo.batch import TokenBatch
from agents.grpo.loss import entropy, token_logps


def batch_rows(batch: TokenBatch, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Return ids [n, t] and mask [n, t] of these rows, cut to the longest of them."""
    width = int(batch.lengths_N[rows].max())
    return batch.ids_NT[rows, :width], batch.mask_NT[rows, :width]


def sampled_logps(model: PreTrainedModel, ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 [M] log-probabilities, with gradient, and float32 [M] entropies, without.

    Logits are made for positions before sampled tokens only: a large vocabulary costs nothing on observations. Padding
    stands on the right, where causal attention keeps it from every real token, so no mask is needed.

    Args:
        model: a causal model.
        ids_NT: int64 [N, T].
        mask_NT: bool [N, T], column 0 False.
    """
    hidden_NTD = model.base_model(input_ids=ids_NT, use_cache=False).last_hidden_state
    wanted_NT = mask_NT[:, 1:]
    logits_MV = model.get_output_embeddings()(hidden_NTD[:, :-1][wanted_NT])
    logps_M = token_logps(logits_MV, ids_NT[:, 1:][wanted_NT])
    with torch.no_grad():
        entropy_M = entropy(logits_MV)
    return logps_M, entropy_M
