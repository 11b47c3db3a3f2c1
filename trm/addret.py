"""`addret`: the preference-aware TRM as published (arXiv:2505.16810), for its checkpoints and as the baseline.

Shapes: B batch, L max_his_len, D width, P text dimension, F = L // 2 + 1 frequencies, N items (0 is padding).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trm.errors import CheckpointError
from trm.layers import MoEAdaptor, TransformerEncoder, attention_mask

PADDING_SCORE = -1e9
"""The score of id 0."""


@dataclass(frozen=True, kw_only=True)
class AddretConfig:
    """The published hyper-parameters, under their published names."""

    n_items: int
    """Without padding."""
    max_his_len: int = 20
    n_layers: int = 2
    n_heads: int = 2
    embedding_size: int = 128
    hidden_size: int = 256
    plm_size: int = 1024
    """The text encoder's dimension."""
    dropout_prob: float = 0.5
    layer_norm_eps: float = 1e-12
    bidirectional: bool = True
    n_exps: int = 8
    adaptor_dropout_prob: float = 0.2

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> AddretConfig:
        """Return the config of a published config file; keys that say nothing of the architecture are ignored.

        Raises:
            ValueError: if the activation is not gelu.
        """
        if values.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"expected hidden_act 'gelu', got {values['hidden_act']!r}")
        known = {field.name for field in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        kept["layer_norm_eps"] = float(kept.get("layer_norm_eps", cls.layer_norm_eps))
        return cls(**kept)


class Addret(nn.Module):
    """Fourier fusion of item and text, a transformer, the last state plus the adapted preference, cosine with ids."""

    def __init__(self, config: AddretConfig) -> None:
        super().__init__()
        dim, eps = config.embedding_size, config.layer_norm_eps
        self.config = config
        self.item_embedding = nn.Embedding(config.n_items + 1, dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_his_len, dim)
        self.item_plm_embedding = nn.Embedding(config.n_items + 1, config.plm_size, padding_idx=0)
        self.item_plm_embedding.weight.requires_grad_(False)
        self.moe_adaptor = MoEAdaptor(
            config.plm_size, dim, num_experts=config.n_exps, dropout=config.adaptor_dropout_prob
        )
        self.complex_weight = nn.Parameter(torch.randn(1, config.max_his_len // 2 + 1, dim, 2) * 0.02)
        self.item_gating = nn.Linear(dim, 1)
        self.fusion_gating = nn.Linear(dim, 1)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(config.dropout_prob)
        self.trm_encoder = TransformerEncoder(
            dim,
            num_layers=config.n_layers,
            num_heads=config.n_heads,
            hidden_dim=config.hidden_size,
            dropout=config.dropout_prob,
            eps=eps,
        )
        self.OutLayerNorm = nn.LayerNorm(dim, eps=eps)

    def fuse(self, items_BLD: Tensor, features_BLD: Tensor) -> Tensor:
        """Return items and text features joined over the sequence in the Fourier domain, float [B, L, D]."""
        length = items_BLD.shape[1]
        items_BFD = torch.fft.rfft(items_BLD, dim=1, norm="ortho")
        features_BFD = torch.fft.rfft(features_BLD, dim=1, norm="ortho")
        filters_1FD = torch.view_as_complex(self.complex_weight)
        filtered_BLD = torch.fft.irfft(items_BFD * filters_1FD, n=length, dim=1, norm="ortho")
        mixed_BLD = torch.fft.irfft(features_BFD * items_BFD, n=length, dim=1, norm="ortho")
        gated_items = filtered_BLD * self.item_gating(filtered_BLD).sigmoid()
        gated_mix = mixed_BLD * self.fusion_gating(mixed_BLD).sigmoid()
        return 2 * (gated_items + gated_mix)

    def forward(self, item_seq_BL: Tensor, item_seq_len_B: Tensor, preference_BP: Tensor) -> Tensor:
        """Return the user representation, float [B, D].

        Args:
            item_seq_BL: int [B, max_his_len], oldest first, right-padded with 0.
            item_seq_len_B: int [B], at least 1.
            preference_BP: float [B, P], the preferences' text vectors.
        """
        items_BLD = self.item_embedding(item_seq_BL)
        features_BLD = self.moe_adaptor(self.item_plm_embedding(item_seq_BL))
        fused_BLD = self.fuse(items_BLD, features_BLD)
        x_BLD = self.dropout(self.LayerNorm(fused_BLD + self.position_embedding.weight))
        mask = attention_mask(item_seq_BL, bidirectional=self.config.bidirectional)
        states_BLD = self.trm_encoder(x_BLD, mask)
        last_BD = states_BLD[torch.arange(len(states_BLD)), item_seq_len_B - 1]
        return self.OutLayerNorm(last_BD + self.moe_adaptor(preference_BP))

    def scores(self, item_seq_BL: Tensor, item_seq_len_B: Tensor, preference_BP: Tensor) -> Tensor:
        """Return the cosine with every item, float [B, N + 1]; column 0 (padding) is PADDING_SCORE."""
        users_BD = functional.normalize(self(item_seq_BL, item_seq_len_B, preference_BP), dim=-1)
        scores_BN = users_BD @ functional.normalize(self.item_embedding.weight, dim=-1).T
        scores_BN[:, 0] = PADDING_SCORE
        return scores_BN


def load_addret(path: Path, config: AddretConfig) -> Addret:
    """Return the model of a published state_dict (plain tensors), in evaluation mode.

    Raises:
        CheckpointError: if the file is missing, holds more than tensors, or does not fit the config.
    """
    model = Addret(config)
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, TypeError) as error:
        raise CheckpointError(f"{path}: expected a state_dict that fits {config}, got {error}") from error
    return model.eval()
