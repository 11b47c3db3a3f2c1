from __future__ import annotations

import numpy as np
import pytest
import torch

from trm.model import SteerConfig, SteerTRM
from trm.types import FloatArray

NUM_ITEMS, TEXT_DIM = 30, 16


def unit_texts(seed: int = 0) -> FloatArray:
    vectors = np.random.default_rng(seed).normal(size=(NUM_ITEMS + 1, TEXT_DIM)).astype(np.float32)
    vectors[0] = 0
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def random_model(seed: int = 0, **settings: float) -> SteerTRM:
    torch.manual_seed(seed)
    model = SteerTRM(
        SteerConfig(num_items=NUM_ITEMS, text_dim=TEXT_DIM, dim=8, hidden_dim=16, **settings), unit_texts()
    )  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
            if name == "item_embedding.weight":
                parameter[0] = 0
    return model.eval()


@torch.no_grad()
def test_no_position_sees_what_comes_later():
    model = random_model()
    sequence = torch.tensor([[3, 1, 4, 1, 5, 9]])
    changed = torch.tensor([[3, 1, 4, 2, 6, 7]])
    table = model.item_table()
    before, after = model.states(sequence, table), model.states(changed, table)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_on_the_right_changes_nothing():
    model = random_model()
    table = model.item_table()
    short = model.states(torch.tensor([[3, 1, 4]]), table)
    padded = model.states(torch.tensor([[3, 1, 4, 0, 0]]), table)
    torch.testing.assert_close(short, padded[:, :3])


@torch.no_grad()
def test_an_empty_preference_adds_nothing_and_logits_are_bounded_cosines():
    model = random_model()
    table = model.item_table()
    states = model.states(torch.tensor([[3, 1, 4]]), table)[:, -1]
    assert (model.adapt(torch.zeros(1, TEXT_DIM)) == 0).all()
    logits = model.logits(states, torch.zeros_like(states), table)
    assert logits.shape == (1, NUM_ITEMS)
    assert logits.abs().max() <= 1 / model.config.temperature + 1e-4


def test_the_padding_row_stays_zero_in_training():
    model = random_model().train()
    table = model.item_table()
    states = model.states(torch.tensor([[3, 1, 0]]), table)[0, :2]
    model.logits(states, torch.zeros(2, 8), table).sum().backward()
    gradient = model.item_embedding.weight.grad
    assert gradient is not None
    assert (gradient[0] == 0).all()
    assert (gradient[3] != 0).any()


def test_wrong_text_vectors_are_refused():
    with pytest.raises(ValueError, match=r"expected item_text_vectors of shape \(31, 12\)"):
        SteerTRM(SteerConfig(num_items=NUM_ITEMS, text_dim=12), unit_texts())


def test_export_leaves_the_mode_as_it_was():
    model = random_model().train()
    model.export(encoder_name="x")
    assert model.training
