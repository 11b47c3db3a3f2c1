"""Users in groups: by the length of their history, by the popularity and by the TRM rank of their target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agents.evaluate import AgentResult, Estimate, UserRow
from trm.metrics import bootstrap_interval, ndcg_at_k, recall_at_k

RANK_EDGES = (1, 11, 21, 51, 101)
"""Where the groups by the recommender's rank begin."""
NUM_QUANTILES = 4
"""The other groups are quarters of the users, as far as equal values allow."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """By what users are grouped."""

    name: str
    value_of: Callable[[UserRow], int | None]
    edges: tuple[int, ...] = ()
    """Where the groups begin; quantiles if there are none."""
    axis: str = ""
    """What the values are, in the words of an axis."""


DIMENSIONS = (
    Dimension("History length", lambda row: row.history_length, axis="items in the history"),
    Dimension("Target popularity", lambda row: row.target_count, axis="training interactions of the target"),
    Dimension(
        "TRM rank of the target", lambda row: row.trm_rank, RANK_EDGES, axis="the target's place by the TRM alone"
    ),
)


@dataclass(frozen=True, slots=True)
class Stratum:
    """A group of users: those whose value lies between two bounds, both included."""

    dimension: str
    low: int
    high: int | None
    """None where it is open."""

    @property
    def label(self) -> str:
        """The bounds in words, such as "5–12" or "101 and more"."""
        if self.high is None:
            return f"{self.low} and more"
        return str(self.low) if self.low == self.high else f"{self.low}–{self.high}"


@dataclass(frozen=True, slots=True)
class StratumEstimate:
    """How one agent does in one group of users."""

    agent: str
    dataset: str
    split: str
    stratum: Stratum
    num_users: int
    metrics: Mapping[str, Estimate]
    """Recall@10, NDCG@10 and Pool recall."""


def build_strata(values: Iterable[int], dimension: Dimension) -> list[Stratum]:
    """Return the groups that the values fall into, ascending; none is empty.

    Args:
        values: one a user.
        dimension: says where groups begin, or nothing: then they are quantiles.
    """
    array = np.sort(np.fromiter(values, dtype=np.int64))
    if array.size == 0:
        return []
    starts = dimension.edges or [array[array.size * part // NUM_QUANTILES] for part in range(NUM_QUANTILES)]
    begins = sorted({int(start) for start in starts})
    ends = [begin - 1 for begin in begins[1:]] + [None if dimension.edges else int(array[-1])]
    strata = [Stratum(dimension.name, begin, end) for begin, end in zip(begins, ends, strict=True)]
    return [stratum for stratum in strata if any(_holds(stratum, int(value)) for value in array)]


def estimate_strata(results: Sequence[AgentResult]) -> list[StratumEstimate]:
    """Return each agent's means in each group, by data set, dimension, group and agent.

    The groups of a data set and split are made of all users that any agent has played; users of whom the rows do not
    know the value are left out.
    """
    found = []
    for dataset, split in dict.fromkeys((result.header.dataset, result.header.split) for result in results):
        group = [result for result in results if (result.header.dataset, result.header.split) == (dataset, split)]
        for dimension in DIMENSIONS:
            value_by_user = {
                row.user_index: value
                for result in group
                for row in result.rows
                if (value := dimension.value_of(row)) is not None
            }
            for stratum in build_strata(value_by_user.values(), dimension):
                users = {user for user, value in value_by_user.items() if _holds(stratum, value)}
                for result in group:
                    rows = sorted(
                        (row for row in result.rows if row.user_index in users), key=lambda row: row.user_index
                    )
                    if rows:
                        metrics = _estimate(rows)
                        found.append(StratumEstimate(result.header.agent, dataset, split, stratum, len(rows), metrics))
    return found


def _holds(stratum: Stratum, value: int) -> bool:
    return stratum.low <= value and (stratum.high is None or value <= stratum.high)


def _estimate(rows: Sequence[UserRow]) -> dict[str, Estimate]:
    ranks = np.array([row.rank for row in rows], dtype=np.int64)
    columns = {
        "Recall@10": recall_at_k(ranks, 10),
        "NDCG@10": ndcg_at_k(ranks, 10),
        "Pool recall": np.array([float(row.in_pool) for row in rows]),
    }
    return {
        name: Estimate(float(values.mean()), *bootstrap_interval(values, num_resamples=1000))
        for name, values in columns.items()
    }
