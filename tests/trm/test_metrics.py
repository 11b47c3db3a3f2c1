"""Metrics against hand arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm.metrics import bootstrap_interval, mrr, ndcg_at_k, recall_at_k, standard_error

RANKS = np.array([1, 2, 3, 10, 11, 0])


def test_recall_counts_ranks_up_to_k():
    assert recall_at_k(RANKS, 1).tolist() == [1, 0, 0, 0, 0, 0]
    assert recall_at_k(RANKS, 10).tolist() == [1, 1, 1, 1, 0, 0]


def test_ndcg_is_the_discount_of_the_rank():
    expected = [1 / math.log2(2), 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(11), 0, 0]
    assert ndcg_at_k(RANKS, 10).tolist() == pytest.approx(expected)


def test_mrr_is_the_reciprocal_of_the_rank():
    assert mrr(RANKS).tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 1 / 11, 0])


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 20))
def test_metrics_lie_in_the_unit_interval_and_are_ordered(ranks, k):
    recall, ndcg = recall_at_k(ranks, k), ndcg_at_k(ranks, k)
    assert ((recall == 0) | (recall == 1)).all()
    assert ((ndcg >= 0) & (ndcg <= recall)).all()
    assert (mrr(ranks) <= 1).all()
    assert (recall <= recall_at_k(ranks, k + 1)).all()


@pytest.mark.parametrize("ranks", [[-1], [[1, 2]]])
def test_impossible_ranks_are_refused(ranks):
    with pytest.raises(ValueError, match="expected ranks"):
        recall_at_k(ranks, 5)


def test_ranks_that_are_not_whole_are_refused():
    with pytest.raises(TypeError, match="integer ranks"):
        mrr([1.0])


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="k of at least 1, got 0"):
        ndcg_at_k([1], 0)


def test_standard_error_of_four_values():
    # mean 0.5, squared deviations 4 * 0.25, divided by 3, by 4 under the root.
    assert standard_error([0, 1, 0, 1]) == pytest.approx(math.sqrt(1 / 3 / 4))
    assert math.isnan(standard_error([0.5]))


def test_bootstrap_interval_is_near_the_normal_one():
    values = np.array([1.0] * 300 + [0.0] * 700)
    low, high = bootstrap_interval(values)
    half = 1.96 * standard_error(values)
    assert low == pytest.approx(0.3 - half, abs=0.003)
    assert high == pytest.approx(0.3 + half, abs=0.003)


def test_bootstrap_depends_on_the_seed_alone():
    values = np.linspace(0, 1, 37) ** 2
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_bootstrap_in_chunks_equals_bootstrap_at_once(monkeypatch):
    values = np.linspace(0, 1, 50)
    at_once = bootstrap_interval(values, num_resamples=100)
    monkeypatch.setattr("trm.metrics._CHUNK_VALUES", 120)
    assert bootstrap_interval(values, num_resamples=100) == at_once


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)


@pytest.mark.parametrize("measure", [standard_error, bootstrap_interval])
def test_no_values_are_refused(measure):
    with pytest.raises(ValueError, match="at least one value"):
        measure([])
