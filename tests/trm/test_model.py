from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trm.layers import Fusion, Gate
from trm.model import SteerConfig, SteerTRM, mixture_log_prob, profiles_of
from trm.types import FloatArray

NUM_ITEMS, TEXT_DIM = 30, 16


def unit_texts(seed: int = 0) -> FloatArray:
    vectors = np.random.default_rng(seed).normal(size=(NUM_ITEMS + 1, TEXT_DIM)).astype(np.float32)
    vectors[0] = 0
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def random_model(seed: int = 0, **settings: float) -> SteerTRM:
    torch.manual_seed(seed)
    model = SteerTRM(
        SteerConfig(num_items=NUM_ITEMS, text_dim=TEXT_DIM, dim=8, hidden_dim=16, gate_dim=12, **settings),  # type: ignore[arg-type]
        unit_texts(),
    )
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
def test_an_empty_preference_is_zeros_and_logits_are_bounded_cosines():
    model = random_model()
    table = model.item_table()
    states = model.states(torch.tensor([[3, 1, 4]]), table)[:, -1]
    assert (model.adapt(torch.zeros(1, TEXT_DIM)) == 0).all()
    own = model.own_query(states)
    logits = model.own_logits(own, table)
    assert logits.shape == (1, NUM_ITEMS)
    assert logits.abs().max() <= 1 / model.config.temperature + 1e-4
    model.log_temperature.fill_(math.log(2 * model.config.temperature))
    torch.testing.assert_close(model.preference_logits(own, table), logits / 2)


@torch.no_grad()
def test_a_new_fusion_is_the_sum():
    states, preferences = torch.randn(4, 8), torch.randn(4, 8)
    expected = torch.nn.functional.layer_norm(states + preferences, (8,))
    torch.testing.assert_close(Fusion(8, eps=1e-5)(states, preferences), expected)


@torch.no_grad()
def test_a_profile_is_the_mean_text_of_the_prefix():
    texts = torch.arange(12.0).reshape(4, 3)
    profiles = profiles_of(torch.tensor([[1, 3, 0], [2, 2, 2]]), texts)
    torch.testing.assert_close(profiles[0, :2], torch.stack([texts[1], (texts[1] + texts[3]) / 2]))
    torch.testing.assert_close(profiles[1], texts[[2, 2, 2]])


def test_a_mixture_by_hand():
    own, preference = torch.log(torch.tensor([0.2, 0.1])), torch.log(torch.tensor([0.6, 0.5]))
    mixed = mixture_log_prob(own, preference, log_odds_M=torch.tensor([0.0, math.log(3.0)]))
    torch.testing.assert_close(mixed.exp(), torch.tensor([(0.2 + 0.6) / 2, 0.25 * 0.1 + 0.75 * 0.5]))
    never = mixture_log_prob(own, preference, log_odds_M=torch.tensor([-80.0, -80.0]))
    torch.testing.assert_close(never, own)


def test_a_new_gate_trusts_little_whatever_it_is_told_and_sends_no_gradient_back():
    gate = Gate(8, hidden_dim=12, eps=1e-8)
    vectors = [torch.randn(5, 8, requires_grad=True) for _ in range(4)]
    odds = gate(*vectors)
    assert (odds == Gate.first_trust).all()
    torch.nn.init.ones_(gate.linear_2.weight)
    gate(*vectors).sum().backward()
    assert all(vector.grad is None for vector in vectors)
    assert gate.linear_1.weight.grad is not None


def test_the_padding_row_stays_zero_in_training():
    model = random_model().train()
    table = model.item_table()
    states = model.states(torch.tensor([[3, 1, 0]]), table)[0, :2]
    model.own_logits(model.own_query(states), table).sum().backward()
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
