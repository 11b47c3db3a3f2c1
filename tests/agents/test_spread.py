import dataclasses
import math
from collections.abc import Mapping

import pytest

from agents.compare import paired_difference
from agents.evaluate import AgentResult, Header, UserRow
from agents.spread import pooled_differences, render_pooled, render_spread, spread_of

HEADER = Header(agent="a", fingerprint="", dataset="d", world="w", split="test", seed=0, game="g")


def _result(name: str, reward_by_user: Mapping[int, float], **changes: object) -> AgentResult:
    rows = [UserRow(user, f"u{user}", 1, 1, True, True, reward, 0.0) for user, reward in reward_by_user.items()]
    return AgentResult(dataclasses.replace(HEADER, agent=name, **changes), tuple(rows))


def test_a_spread_is_the_standard_deviation_between_the_seeds_means() -> None:
    seeds = [[_result("a", {0: 1.0, 1: 2.0})], [_result("a", {0: 2.0, 1: 3.0})], [_result("a", {0: 4.0, 1: 5.0})]]
    (spread,) = spread_of(seeds)
    assert spread.means["Reward"] == (1.5, 2.5, 4.5)
    deviation = math.sqrt(sum((mean - 8.5 / 3) ** 2 for mean in (1.5, 2.5, 4.5)) / 2)
    assert f"{8.5 / 3:.3f} ± {deviation:.3f}" in render_spread([spread])
    assert (spread.num_seeds, spread.num_users) == (3, 2)


def test_a_spread_over_other_users_says_so() -> None:
    seeds = [
        [_result("a", {0: 1.0, 1: 2.0}), _result("b", {0: 1.0, 1: 2.0})],
        [_result("a", {1: 2.0, 2: 9.0}), _result("b", {1: 2.0, 0: 1.0})],
    ]
    spreads = spread_of(seeds)
    assert [spread.same_users for spread in spreads] == [False, True]
    assert "Other users played in another seed, and add to the deviation, of: *a*." in render_spread(spreads)
    assert "Other users" not in render_spread(spreads[1:])


def test_only_agents_of_all_folders_are_shown() -> None:
    both = [[_result("a", {0: 1.0}), _result("b", {0: 1.0})], [_result("a", {0: 1.0})]]
    assert [spread.agent for spread in spread_of(both)] == ["a"]
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        spread_of(both[:1])


def test_each_seed_is_compared_with_its_own_baseline() -> None:
    """The seeds' baselines differ by 10; a difference across seeds would show it."""
    first = [_result("trm", {0: 0.0, 1: 1.0, 2: 9.0}), _result("llm", {0: 0.5, 1: 1.5})]
    second = [_result("trm", {0: 10.0, 1: 11.0, 2: 9.0}), _result("llm", {0: 11.5, 1: 12.5, 2: 0.0})]
    (difference,) = pooled_differences("trm", [first, second])
    assert difference.num_users == 2
    assert difference.by_seed["Reward"] == pytest.approx((0.5, 1.5))
    estimate = difference.pooled["Reward"]
    assert (estimate.low, estimate.mean, estimate.high) == pytest.approx((1.0, 1.0, 1.0))
    assert "+1.0000 (+1.0000 to +1.0000) [+0.5000, +1.5000]" in render_pooled([difference])


def test_the_interval_is_over_users_not_over_seeds_and_users() -> None:
    """Two seeds of the same rows are no more evidence than one."""
    reward_by_user = {user: float(user % 7) for user in range(40)}
    one = [_result("trm", dict.fromkeys(range(40), 0.0)), _result("llm", reward_by_user)]
    alone = paired_difference(one[1], one[0]).metrics["Reward"]
    assert pooled_differences("trm", [one, one])[0].pooled["Reward"] == alone


def test_other_rules_and_unknown_baselines() -> None:
    seeds = [[_result("trm", {0: 1.0}), _result("llm", {0: 2.0}, game="other")]] * 2
    assert pooled_differences("trm", seeds) == []
    with pytest.raises(ValueError, match="did you mean 'trm'"):
        pooled_differences("tmr", seeds)
