"""`steer`, the default TRM: a causal transformer over id + text, and a second query that listens to a preference.

A user has one query of the history alone and one of history and preference. What the model predicts is a mixture of the
two rankings, weighed by a gate that reads how much the preference says and how well it suits the history; so a vague or
a wrong preference costs little, and without one the history's ranking stands as it is. At inference an item's score
is the better of its two scores, so that the best items of both queries hold the best of all.

It departs from the published `addret` where that makes it steer: text vectors at the scale of the rest, item vectors
with text in them, history items as plain sums instead of the Fourier fusion, the mixture instead of one sum. The
preference passes the same adaptor as the items' texts, which has no bias.

Shapes: B batch, L positions, D width, P text dimension, N items (0 is padding), M positions with a target.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trm.frozen import FrozenTRM
from trm.layers import Fusion, Gate, TransformerEncoder, attention_mask
from trm.types import FloatArray

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """The architecture."""

    num_items: int
    """Without padding."""
    text_dim: int
    """The text encoder's dimension."""
    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    hidden_dim: int = 256
    gate_dim: int = 64
    """The hidden width of the gate."""
    max_history: int = 10
    """Older items than this are not looked at."""
    dropout: float = 0.3
    text_dropout: float = 0.2
    """Of the text vectors' entries, before the adaptor."""
    text_scale: float = 10.0
    """What unit text vectors are multiplied by; at unit norm they drown in the id embeddings."""
    temperature: float = 0.07
    """Of the history's query; that of the query with a preference starts here and is learned."""
    caution: float = 0.5
    """Taken from the trust at inference: the gate has met its training's wordings, people have others. In logits."""
    layer_norm_eps: float = 1e-8


