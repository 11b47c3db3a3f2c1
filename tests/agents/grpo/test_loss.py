import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.grpo.loss import (
    NORMALIZATIONS,
    engine_correction,
    entropy,
    grpo_loss,
    k3_kl,
    logps_and_entropy,
    token_logps,
    token_weights,
)


def _numpy_loss(
    logps: np.ndarray,
    old: np.ndarray,
    advantages: np.ndarray,
    mask: np.ndarray,
    *,
    normalization: str,
    low: float,
    high: float,
    ref: np.ndarray,
    kl_coef: float,
    engine: np.ndarray,
) -> float:
    by_row = np.zeros(len(mask))
    for n, t in np.argwhere(mask):
        ratio = np.exp(logps[n, t] - old[n, t])
        clipped = min(max(ratio, 1 - low), 1 + high)
        difference = ref[n, t] - logps[n, t]
        k3 = np.exp(difference) - difference - 1
        correction = min(np.exp(old[n, t] - engine[n, t]), 2.0)
        surrogate = min(ratio * advantages[n, t], clipped * advantages[n, t])
        by_row[n] += -correction * surrogate + kl_coef * k3
    if normalization == "token":
        return float(by_row.sum() / mask.sum())
    if normalization == "constant":
        return float(by_row.sum() / (len(mask) * 10.0))
    counts = mask.sum(axis=1)
    return float(np.mean([total / count for total, count in zip(by_row, counts, strict=True) if count]))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.floats(0.05, 0.4),
    st.floats(0.05, 0.4),
    st.floats(0, 0.5),
    st.sampled_from(NORMALIZATIONS),
)
def test_loss_equals_numpy(seed: int, low: float, high: float, kl_coef: float, normalization: str) -> None:
    rng = np.random.default_rng(seed)
    logps, old, ref, engine = (rng.normal(-1, 0.5, (3, 5)) for _ in range(4))
    advantages, mask = rng.normal(size=(3, 5)), rng.random((3, 5)) < 0.6
    mask[0, 0] = True
    tensors = [torch.tensor(array, dtype=torch.float64) for array in (logps, old, advantages)]
    terms = grpo_loss(
        *tensors,
        token_weights(torch.tensor(mask), normalization, constant=10.0),
        clip_low=low,
        clip_high=high,
        ref_logps_NT=torch.tensor(ref),
        kl_coef=kl_coef,
        correction_NT=engine_correction(tensors[1], torch.tensor(engine), limit=2.0),
    )
    options = {"low": low, "high": high, "ref": ref, "kl_coef": kl_coef, "engine": engine}
    expected = _numpy_loss(logps, old, advantages, mask, normalization=normalization, **options)
    assert float(terms.loss) == pytest.approx(expected, abs=1e-6)


def _one(ratio: float, advantage: float) -> tuple[float, float, float]:
    logps = torch.tensor([[np.log(ratio)]], requires_grad=True)
    terms = grpo_loss(logps, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1))
    terms.loss.backward()
    assert logps.grad is not None
    return float(terms.loss.detach()), float(logps.grad), float(terms.clip_fraction)


def test_the_clip_is_asymmetric_by_hand() -> None:
    # Rising above 1.28 with A = 2 earns no more: -1.28 * 2; falling below 0.8 with A = -2 neither: 0.8 * 2.
    assert _one(1.5, 2.0) == pytest.approx((-2.56, 0.0, 1.0), abs=1e-5)
    assert _one(0.5, -2.0) == pytest.approx((1.6, 0.0, 1.0), abs=1e-5)
    # Within the clip, and on the pessimistic side outside of it, the gradient is -ratio * A.
    assert _one(1.25, 2.0) == pytest.approx((-2.5, -2.5, 0.0), abs=1e-5)
    assert _one(1.5, -2.0) == pytest.approx((3.0, 3.0, 0.0), abs=1e-5)
    assert _one(0.5, 2.0) == pytest.approx((-1.0, -1.0, 0.0), abs=1e-5)


def test_weights_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    np.testing.assert_allclose(token_weights(mask, "token").sum(dim=1), [3 / 4, 1 / 4])
    np.testing.assert_allclose(token_weights(mask, "sequence")[:, 0], [1 / 2 / 3, 1 / 2])
    np.testing.assert_allclose(token_weights(mask, "constant", constant=10)[:, 0], [1 / 20, 1 / 20])


def test_unknown_normalization_is_refused() -> None:
    with pytest.raises(ValueError, match="token, sequence, constant"):
        token_weights(torch.ones(1, 1, dtype=torch.bool), "tokens")


def test_accumulating_rows_equals_the_whole_batch() -> None:
    torch.manual_seed(0)
    mask = torch.rand(8, 6) < 0.5
    old, advantages = torch.randn(8, 6), torch.randn(8, 6)
    gradients = []
    for parts in (1, 8):
        logps = torch.full((8, 6), -1.0, requires_grad=True)
        weights = token_weights(mask, "token")
        for rows in torch.arange(8).chunk(parts):
            grpo_loss(logps[rows], old[rows], advantages[rows], weights[rows]).loss.backward()
        gradients.append(logps.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=0)


def test_padding_with_infinite_logps_changes_nothing() -> None:
    logps = torch.tensor([[-1.0, -torch.inf]], requires_grad=True)
    old = torch.tensor([[-1.0, 0.0]])
    grpo_loss(logps, old, torch.ones(1, 2), torch.tensor([[1.0, 0.0]])).loss.backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [[-1.0, 0.0]]


def test_kl_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(*(torch.zeros(1, 1) for _ in range(3)), torch.ones(1, 1), kl_coef=0.1)


@given(st.floats(-8, 0), st.floats(-8, 0))
def test_k3_is_never_negative(policy: float, reference: float) -> None:
    assert float(k3_kl(torch.tensor(policy), torch.tensor(reference))) >= -1e-6


def test_k3_estimates_the_kl() -> None:
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    exact = float((policy * np.log(policy / reference)).sum())
    k3 = k3_kl(torch.tensor(np.log(policy)), torch.tensor(np.log(reference))).numpy()
    assert float((policy * k3).sum()) == pytest.approx(exact)


def test_the_engine_correction_is_cut_off() -> None:
    found = engine_correction(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.0, -5.0, np.log(2)]))
    assert found.tolist() == pytest.approx([1.0, 2.0, 0.5])


def test_logps_and_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25]]]))
    assert float(token_logps(logits, torch.tensor([[1]]))) == pytest.approx(np.log(0.25))
    assert float(entropy(logits)) == pytest.approx(1.5 * np.log(2))


def test_one_softmax_gives_both() -> None:
    logits = torch.randn((5, 7), generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = torch.tensor([0, 6, 3, 3, 1])
    logps, entropies = logps_and_entropy(logits, ids)
    table = np.exp(logits.detach().numpy().astype(np.float64))
    table /= table.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(logps.detach(), np.log(table[np.arange(5), ids]), rtol=1e-5)
    np.testing.assert_allclose(entropies, -(table * np.log(table)).sum(axis=1), rtol=1e-5)
    assert not entropies.requires_grad
    impossible = torch.tensor([[0.0, -torch.inf, 0.0]])
    assert float(logps_and_entropy(impossible, torch.tensor([0]))[1]) == pytest.approx(np.log(2))
