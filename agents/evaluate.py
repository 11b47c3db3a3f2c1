"""Agents measured: one row a user, kept on disk as it comes; means with intervals. agents.report draws tables."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agents.base import Agent, SeesTarget, TokenCounter
from agents.breakdown import EpisodeEnd, coverage_of, end_of, novelty_of, share_by_fault
from agents.play import PlayedEpisode, play
from agents.rows import FORMAT, AgentResult, Header, RowStore, UserRow, load_results, read_rows
from deeprec_env.errors import unknown_name
from trm.errors import RetrieverError
from trm.metrics import bootstrap_interval, mrr, ndcg_at_k, recall_at_k
from trm.types import IntArray, RankingRetriever, RetrievalQuery

if TYPE_CHECKING:
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game

__all__ = [
    "FORMAT",
    "METRICS",
    "AgentResult",
    "AgentSummary",
    "Estimate",
    "EvaluationResult",
    "Header",
    "UserRow",
    "build_header",
    "evaluate",
    "load_results",
    "named_result",
    "read_rows",
    "sample_users",
    "shown_name",
    "summarize",
    "target_rank",
]

logger = logging.getLogger(__name__)

_MARK = " (sees the target)"
"""Stands behind the name of an agent that is told the target."""
_RANK_CHUNK = 1024
"""Users whose targets are ranked at a time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over users and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class AgentSummary:
    """One line of the table."""

    agent: str
    dataset: str
    split: str
    num_users: int
    metrics: Mapping[str, Estimate]
    """In the order of METRICS."""
    details: Mapping[str, Estimate] = field(default_factory=dict)
    """Those of DETAILS that the rows hold, in that order."""
    coverage: float | None = None
    """The share of the catalogue that stands in at least one list."""
    share_by_fault: Mapping[str, float] = field(default_factory=dict)
    """The share of all episodes that each kind of fault has, the commonest first."""


METRICS = (
    "Recall@1",
    "Recall@5",
    "Recall@10",
    "NDCG@5",
    "NDCG@10",
    "MRR",
    "Searches",
    "Well-formed",
    "Pool recall",
    "Reward",
    "Seconds/user",
)
"""The columns of a summary. A target that is not recommended has no rank and counts 0 in the first six."""

DETAILS = (
    "NDCG@1",
    "Retrieval failure",
    "Ranking failure",
    "Format failure",
    "Novelty",
    "Tokens/user",
)
"""What a second table adds. With one target NDCG@1 is Recall@1. The failures and the hits sum to 1. Novelty is a mean
over the users with a list, tokens one over those whose agent counted."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The results of several agents on the same users, in the order in which the agents were given."""

    agents: tuple[AgentResult, ...]

    def summaries(self) -> tuple[AgentSummary, ...]:
        """Return one summary an agent."""
        return tuple(summarize(result) for result in self.agents)


