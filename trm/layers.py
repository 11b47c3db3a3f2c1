"""The transformer of the TRMs and the mixture-of-experts adaptor, under the published names; `steer`'s fusion and gate.

Shapes: B batch, L positions, D width, H heads, K width of a head, P text dimension, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MASKED = -10_000.0
"""Added to the attention score of a pair that may not attend: finite, so that a row without any pair stays finite."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with its residual and LayerNorm (post-norm)."""

    def __init__(self, dim: int, *, num_heads: int, dropout: float, eps: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected a dim divisible by num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out_linear = nn.Linear(dim, dim)
        self.out_dropout = nn.Dropout(dropout)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Return float [B, L, D]; mask_B1LL is added to the attention scores."""
        q_BHLK, k_BHLK, v_BHLK = (self._heads(linear(x_BLD)) for linear in (self.query, self.key, self.value))
        context_BHLK = functional.scaled_dot_product_attention(
            q_BHLK, k_BHLK, v_BHLK, attn_mask=mask_B1LL, dropout_p=self.dropout if self.training else 0.0
        )
        context_BLD = context_BHLK.transpose(1, 2).flatten(2)
        return self.LayerNorm(self.out_dropout(self.out_linear(context_BLD)) + x_BLD)

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers around an exact gelu, with their residual and LayerNorm (post-norm)."""

    def __init__(self, dim: int, *, hidden_dim: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return float [B, L, D]."""
        return self.LayerNorm(self.dropout(self.linear_2(functional.gelu(self.linear_1(x_BLD)))) + x_BLD)


class TransformerLayer(nn.Module):
    """One post-norm layer."""

    def __init__(self, dim: int, *, num_heads: int, hidden_dim: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.multi_head_attention = SelfAttention(dim, num_heads=num_heads, dropout=dropout, eps=eps)
        self.feed_forward = FeedForward(dim, hidden_dim=hidden_dim, dropout=dropout, eps=eps)

    def forward(self, x_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Return float [B, L, D]."""
        return self.feed_forward(self.multi_head_attention(x_BLD, mask_B1LL))


class TransformerEncoder(nn.Module):
    """A stack of post-norm layers."""

    def __init__(
        self, dim: int, *, num_layers: int, num_heads: int, hidden_dim: int, dropout: float, eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            TransformerLayer(dim, num_heads=num_heads, hidden_dim=hidden_dim, dropout=dropout, eps=eps)
            for _ in range(num_layers)
        )

    def forward(self, x_BLD: Tensor, mask_B1LL: Tensor) -> Tensor:
        """Return float [B, L, D], the states after the last layer."""
        for layer in self.layer:
            x_BLD = layer(x_BLD, mask_B1LL)
        return x_BLD


def attention_mask(item_seq_BL: Tensor, *, bidirectional: bool) -> Tensor:
    """Return what is added to attention scores: float [B, 1, L, L] or, if bidirectional, [B, 1, 1, L].

    0 where a position may attend, MASKED where the other is padding (id 0) or, unless bidirectional, comes later.
    """
    allowed = (item_seq_BL != 0)[:, None, None, :]
    if not bidirectional:
        length = item_seq_BL.shape[1]
        earlier_LL = torch.ones(length, length, dtype=torch.bool, device=item_seq_BL.device).tril()
        allowed = allowed & earlier_LL
    return torch.where(allowed, 0.0, MASKED)


class Expert(nn.Module):
    """Dropout and a linear map without bias: the zero vector stays zero."""

    def __init__(self, text_dim: int, dim: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.lin = nn.Linear(text_dim, dim, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Return float [..., D] of a float [..., P]."""
        return self.lin(self.dropout(text))


class MoEAdaptor(nn.Module):
    """Text vectors to the width of the model: experts weighted by a softmax gate, noisy while training."""

    def __init__(self, text_dim: int, dim: int, *, num_experts: int, dropout: float) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Expert(text_dim, dim, dropout=dropout) for _ in range(num_experts))
        self.w_gate = nn.Parameter(torch.zeros(text_dim, num_experts))
        self.w_noise = nn.Parameter(torch.zeros(text_dim, num_experts))

    def forward(self, text: Tensor) -> Tensor:
        """Return float [..., D] of a float [..., P]."""
        logits = text @ self.w_gate
        if self.training:
            deviation = functional.softplus(text @ self.w_noise) + 1e-2
            logits = logits + torch.randn_like(logits) * deviation
        gates = logits.softmax(dim=-1)
        outputs = torch.stack([expert(text) for expert in self.experts], dim=-2)
        return (gates.unsqueeze(-1) * outputs).sum(dim=-2)


class Fusion(nn.Module):
    """State and preference to one vector: their sum, the state passing a linear map, and a correction from both."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.state = nn.Linear(dim, dim)
        self.linear_1 = nn.Linear(3 * dim, 2 * dim)
        self.linear_2 = nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        nn.init.eye_(self.state.weight)
        for linear in (self.state, self.linear_2):
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.linear_2.weight)

    def forward(self, state: Tensor, preference: Tensor) -> Tensor:
        """Return float [..., D], layer-normed; at first the LayerNorm of the sum."""
        both = torch.cat((state, preference, state * preference), dim=-1)
        correction = self.linear_2(functional.gelu(self.linear_1(both)))
        return self.norm(self.state(state) + preference + correction)


class Gate(nn.Module):
    """How far a preference is to be trusted: what is added to the logits of its query's ranking.

    At first little: a gate that trusts all from the start leaves its query to learn how to hedge, and never comes back.
    """

    first_trust = -2.0
    num_cosines = 4
    """own and fused query, own query and preference, fused query and preference, profile and preference."""

    def __init__(self, dim: int, *, hidden_dim: int, eps: float) -> None:
        super().__init__()
        num_features = 4 * dim + self.num_cosines + 1
        self.norm = nn.LayerNorm(num_features, eps=eps)
        self.linear_1 = nn.Linear(num_features, hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, 1)
        nn.init.zeros_(self.linear_2.weight)
        nn.init.constant_(self.linear_2.bias, self.first_trust)

    def forward(self, own: Tensor, fused: Tensor, preference: Tensor, profile: Tensor) -> Tensor:
        """Return float [...]; no gradient reaches the inputs.

        Args:
            own: unit query of the history, float [..., D].
            fused: unit query of history and preference, float [..., D].
            preference: adapted preference, float [..., D].
            profile: mean adapted text of the history's items, float [..., D].
        """
        own, fused, preference, profile = (vectors.detach() for vectors in (own, fused, preference, profile))
        norm = preference.norm(dim=-1, keepdim=True)
        preference, profile = functional.normalize(preference, dim=-1), functional.normalize(profile, dim=-1)
        scale = preference.shape[-1] ** 0.5
        pairs = ((own, fused), (own, preference), (fused, preference), (profile, preference))
        cosines = [scale * (left * right).sum(dim=-1, keepdim=True) for left, right in pairs]
        vectors = [scale * own, scale * fused, scale * preference, scale**2 * profile * preference]
        features = self.norm(torch.cat([*vectors, *cosines, norm], dim=-1))
        return self.linear_2(functional.gelu(self.linear_1(features))).squeeze(-1)
