"""The same agents trained from several seeds: what a training of another seed may give, beside what other users may.

One folder of `deeprec evaluate` holds one seed. A mean over users has two uncertainties: of the users (the bootstrap
interval of every table) and of the training (the spread between seeds). Here both stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.compare import COMPARED, is_comparable
from agents.evaluate import METRICS, AgentResult, Estimate, summarize
from deeprec_env.errors import unknown_name
from trm.metrics import bootstrap_interval

_SHOWN = tuple(name for name in METRICS if name != "Seconds/user")


@dataclass(frozen=True, slots=True)
class Spread:
    """One agent over the seeds."""

    agent: str
    dataset: str
    split: str
    num_users: int
    """The fewest of any seed."""
    same_users: bool
    """Whether every seed was played by the same users."""
    means: Mapping[str, tuple[float, ...]]
    """By metric the mean over users of each seed, in the order of the folders."""

    @property
    def num_seeds(self) -> int:
        """How many folders hold the agent."""
        return len(next(iter(self.means.values())))


@dataclass(frozen=True, slots=True)
class PooledDifference:
    """How much more an agent has than the baseline, each seed's agent against the same seed's baseline."""

    agent: str
    baseline: str
    num_users: int
    """Those whom both have played in every seed."""
    by_seed: Mapping[str, tuple[float, ...]]
    """By metric the mean difference of each seed."""
    pooled: Mapping[str, Estimate]
    """The mean over seeds and users, with the bootstrap interval over users of each user's mean over the seeds."""


def spread_of(seeds: Sequence[Sequence[AgentResult]]) -> list[Spread]:
    """Return every agent, data set and split that all seeds hold, in the first seed's order.

    Args:
        seeds: the results of each folder.

    Raises:
        ValueError: if there are fewer than two folders.
    """
    return [
        Spread(
            agent=same[0].header.agent,
            dataset=same[0].header.dataset,
            split=same[0].header.split,
            num_users=min(len(result.rows) for result in same),
            same_users=len({frozenset(row.user_index for row in result.rows) for result in same}) == 1,
            means=_means(same),
        )
        for same in _matched(seeds)
    ]


def pooled_differences(baseline: str, seeds: Sequence[Sequence[AgentResult]]) -> list[PooledDifference]:
    """Return every other agent's difference to the baseline, over the users that both have played in every seed.

    Agents without such users, or that played by other rules, are left out.

    Raises:
        ValueError: if not every folder holds the baseline.
    """
    matched = _matched(seeds)
    bases = {_question(same[0])[1:]: same for same in matched if same[0].header.agent == baseline}
    if not bases:
        raise unknown_name("the baseline of all folders", baseline, [same[0].header.agent for same in matched])
    found = []
    for same in matched:
        base = bases.get(_question(same[0])[1:])
        if base is None or base is same or not all(map(is_comparable, same, base)):
            continue
        users = _common_users([*same, *base])
        if users:
            found.append(_pooled(same, base, users))
    return found


def render_spread(spreads: Sequence[Spread]) -> str:
    """Return a Markdown table: mean over the seeds ± their standard deviation."""
    lines = [f"| Agent | Seeds | Users | {' | '.join(_SHOWN)} |", f"|---|---:|---:|{'---:|' * len(_SHOWN)}"]
    for spread in spreads:
        cells = [f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" for values in spread.means.values()]
        lines.append(f"| {spread.agent} | {spread.num_seeds} | {spread.num_users} | {' | '.join(cells)} |")
    note = "\n\nMean over the seeds ± the standard deviation between them."
    mixed = [f"*{spread.agent}*" for spread in spreads if not spread.same_users]
    if mixed:
        note += f" Other users played in another seed, and add to the deviation, of: {', '.join(mixed)}."
    return "\n".join(lines) + note + "\n"


def render_pooled(differences: Sequence[PooledDifference]) -> str:
    """Return a Markdown table of the differences to the baseline, pooled and by seed."""
    lines = [f"| Agent | Less | Users | {' | '.join(COMPARED)} |", f"|---|---|---:|{'---:|' * len(COMPARED)}"]
    for one in differences:
        cells = [
            f"{estimate.mean:+.4f} ({estimate.low:+.4f} to {estimate.high:+.4f})"
            f" [{', '.join(f'{value:+.4f}' for value in one.by_seed[name])}]"
            for name, estimate in one.pooled.items()
        ]
        lines.append(f"| {one.agent} | {one.baseline} | {one.num_users} | {' | '.join(cells)} |")
    return (
        "\n".join(lines)
        + "\n\nMean difference of the same users and seed, in parentheses its 95 % bootstrap interval over users (of "
        "each user's mean over the seeds), in brackets the seeds one by one.\n"
    )


def _question(result: AgentResult) -> tuple[str, str, str]:
    header = result.header
    return header.agent, header.dataset, header.split


def _matched(seeds: Sequence[Sequence[AgentResult]]) -> list[list[AgentResult]]:
    """Return, for every question that all folders answer, the answers in the order of the folders."""
    if len(seeds) < 2:
        raise ValueError(f"expected the folders of at least two seeds, got {len(seeds)}; give one --out a seed")
    by_question = [{_question(result): result for result in results} for results in seeds]
    return [
        [answers[question] for answers in by_question]
        for question in by_question[0]
        if all(question in answers for answers in by_question)
    ]


def _means(same: Sequence[AgentResult]) -> dict[str, tuple[float, ...]]:
    summaries = [summarize(result) for result in same]
    return {name: tuple(summary.metrics[name].mean for summary in summaries) for name in _SHOWN}


def _common_users(results: Sequence[AgentResult]) -> list[int]:
    return sorted(set.intersection(*({row.user_index for row in result.rows} for result in results)))


def _pooled(same: Sequence[AgentResult], base: Sequence[AgentResult], users: Sequence[int]) -> PooledDifference:
    by_seed, pooled = {}, {}
    for name in COMPARED:
        differences_SU = np.stack([_values(a, name, users) - _values(b, name, users) for a, b in zip(same, base)])
        of_users_U = differences_SU.mean(axis=0)
        by_seed[name] = tuple(differences_SU.mean(axis=1).tolist())
        pooled[name] = Estimate(float(of_users_U.mean()), *bootstrap_interval(of_users_U))
    return PooledDifference(same[0].header.agent, base[0].header.agent, len(users), by_seed, pooled)


def _values(result: AgentResult, metric: str, users: Sequence[int]) -> NDArray[np.float64]:
    row_by_user = {row.user_index: row for row in result.rows}
    return COMPARED[metric]([row_by_user[user] for user in users])