class SteerTRM(nn.Module):
    """Scores items for a history and a preference by cosines of two queries with the items' id + adapted text."""

    item_texts_NP: Tensor

    def __init__(self, config: SteerConfig, item_text_vectors: FloatArray) -> None:
        """Build the model with random weights.

        Args:
            config: the architecture.
            item_text_vectors: float32 [num_items + 1, text_dim], unit rows, row 0 zeros.

        Raises:
            ValueError: if item_text_vectors has another shape.
        """
        super().__init__()
        expected = (config.num_items + 1, config.text_dim)
        if item_text_vectors.shape != expected:
            raise ValueError(f"expected item_text_vectors of shape {expected}, got {item_text_vectors.shape}")
        self.config = config
        self.register_buffer("item_texts_NP", torch.from_numpy(item_text_vectors.astype(np.float32)), persistent=False)
        self.item_embedding = nn.Embedding(config.num_items + 1, config.dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_history, config.dim)
        self.adaptor = nn.Linear(config.text_dim, config.dim, bias=False)
        self.text_dropout = nn.Dropout(config.text_dropout)
        self.input_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = TransformerEncoder(
            config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden_dim=config.hidden_dim,
            dropout=config.dropout,
            eps=config.layer_norm_eps,
        )
        self.output_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.apply(_init_weights)
        self.fusion = Fusion(config.dim, eps=config.layer_norm_eps)
        self.gate = Gate(config.dim, hidden_dim=config.gate_dim, eps=config.layer_norm_eps)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))

    def adapt(self, texts: Tensor) -> Tensor:
        """Return float [..., D] of unit text vectors float [..., P]; zero rows stay zero."""
        return self.adaptor(self.text_dropout(texts * self.config.text_scale))

    def item_texts(self) -> Tensor:
        """Return the adapted text of every item, float [N + 1, D], row 0 zeros; it changes with dropout."""
        return self.adapt(self.item_texts_NP)

    def item_table(self, item_texts_ND: Tensor | None = None) -> Tensor:
        """Return id embedding + adapted text of every item, float [N + 1, D], row 0 zeros.

        Args:
            item_texts_ND: item_texts(), if at hand.
        """
        return self.item_embedding.weight + (self.item_texts() if item_texts_ND is None else item_texts_ND)

    def states(self, item_seq_BL: Tensor, table_ND: Tensor) -> Tensor:
        """Return the state after each position, float [B, L, D].

        Args:
            item_seq_BL: int [B, L] with L <= max_history, oldest first, right-padded with 0.
            table_ND: item_table().
        """
        x_BLD = table_ND[item_seq_BL] + self.position_embedding.weight[: item_seq_BL.shape[1]]
        x_BLD = self.dropout(self.input_norm(x_BLD))
        return self.encoder(x_BLD, attention_mask(item_seq_BL, bidirectional=False))

    def own_query(self, states: Tensor) -> Tensor:
        """Return the history's own unit query vectors, float [..., D], of states float [..., D]."""
        return functional.normalize(self.output_norm(states), dim=-1)

    def preference_query(self, states: Tensor, preferences: Tensor) -> Tensor:
        """Return unit query vectors of states and adapted preferences, float [..., D] each; none of them empty."""
        return functional.normalize(self.fusion(states, preferences), dim=-1)

    def own_logits(self, own: Tensor, table_ND: Tensor) -> Tensor:
        """Return cosine / temperature of the history's queries with the items 1..N, float [..., N]."""
        return own @ functional.normalize(table_ND[1:], dim=-1).T / self.config.temperature

    def preference_logits(self, fused: Tensor, table_ND: Tensor) -> Tensor:
        """Return cosine / learned temperature of queries with a preference with the items 1..N, float [..., N]."""
        return fused @ functional.normalize(table_ND[1:], dim=-1).T / self.log_temperature.exp()

    @torch.no_grad()
    def export(self, *, encoder_name: str) -> FrozenTRM:
        """Return the weights for inference in numpy, everything that no longer changes computed once."""
        was_training = self.training
        self.eval()
        texts_ND = self.item_texts()
        table_ND = self.item_table(texts_ND)
        ids_ND = functional.normalize(self.item_embedding.weight, dim=-1)
        self.train(was_training)
        weights = {
            name: tensor.detach().cpu().numpy().copy()
            for name, tensor in self.state_dict().items()
            if not name.startswith(("item_embedding", "adaptor", "log_temperature"))
        }
        weights["gate.linear_2.bias"] -= self.config.caution
        settings = {"preference_temperature": float(self.log_temperature.exp()), "encoder_name": encoder_name}
        return FrozenTRM(
            config={**asdict(self.config), **settings},
            arrays={
                **weights,
                "adaptor": (self.adaptor.weight.detach().T * self.config.text_scale).cpu().numpy(),
                "item_table": table_ND.cpu().numpy().copy(),
                "item_profiles": texts_ND.cpu().numpy().copy(),
                "item_id_vectors": ids_ND.cpu().numpy().copy(),
                "item_text_vectors": self.item_texts_NP.cpu().numpy().copy(),
            },
        )


def profiles_of(item_seq_BL: Tensor, item_texts_ND: Tensor) -> Tensor:
    """Return the mean adapted text of each position's item and all before it, float [B, L, D].

    Args:
        item_seq_BL: int [B, L], right-padded with 0; what stands at padding means nothing.
        item_texts_ND: SteerTRM.item_texts().
    """
    counts_L1 = torch.arange(1, item_seq_BL.shape[1] + 1, device=item_seq_BL.device)[:, None]
    return item_texts_ND[item_seq_BL].cumsum(dim=1) / counts_L1


def mixture_log_prob(own_M: Tensor, preference_M: Tensor, *, log_odds_M: Tensor) -> Tensor:
    """Return log((1 - w) p_own + w p_preference) with w = sigmoid(log_odds), float [M].

    Args:
        own_M: log-probability of each target by the history's query.
        preference_M: the same by the query with a preference.
        log_odds_M: of the second against the first.
    """
    return torch.logaddexp(functional.logsigmoid(-log_odds_M) + own_M, functional.logsigmoid(log_odds_M) + preference_M)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
