"""A plain SASRec (arXiv:1808.09781) to compare with: item ids alone, all positions at once, full softmax.

Departs from the paper where it has been shown to help: cross-entropy over all items in place of one sampled negative
(arXiv:2309.07602), a learning rate that falls along a cosine. Validated after each epoch, the best epoch counts.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from trm.data.dataset import Dataset
from trm.metrics import ndcg_at_k
from trm.types import IntArray


@dataclass(frozen=True)
class SasrecConfig:
    """Standard settings; the same for every data set."""

    dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    max_history: int = 50
    dropout: float = 0.3
    learning_rate: float = 2e-3
    batch_size: int = 128
    """Users a step."""
    num_epochs: int = 20
    max_valid_users: int = 5_000


@dataclass(frozen=True)
class SasrecResult:
    """What a training came to."""

    epoch_s: float
    """The median epoch's time, without validation."""
    best_epoch: int
    ranks: IntArray
    """Of the test users' targets from 1 among all items, history left in."""


class Sasrec(nn.Module):
    """Item and position embeddings, a causal transformer, the product with all items."""

    def __init__(self, num_items: int, config: SasrecConfig) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, config.dim, padding_idx=0)
        self.positions = nn.Embedding(config.max_history, config.dim)
        self.norm, self.dropout = nn.LayerNorm(config.dim), nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.num_heads, 4 * config.dim, config.dropout, "gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, items_BL: Tensor) -> Tensor:
        """Return the state at each position, float32 [B, L, D]."""
        length = items_BL.shape[1]
        x_BLD = self.dropout(self.norm(self.items(items_BL) + self.positions.weight[:length]))
        mask_LL = torch.triu(torch.full((length, length), -torch.inf), diagonal=1)
        return self.encoder(x_BLD, mask=mask_LL)  # type: ignore[no-any-return]


def train_sasrec(
    dataset: Dataset, config: SasrecConfig, *, test_users: Sequence[int] | None = None, seed: int = 0
) -> SasrecResult:
    """Return time and test ranks of a training; of all users if none are named."""
    torch.manual_seed(seed)
    splits = dataset.splits
    sequences = [splits.train_sequence(user) for user in range(splits.num_users)]
    lengths = np.array([len(sequence) for sequence in sequences])
    users = np.flatnonzero(lengths > 1)
    rng = np.random.default_rng(seed)
    valid = rng.permutation(splits.num_users)[: config.max_valid_users]
    model = Sasrec(dataset.catalog.num_items, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    best, best_epoch, weights, seconds = -1.0, 0, copy.deepcopy(model.state_dict()), []
    for epoch in tqdm(range(config.num_epochs), desc=f"a plain SASRec on {dataset.name}"):
        started = time.perf_counter()
        model.train()
        batches = _batches(rng.permutation(users), lengths, config.batch_size, rng)
        for done, batch in enumerate(batches, start=1):
            progress = (epoch + done / len(batches)) / config.num_epochs
            for group in optimizer.param_groups:
                group["lr"] = (
                    config.learning_rate * min(1.0, 20 * progress) * 0.5 * (1.02 + math.cos(math.pi * progress))
                )
            _step(model, optimizer, [sequences[user][-config.max_history - 1 :] for user in batch])
        seconds.append(time.perf_counter() - started)
        score = float(ndcg_at_k(_ranks(model, dataset, valid, "valid", config), 10).mean())
        if score > best:
            best, best_epoch, weights = score, epoch + 1, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    asked = np.arange(splits.num_users) if test_users is None else np.array(test_users)
    return SasrecResult(float(np.median(seconds)), best_epoch, _ranks(model, dataset, asked, "test", config))


def _batches(users: IntArray, lengths: IntArray, size: int, rng: np.random.Generator) -> list[IntArray]:
    """Return the users in batches of about one length, in random order: padding costs as much as items do."""
    by_length = users[np.argsort(lengths[users], kind="stable")]
    batches = np.array_split(by_length, math.ceil(len(users) / size))
    return [batches[place] for place in rng.permutation(len(batches))]


def _step(model: Sasrec, optimizer: torch.optim.Optimizer, sequences: list[IntArray]) -> None:
    inputs_BL, targets_BL = (
        _padded([sequence[part] for sequence in sequences]) for part in (slice(-1), slice(1, None))
    )
    present_BL = targets_BL > 0
    logits_MN = model(inputs_BL)[present_BL] @ model.items.weight[1:].T
    loss = functional.cross_entropy(logits_MN, targets_BL[present_BL] - 1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def _ranks(model: Sasrec, dataset: Dataset, users: IntArray, split: str, config: SasrecConfig) -> IntArray:
    """Return each user's target's rank from 1 among all items."""
    model.eval()
    ranks = []
    for start in range(0, len(users), 256):
        examples = [dataset.splits.example(split, int(user)) for user in users[start : start + 256]]  # type: ignore[arg-type]
        histories = [np.array(example.history[-config.max_history :]) for example in examples]
        last_B = torch.tensor([len(history) - 1 for history in histories])
        states_BD = model(_padded(histories))[torch.arange(len(examples)), last_B]
        scores_BN = states_BD @ model.items.weight[1:].T
        targets_B1 = torch.tensor([[example.target - 1] for example in examples])
        ranks.append(1 + (scores_BN > scores_BN.gather(1, targets_B1)).sum(dim=1))
    return torch.cat(ranks).numpy()


def _padded(sequences: list[IntArray]) -> Tensor:
    """Return the sequences as int64 [B, L], padded with 0 on the right."""
    padded = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(padded)
