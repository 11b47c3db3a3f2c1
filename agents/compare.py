"""Two agents on the same users: the mean of their differences, user by user, and its interval."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.evaluate import AgentResult, Estimate, UserRow
from deeprec_env.errors import unknown_name
from trm.metrics import bootstrap_interval, mrr, ndcg_at_k, recall_at_k

logger = logging.getLogger(__name__)


def _ranks(rows: Sequence[UserRow]) -> NDArray[np.int64]:
    return np.array([row.rank for row in rows], dtype=np.int64)


_WORDING = ("prompt_style", "max_history", "show_attributes")
"""Options that say how the game is told, not what can be won in it: agents may differ in them and be compared."""

COMPARED: Mapping[str, Callable[[Sequence[UserRow]], NDArray[np.float64]]] = {
    "Reward": lambda rows: np.array([row.reward for row in rows], dtype=np.float64),
    "NDCG@10": lambda rows: ndcg_at_k(_ranks(rows), 10),
    "Recall@10": lambda rows: recall_at_k(_ranks(rows), 10),
    "MRR": lambda rows: mrr(_ranks(rows)),
    "Pool recall": lambda rows: np.array([float(row.in_pool) for row in rows], dtype=np.float64),
}
"""What is compared, from rows to a value a user."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more an agent has than the baseline."""

    agent: str
    baseline: str
    num_users: int
    """Those that both have played."""
    metrics: Mapping[str, Estimate]
    """In the order of COMPARED."""
    dataset: str = ""
    split: str = ""


def paired_difference(result: AgentResult, baseline: AgentResult) -> Difference:
    """Return the mean difference over the users that both have played, with its 95 % bootstrap interval over users.

    Raises:
        ValueError: if they were played by other rules or on other data, or share no user.
    """
    mine, other = result.header, baseline.header
    if not is_comparable(result, baseline):
        raise ValueError(
            f"expected {mine.agent} and {other.agent} to have played the same game, got two; play both again"
        )
    theirs = {row.user_index: row for row in baseline.rows}
    common = sorted((row for row in result.rows if row.user_index in theirs), key=lambda row: row.user_index)
    pairs = [(row, theirs[row.user_index]) for row in common]
    if not pairs:
        raise ValueError(f"expected users that both {mine.agent} and {other.agent} have played, got none")
    ours, others = zip(*pairs, strict=True)
    metrics = {}
    for name, values in COMPARED.items():
        difference = values(ours) - values(others)
        low, high = bootstrap_interval(difference)
        metrics[name] = Estimate(float(difference.mean()), low, high)
    return Difference(mine.agent, other.agent, len(pairs), metrics, mine.dataset, mine.split)


def is_comparable(result: AgentResult, baseline: AgentResult) -> bool:
    """Return whether both were played on the same data by the same rules; how the game is told may differ."""
    mine, other = result.header, baseline.header
    if (mine.dataset, mine.split) != (other.dataset, other.split):
        return False
    if not (mine.options and other.options):
        return mine.game == other.game
    names = (mine.options.keys() | other.options.keys()) - set(_WORDING)
    return all(mine.options.get(name) == other.options.get(name) for name in names)


def differences_to(baseline: str, results: Sequence[AgentResult]) -> list[Difference]:
    """Return the difference of every other result to the one of that agent on the same data.

    Results that cannot be compared with it (other rules, no user in common) are left out with a warning.

    Raises:
        ValueError: if the baseline has no result.
    """
    bases = {
        (result.header.dataset, result.header.split): result for result in results if result.header.agent == baseline
    }
    if not bases:
        raise unknown_name("the baseline", baseline, [result.header.agent for result in results])
    differences = []
    for result in results:
        base = bases.get((result.header.dataset, result.header.split))
        if base is None or result.header.agent == baseline:
            continue
        try:
            differences.append(paired_difference(result, base))
        except ValueError as error:
            logger.warning("no difference: %s", error)
    return differences


def render_differences(differences: Sequence[Difference]) -> str:
    """Return a Markdown table of the differences to the baseline."""
    lines = [f"| Agent | Less | Users | {' | '.join(COMPARED)} |", f"|---|---|---:|{'---:|' * len(COMPARED)}"]
    for difference in differences:
        cells = [f"{e.mean:+.4f} ({e.low:+.4f} to {e.high:+.4f})" for e in difference.metrics.values()]
        lines.append(f"| {difference.agent} | {difference.baseline} | {difference.num_users} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nMean difference of the same users, in parentheses its 95 % bootstrap interval.\n"
