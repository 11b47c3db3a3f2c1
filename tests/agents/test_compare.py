import dataclasses
import math

import pytest

from agents.compare import differences_to, paired_difference, render_differences
from agents.evaluate import AgentResult, Header, UserRow

HEADER = Header(agent="a", fingerprint="", dataset="d", world="w", split="test", seed=0, game="g")


def _result(name: str, ranks: dict[int, int], rewards: dict[int, float], **changes: object) -> AgentResult:
    rows = [UserRow(user, f"u{user}", ranks[user], 1, True, True, rewards[user], 0.0) for user in ranks]
    return AgentResult(dataclasses.replace(HEADER, agent=name, **changes), tuple(rows))


def test_the_difference_is_taken_user_by_user() -> None:
    ours = _result("a", {0: 1, 1: 3, 2: 0, 7: 1}, {0: 3.0, 1: 2.0, 2: 0.5, 7: 9.0})
    theirs = _result("b", {2: 0, 1: 1, 0: 3}, {0: 1.0, 1: 1.0, 2: 0.5})
    difference = paired_difference(ours, theirs)
    assert (difference.agent, difference.baseline, difference.num_users) == ("a", "b", 3)
    assert difference.metrics["Reward"].mean == pytest.approx(((3 - 1) + (2 - 1) + 0) / 3)
    assert difference.metrics["NDCG@10"].mean == pytest.approx((1 - 1 / math.log2(4) + 1 / math.log2(4) - 1 + 0) / 3)
    assert difference.metrics["Recall@10"].mean == 0.0
    assert "| a | b | 3 | +1.0000 (" in render_differences([difference])


def test_a_constant_difference_has_no_width_where_the_means_have() -> None:
    """Users differ by 30, the agents by 0.1 on each of them: pairing must see it for certain."""
    users = range(20)
    ours = _result("a", dict.fromkeys(users, 1), {user: 3.0 * (user % 10) + 0.1 for user in users})
    theirs = _result("b", dict.fromkeys(users, 1), {user: 3.0 * (user % 10) for user in users})
    estimate = paired_difference(ours, theirs).metrics["Reward"]
    assert (estimate.low, estimate.mean, estimate.high) == pytest.approx((0.1, 0.1, 0.1))


def test_only_like_is_compared() -> None:
    ours = _result("a", {0: 1}, {0: 1.0})
    with pytest.raises(ValueError, match="same game"):
        paired_difference(ours, _result("b", {0: 1}, {0: 1.0}, split="valid"))
    with pytest.raises(ValueError, match="got none"):
        paired_difference(ours, _result("b", {1: 1}, {1: 1.0}))


def test_how_the_game_is_told_may_differ_but_not_its_rules() -> None:
    rules = {"k": 20, "prompt_style": "full", "max_history": 20}
    base = _result("trm", {0: 1}, {0: 1.0}, game="full", options=rules)
    compact = _result("llm", {0: 2}, {0: 1.5}, game="compact", options={**rules, "prompt_style": "compact"})
    assert paired_difference(compact, base).metrics["Reward"].mean == 0.5
    easier = _result("easy", {0: 2}, {0: 1.5}, game="k=50", options={**rules, "k": 50})
    with pytest.raises(ValueError, match="same game"):
        paired_difference(easier, base)
    older = _result("old", {0: 2}, {0: 1.5}, game="full")
    assert paired_difference(older, base).num_users == 1


def test_what_cannot_be_compared_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    base = _result("trm", {0: 1}, {0: 1.0})
    elsewhere = _result("a", {0: 1}, {0: 1.0}, dataset="other")
    results = [base, _result("b", {0: 1}, {0: 3.0}), _result("c", {1: 1}, {1: 1.0}), elsewhere]
    assert [entry.agent for entry in differences_to("trm", results)] == ["b"]
    assert "both c and trm have played" in caplog.text
    with pytest.raises(ValueError, match="did you mean 'trm'"):
        differences_to("tmr", results)
