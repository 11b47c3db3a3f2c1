"""Chronological histories and their leave-one-out split, by hand."""

import numpy as np
import pytest

from trm.data.interactions import Interactions
from trm.data.splits import Example, LeaveOneOut


def test_histories_are_chronological_and_ties_keep_their_order(interactions):
    assert interactions.user_ids == ("u", "v", "w")
    assert interactions.history(0).tolist() == [3, 2, 1, 4]  # 2 before 1: both at 3, in the order given
    assert interactions.history(1).tolist() == [2, 1]
    assert interactions.history(2).tolist() == [3, 1, 2]
    assert interactions.num_interactions == 9


def test_many_ties_keep_the_order_of_the_file():
    items = np.random.default_rng(0).permutation(500) + 1
    zeros = np.zeros(500, dtype=np.int64)
    made = Interactions.from_events(["u"], users=zeros, item_ids=items, timestamps=zeros)
    assert made.history(0).tolist() == items.tolist()


def test_users_without_events_are_left_out():
    ones = np.ones(2, dtype=np.int64)
    made = Interactions.from_events(["none", "u", "nor"], users=ones, item_ids=ones, timestamps=ones)
    assert made.user_ids == ("u",)
    assert made.history(0).tolist() == [1, 1]


def test_popularity_counts_every_event(interactions):
    assert interactions.popularity(5).tolist() == [0, 3, 3, 2, 1, 0]
    with pytest.raises(ValueError, match="up to 3, got 4"):
        interactions.popularity(3)


def test_histories_cannot_be_written(interactions):
    with pytest.raises(ValueError, match="read-only"):
        interactions.history(0)[0] = 1


@pytest.mark.parametrize(
    ("offsets", "items", "message"),
    [
        ([0, 2], [1], "rise from 0 to 1"),
        ([0, 1, 1], [1], "2 offsets"),
        ([0, 1], [0], "from 1, got 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(offsets, items, message):
    with pytest.raises(ValueError, match=message):
        Interactions(("u",), np.array(offsets), np.array(items), np.zeros(len(items), dtype=np.int64))


def test_each_split_holds_out_one_item(interactions):
    splits = LeaveOneOut(interactions)
    assert splits.user_ids == ("u", "w")  # v has two interactions
    assert splits.example("test", 0) == Example(0, "u", (3, 2, 1), 4)
    assert splits.example("valid", 0) == Example(0, "u", (3, 2), 1)
    assert splits.example("train", 0) == Example(0, "u", (3,), 2)
    assert splits.example("train", 1) == Example(1, "w", (), 3)


def test_training_sees_neither_held_out_item(interactions):
    splits = LeaveOneOut(interactions, num_items=4)
    assert splits.train_sequence(0).tolist() == [3, 2]
    assert splits.train_sequence(1).tolist() == [3]
    assert splits.train_counts().tolist() == [0, 0, 1, 2, 0]


def test_the_trend_is_the_share_of_the_latest_training_choices():
    sequences = [[9, 9, 1, 2, 3, 4, 5, 8, 8], [5, 1, 9]]  # the last two are held out, and of the rest five count
    items = np.concatenate(sequences)
    users = np.repeat([0, 1], [len(sequence) for sequence in sequences])
    made = Interactions.from_events(["u", "v"], users=users, item_ids=items, timestamps=np.arange(len(items)))
    trend = LeaveOneOut(made).trend
    assert trend == pytest.approx(1000 / 6 * np.array([0, 1, 1, 1, 1, 2, 0, 0, 0, 0]))
    assert not trend.flags.writeable


def test_users_are_found_by_id(interactions):
    splits = LeaveOneOut(interactions)
    assert splits.user_index("w") == 1
    with pytest.raises(KeyError, match="'v'"):
        splits.user_index("v")


def test_unknown_splits_and_users_are_refused(interactions):
    splits = LeaveOneOut(interactions)
    with pytest.raises(ValueError, match="'tset'"):
        splits.example("tset", 0)
    for user in (-1, 2):
        with pytest.raises(IndexError, match=rf"0\.\.1, got {user}"):
            splits.example("test", user)


def test_a_data_set_without_long_enough_histories_is_refused():
    ones = np.ones(2, dtype=np.int64)
    short = Interactions.from_events(["u"], users=ones - 1, item_ids=ones, timestamps=ones)
    with pytest.raises(ValueError, match="at least 3 interactions"):
        LeaveOneOut(short)
