import numpy as np
import pytest

from agents.grpo.sft import _epoch_batches

LENGTHS = np.array([600, 900] * 24)
"""Dialogues of one search and of two."""


@pytest.mark.parametrize("by_length", [True, False])
def test_every_dialogue_is_learned_once_an_epoch(by_length: bool) -> None:
    batches = _epoch_batches(LENGTHS, 5, [0], by_length=by_length)
    assert sorted(row for batch in batches for row in batch) == list(range(48))
    assert sorted(map(len, batches)) == [3] + [5] * 9
    assert batches == _epoch_batches(LENGTHS, 5, [0], by_length=by_length)
    assert batches != _epoch_batches(LENGTHS, 5, [1], by_length=by_length)


def test_updates_are_of_one_kind_by_length_and_of_both_otherwise() -> None:
    def num_mixed(by_length: bool) -> int:
        batches = _epoch_batches(LENGTHS, 4, [0], by_length=by_length)
        return sum(len(set(LENGTHS[batch])) > 1 for batch in batches)

    assert num_mixed(True) == 0
    assert num_mixed(False) >= 8
