"""How the TRM is built and trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from trm.training_data import PreferenceMix


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the TRM is built and trained."""

    seed: int = 0
    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    hidden_dim: int = 256
    max_history: int = 10
    dropout: float = 0.3
    text_dropout: float = 0.2
    temperature: float = 0.07
    mix: PreferenceMix = field(default_factory=PreferenceMix)
    learning_rate: float = 4e-3
    """The peak; see warmup."""
    gate_learning_rate: float = 1.2e-3
    """The same of the gate, which saturates at the rate of the rest."""
    weight_decay: float = 0.01
    hindsight: float = 0.1
    """Weight of the loss that tells the gate which ranking would have been the better one."""
    warmup: float = 0.05
    """Share of max_epochs over which the learning rate rises; after it the rate falls along a cosine."""
    batch_size: int = 64
    """Windows a step; fewer where an epoch would have too few steps, or the catalogue is huge."""
    max_positions: int = 200_000
    """An epoch sees about this many positions at most."""
    max_epochs: int = 16
    patience: int = 8
    """Epochs without a better validation score after which training stops."""
    max_valid_users: int = 1_000
    """Validation asks for each of them once a kind of preference."""
