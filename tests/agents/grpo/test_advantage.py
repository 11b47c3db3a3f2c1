import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.grpo.advantage import (
    ADVANTAGES,
    group_advantages,
    group_relative,
    leave_one_out,
    per_turn,
    returns_to_go,
)

REWARDS = st.lists(st.floats(-10, 10), min_size=2, max_size=8)
TURN_REWARDS = st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=2, max_size=6)


def test_group_mean_by_hand() -> None:
    # mean (1 + 2 + 6) / 3 = 3
    np.testing.assert_allclose(group_relative(np.array([1.0, 2.0, 6.0])), [-2.0, -1.0, 3.0])


def test_grpo_by_hand() -> None:
    # deviations -2, -1, 3; variance (4 + 1 + 9) / 2 = 7
    expected = np.array([-2.0, -1.0, 3.0]) / np.sqrt(7.0)
    np.testing.assert_allclose(group_relative(np.array([1.0, 2.0, 6.0]), std_normalize=True), expected, rtol=1e-5)


def test_leave_one_out_by_hand() -> None:
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    np.testing.assert_allclose(leave_one_out(np.array([1.0, 2.0, 6.0])), [-3.0, -1.5, 4.5])


def test_returns_to_go_by_hand() -> None:
    np.testing.assert_allclose(returns_to_go([1.0, 0.0, 4.0]), [5.0, 4.0, 4.0])


def test_per_turn_by_hand() -> None:
    # returns-to-go: A [3, 2], B [5], C [4, 4, 1]
    advantages = per_turn([[1.0, 2.0], [5.0], [0.0, 3.0, 1.0]])
    np.testing.assert_allclose(advantages[0], [3 - (5 + 4) / 2, 2 - 4])
    np.testing.assert_allclose(advantages[1], [5 - (3 + 4) / 2])
    # Nobody else plays the third turn: the others' last returns-to-go, 2 and 5, stand in.
    np.testing.assert_allclose(advantages[2], [4 - (3 + 5) / 2, 4 - 2, 1 - (2 + 5) / 2])


def test_per_turn_equals_leave_one_out_on_single_turns() -> None:
    rewards = [1.0, 2.0, 6.0, -1.0]
    found = np.concatenate(per_turn([[reward] for reward in rewards]))
    np.testing.assert_allclose(found, leave_one_out(np.array(rewards)))


@given(REWARDS)
def test_group_relative_sums_to_zero(rewards: list[float]) -> None:
    assert abs(group_relative(np.array(rewards)).sum()) < 1e-9


@given(TURN_REWARDS, st.sampled_from(ADVANTAGES))
def test_one_number_a_turn_and_order_of_members_does_not_matter(rewards: list[list[float]], name: str) -> None:
    found = group_advantages(name, rewards)
    assert [len(part) for part in found] == [len(part) for part in rewards]
    backwards = group_advantages(name, rewards[::-1])[::-1]
    for one, other in zip(found, backwards, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@given(TURN_REWARDS, st.integers(0, 5))
def test_per_turn_baseline_does_not_depend_on_the_member(rewards: list[list[float]], member: int) -> None:
    member %= len(rewards)
    shifted = [list(part) for part in rewards]
    shifted[member][-1] += 3.0
    before, after = per_turn(rewards)[member], per_turn(shifted)[member]
    # Its own return-to-go rises by 3 at every turn, the baseline stays.
    np.testing.assert_allclose(after - before, 3.0, atol=1e-9)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_of_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(name, [[1.0]])


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(ValueError, match="did you mean 'per_turn'"):
        group_advantages("per_trun", [[1.0], [2.0]])


# A two-turn bandit with a known gradient. At turn 0 the policy goes on with p = sigmoid(theta_0), or stops and
# is paid 0. Going on is paid 1; at turn 1 it then picks "good" (paid 1) with probability q = sigmoid(theta_1), else 0.
# J = p (1 + q), so dJ/dtheta_0 = p (1 - p) (1 + q) and dJ/dtheta_1 = p q (1 - q).
P, Q = 0.4, 0.5
GRADIENT = np.array([P * (1 - P) * (1 + Q), P * Q * (1 - Q)])
GROUP_SIZE = 3


def _plain_per_turn_mean(turn_rewards: list[list[float]]) -> list[np.ndarray]:
    togo = [returns_to_go(rewards) for rewards in turn_rewards]
    width = max(map(len, togo))
    means = [np.mean([part[turn] for part in togo if len(part) > turn]) for turn in range(width)]
    return [part - means[: len(part)] for part in togo]


def _bandit_gradients(estimate: object, *, num_groups: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    goes_on = rng.random((num_groups, GROUP_SIZE)) < P
    is_good = rng.random((num_groups, GROUP_SIZE)) < Q
    # There are few different groups: each is computed once.
    cache: dict[bytes, np.ndarray] = {}
    total = []
    for on, good in zip(goes_on, is_good & goes_on, strict=True):
        key = on.tobytes() + good.tobytes()
        if key not in cache:
            rewards = [[1.0, float(g)] if o else [0.0] for o, g in zip(on, good, strict=True)]
            gradient = np.zeros(2)
            for o, g, advantage in zip(on, good, estimate(rewards), strict=True):  # type: ignore[operator]
                gradient[0] += advantage[0] * (float(o) - P)
                if o:
                    gradient[1] += advantage[1] * (float(g) - Q)
            cache[key] = gradient / GROUP_SIZE
        total.append(cache[key])
    return np.array(total)


def test_per_turn_is_unbiased_and_the_plain_mean_is_not() -> None:
    num_groups = 200_000
    ours = _bandit_gradients(per_turn, num_groups=num_groups)
    plain = _bandit_gradients(_plain_per_turn_mean, num_groups=num_groups)
    error = ours.std(axis=0) / np.sqrt(num_groups)
    assert (np.abs(ours.mean(axis=0) - GRADIENT) < 4 * error).all()
    plain_error = plain.std(axis=0) / np.sqrt(num_groups)
    # The member stands in its own baseline with weight 1 / (number alive): 1/3 of the first gradient is lost, and more
    # of the second, whose turn is often played alone.
    assert (np.abs(plain.mean(axis=0) - GRADIENT) > 20 * plain_error).all()
    # Not even the direction is right: the two parts shrink by different factors.
    shrinkage = plain.mean(axis=0) / GRADIENT
    assert shrinkage[0] == pytest.approx(2 / 3, abs=0.02)
    assert shrinkage[1] < 0.55
