import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.grpo.batch import build_batch, micro_batches
from agents.grpo.types import Rollout, RolloutGroup, TokenTrace


def _trace() -> TokenTrace:
    trace = TokenTrace((5, 6))
    trace.append_turn([7, 8], [-0.1, -0.2])
    trace.append_observation([9])
    trace.append_turn([4], [-0.3])
    return trace


def test_a_trace_by_hand() -> None:
    trace = _trace()
    assert trace.context == [5, 6, 7, 8, 9, 4]
    assert trace.loss_mask == [True, True, False, True]
    assert trace.turn_of == [0, 0, 0, 1]
    assert trace.logps == [-0.1, -0.2, 0.0, -0.3]


def test_a_turn_needs_one_logp_a_token() -> None:
    with pytest.raises(ValueError, match="2 ids and 1 logps"):
        TokenTrace((1,)).append_turn([1, 2], [0.0])


def test_a_batch_by_hand() -> None:
    short = TokenTrace((3,))
    short.append_turn([2], [-1.0])
    batch = build_batch([_trace(), short], [np.array([0.5, -2.0]), np.array([7.0])], pad_id=0)
    assert batch.ids_NT.tolist() == [[5, 6, 7, 8, 9, 4], [3, 2, 0, 0, 0, 0]]
    assert batch.mask_NT.int().tolist() == [[0, 0, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0]]
    assert batch.advantages_NT.tolist() == [[0, 0, 0.5, 0.5, 0, -2.0], [0, 7.0, 0, 0, 0, 0]]
    assert batch.num_tokens == 8


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 100))
def test_micro_batches_hold_every_row_once_within_the_limit(lengths: list[int], limit: int) -> None:
    parts = list(micro_batches(lengths, max_tokens=limit))
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= limit


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 100))
def test_packed_micro_batches_hold_neighbours_within_the_limit(lengths: list[int], limit: int) -> None:
    parts = list(micro_batches(lengths, max_tokens=limit, padded=False))
    assert [row for part in parts for row in part] == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in part) for part in parts]
    assert all(len(part) == 1 or total <= limit for part, total in zip(parts, sums, strict=True))
    # None is closed before it is full.
    assert all(total + lengths[part[-1] + 1] > limit for part, total in zip(parts[:-1], sums, strict=False))


def test_a_group_without_variance_has_no_signal() -> None:
    same = [Rollout(_trace(), (0.5, 1.0)) for _ in range(3)]
    assert not RolloutGroup(0, tuple(same)).has_signal
    assert RolloutGroup(0, (*same, Rollout(_trace(), (1.0, 0.5)))).has_signal
    assert RolloutGroup(0, tuple(same)).rewards == (1.5, 1.5, 1.5)
