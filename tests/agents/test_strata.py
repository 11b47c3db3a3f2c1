import math
from collections.abc import Sequence

import pytest

from agents.evaluate import AgentResult, Header, UserRow
from agents.strata import DIMENSIONS, Dimension, build_strata, estimate_strata

HEADER = Header("a", "", "fake", "0", "test", 0, "rules")
QUARTERS = Dimension("n", lambda row: row.history_length)


def labels(values: Sequence[int], dimension: Dimension = QUARTERS) -> list[str]:
    return [stratum.label for stratum in build_strata(values, dimension)]


def test_quarters_of_the_users() -> None:
    assert labels(range(1, 9)) == ["1–2", "3–4", "5–6", "7–8"]
    assert labels([5, 5, 5, 9]) == ["5–8", "9"]
    assert labels([3, 3]) == ["3"]
    assert labels([]) == []


def test_fixed_edges_leave_out_groups_without_users() -> None:
    (by_rank,) = (dimension for dimension in DIMENSIONS if dimension.edges)
    assert labels([1, 10, 11, 70, 400, 101], by_rank) == ["1–10", "11–20", "51–100", "101 and more"]


def row(user: int, rank: int, length: int | None) -> UserRow:
    return UserRow(user, f"u{user}", rank, 1, True, user % 2 == 0, 0.0, 0.0, history_length=length)


def test_agents_are_estimated_in_the_same_groups() -> None:
    lengths = [1, 2, 3, 4, 5, 6, 7, 8]
    first = AgentResult(HEADER, tuple(row(user, user % 4, length) for user, length in enumerate(lengths)))
    few = AgentResult(Header("b", "", "fake", "0", "test", 0, "rules"), (row(0, 1, 1), row(7, 0, None)))
    found = estimate_strata([first, few])
    assert {entry.stratum.dimension for entry in found} == {"History length"}
    by_group = {(entry.stratum.label, entry.agent): entry for entry in found}
    assert list(by_group) == [("1–2", "a"), ("1–2", "b"), ("3–4", "a"), ("5–6", "a"), ("7–8", "a"), ("7–8", "b")]
    entry = by_group["3–4", "a"]  # users 2 and 3: ranks 2 and 3, the first of them with the target in the pool
    assert entry.num_users == 2
    assert entry.metrics["Recall@10"].mean == 1.0
    assert entry.metrics["NDCG@10"].mean == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / 2)
    assert entry.metrics["Pool recall"].mean == 0.5
    assert by_group["7–8", "b"].num_users == 1  # the value of a user is known from whoever knows it