def evaluate(
    game: Game,
    agents: Sequence[Agent],
    users: Sequence[int],
    *,
    split: str = "test",
    seed: int = 0,
    batch_size: int = 256,
    out: Path | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Let every agent play every user once, and return the rows in the order of `users`.

    With a folder `out` each row is written as its episode ends, under `out`/rows; a later call with the same agents,
    rules, data and split plays only the users that are not there yet.

    Args:
        game: the rules and the world.
        agents: policies; one with an attribute `fingerprint: str` is told from its like by it.
        users: user indices, each once.
        split: whose target is looked for.
        seed: seeds the episodes' views.
        batch_size: how many episodes are live at a time.
        out: where rows are kept; None keeps nothing.
        progress: whether to show progress bars.

    Raises:
        ValueError: if users is empty or holds one twice.
    """
    if not users or len(set(users)) != len(users):
        raise ValueError(f"users must be at least one, none twice, got {len(users)} with {len(set(users))} different")
    results = []
    for agent in agents:
        header = build_header(game, agent, split=split, seed=seed)
        with RowStore(out, header) as store:
            missing = [user for user in users if user not in store.rows]
            if len(missing) < len(users):
                logger.info("%s: reusing %d of %d users", header.agent, len(users) - len(missing), len(users))
            keep = _RowWriter(game, agent, missing, split=split, store=store)
            play(
                game,
                agent,
                missing,
                split=split,
                seed=seed,
                batch_size=batch_size,
                progress=progress,
                on_end=keep,
            )
            results.append(AgentResult(store.header, tuple(store.rows[user] for user in users)))
    return EvaluationResult(tuple(results))


def sample_users(num_users: int, count: int | None, *, seed: int = 0) -> list[int]:
    """Return all user indices, or a fixed sample of `count` of them, ascending.

    Raises:
        ValueError: if count is below 1.
    """
    if count is None or count >= num_users:
        return list(range(num_users))
    if count < 1:
        raise ValueError(f"the number of users must be at least 1, got {count}")
    return sorted(int(user) for user in np.random.default_rng(seed).choice(num_users, size=count, replace=False))


def summarize(result: AgentResult) -> AgentSummary:
    """Return the means of the rows, each with its 95 % bootstrap interval over users."""
    rows = sorted(result.rows, key=lambda row: row.user_index)  # else intervals would hang on who ended first
    ranks = np.array([row.rank for row in rows], dtype=np.int64)
    values = (
        *(recall_at_k(ranks, k) for k in (1, 5, 10)),
        *(ndcg_at_k(ranks, k) for k in (5, 10)),
        mrr(ranks),
        *(
            np.array([float(getattr(row, field)) for row in rows])
            for field in ("num_searches", "well_formed", "in_pool", "reward", "seconds")
        ),
    )
    metrics = {name: _estimate(column) for name, column in zip(METRICS, values, strict=True)}
    header = result.header
    return AgentSummary(
        header.agent,
        header.dataset,
        header.split,
        len(rows),
        metrics,
        details=_details(rows, ranks),
        coverage=coverage_of(rows, header.num_items),
        share_by_fault=share_by_fault(rows),
    )


def _details(rows: Sequence[UserRow], ranks: IntArray) -> dict[str, Estimate]:
    ends = [end_of(row) for row in rows]
    failures = (EpisodeEnd.RETRIEVAL_FAILURE, EpisodeEnd.RANKING_FAILURE, EpisodeEnd.MALFORMED)
    columns = (
        ndcg_at_k(ranks, 1),
        *(np.array([float(end is failure) for end in ends]) for failure in failures),
        np.array([row.novelty for row in rows if row.novelty is not None], dtype=np.float64),
        np.array([row.tokens for row in rows if row.tokens is not None], dtype=np.float64),
    )
    return {name: _estimate(column) for name, column in zip(DETAILS, columns, strict=True) if column.size}


def _estimate(values: np.ndarray) -> Estimate:
    low, high = bootstrap_interval(values)
    return Estimate(float(values.mean()), float(low), float(high))


class _RowWriter:
    """Makes rows of ended episodes, with what is known of their users, and keeps them."""

    def __init__(self, game: Game, agent: Agent, users: Sequence[int], *, split: str, store: RowStore) -> None:
        splits = game.world.splits
        self._store = store
        self._counter = agent if isinstance(agent, TokenCounter) else None
        self._num_users = splits.num_users
        self._popularity: IntArray = splits.train_counts()
        self._trm_ranks = dict(zip(users, _trm_ranks(game, users, split), strict=True))

    def __call__(self, played: PlayedEpisode) -> None:
        episode, outcome = played.episode, played.episode.outcome
        recommended = outcome.recommended_ids if outcome is not None else ()
        reason = episode.turns[-1].malformed_reason
        row = UserRow(
            user_index=episode.user_index,
            user_id=episode.user_id,
            rank=target_rank(episode),
            num_searches=episode.num_searches,
            well_formed=episode.well_formed,
            in_pool=episode.target_in_pool,
            reward=episode.reward,
            seconds=played.seconds,
            turns=tuple((turn.action, turn.candidate_ids) for turn in episode.turns),
            failure=None if reason is None else str(reason),
            recommended_ids=recommended,
            novelty=novelty_of(recommended, self._popularity, self._num_users),
            tokens=None if self._counter is None else self._counter.num_tokens(played.key),
            history_length=len(episode.history),
            target_count=int(self._popularity[episode.target]),
            trm_rank=self._trm_ranks[episode.user_index],
        )
        self._store.add(row)


def _trm_ranks(game: Game, users: Sequence[int], split: str) -> list[int | None]:
    """Return where the recommender alone ranks each user's target, from 1; None where it cannot say."""
    retriever = game.world.retriever
    if not isinstance(retriever, RankingRetriever):
        return [None] * len(users)
    ranks: list[int | None] = []
    for start in range(0, len(users), _RANK_CHUNK):
        episodes = [game.start(user, split) for user in users[start : start + _RANK_CHUNK]]
        exclude = game.config.exclude_history
        queries = [RetrievalQuery(episode.history, "", exclude_history=exclude) for episode in episodes]
        try:
            found = retriever.ranks(queries, [episode.target for episode in episodes])
        except RetrieverError as error:
            logger.warning("the recommender does not say how it ranks the targets: %s", error)
            return [None] * len(users)
        ranks += [int(rank) or None for rank in found]
    return ranks


def shown_name(agent: Agent) -> str:
    """Return how an agent is called in results; one that sees the target is marked."""
    return f"{agent.name}{_MARK}" if isinstance(agent, SeesTarget) else agent.name


def named_result(name: str, shown: Sequence[str], *, what: str) -> str:
    """Return the name in results of the agent that a person means, who need not write the mark.

    Args:
        name: what they wrote.
        shown: the names in results.
        what: where they wrote it, such as "--baseline".

    Raises:
        ValueError: if there is no such agent.
    """
    for found in (name, f"{name}{_MARK}"):
        if found in shown:
            return found
    raise unknown_name(what, name, shown)


def target_rank(episode: Episode) -> int:
    """Return the target's 1-based place in the recommended list by item id, 0 without it or if malformed."""
    return episode.outcome.hit_rank if episode.outcome is not None and episode.well_formed else 0


def build_header(game: Game, agent: Agent, *, split: str, seed: int) -> Header:
    """Return what keys the results of this agent in this game; one that sees the target is marked in its name."""
    world = game.world
    return Header(
        agent=shown_name(agent),
        fingerprint=str(getattr(agent, "fingerprint", "")),
        dataset=world.name,
        world=world.fingerprint,
        split=split,
        seed=seed,
        game=repr(game.config),
        options=dataclasses.asdict(game.config),
        num_items=world.catalog.num_items,
    )
