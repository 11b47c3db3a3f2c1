"""Agents measured: one row a user, kept on disk as it comes; means with intervals. agents.report draws tables."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from agents.base import Agent
from agents.play import PlayedEpisode, play
from trm.metrics import bootstrap_interval, mrr, ndcg_at_k, recall_at_k

if TYPE_CHECKING:
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game

logger = logging.getLogger(__name__)

FORMAT = 1
"""The version of the row files; files of another are not read."""


PlayedTurn = tuple[str, tuple[int, ...]]
"""An action and the candidates that it got, best first."""


@dataclass(frozen=True, slots=True)
class UserRow:
    """How one user's episode went."""

    user_index: int
    user_id: str
    rank: int
    """The target's place in the recommended list, 1 to top_k; 0 if it is not there or the episode is malformed."""
    num_searches: int
    well_formed: bool
    """Whether the episode ended in a well-formed recommendation."""
    in_pool: bool
    """Whether the target is among all candidates seen."""
    reward: float
    seconds: float
    turns: tuple[PlayedTurn, ...] = ()
    """The actions, each with what its search returned: enough to play the episode again without agent and recommender.
    Rows of older files have none."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over users and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Header:
    """What a file of rows is about; all of it, but `order`, keys the file."""

    agent: str
    fingerprint: str
    """The agent's own, where it has one: its options or its weights."""
    dataset: str
    world: str
    """A checksum of catalogue size and item vectors, so that rows of another TRM are not reused."""
    split: str
    seed: int
    game: str
    """The rules, as text."""
    order: int = 0
    """The agent's place in tables: first evaluated, first shown."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The rules again, as `build_game_config` takes them; none in older files."""

    @property
    def key(self) -> str:
        """A file name: the agent's name for people, a digest of everything for certainty."""
        content = {**dataclasses.asdict(self), "order": 0, "format": FORMAT}
        del content["options"]  # `game` says the same
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        slug = re.sub(r"[^a-z0-9]+", "-", self.agent.casefold()).strip("-") or "agent"
        return f"{slug}-{digest}"


@dataclass(frozen=True, slots=True)
class AgentResult:
    """One agent's rows and where they come from."""

    header: Header
    rows: tuple[UserRow, ...]

    def summary(self) -> AgentSummary:
        """Return the means over the rows."""
        return summarize(self)


@dataclass(frozen=True, slots=True)
class AgentSummary:
    """One line of the table."""

    agent: str
    dataset: str
    split: str
    num_users: int
    metrics: Mapping[str, Estimate]
    """In the order of METRICS."""


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
        with _RowStore(out, header) as store:
            missing = [user for user in users if user not in store.rows]
            if len(missing) < len(users):
                logger.info("%s: reusing %d of %d users", agent.name, len(users) - len(missing), len(users))
            play(
                game,
                agent,
                missing,
                split=split,
                seed=seed,
                batch_size=batch_size,
                progress=progress,
                on_end=lambda played, store=store: store.add(_row(played)),  # type: ignore[misc]
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
    rows = result.rows
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
    return AgentSummary(header.agent, header.dataset, header.split, len(rows), metrics)


def load_results(out: Path) -> list[AgentResult]:
    """Return what `evaluate` has kept under `out`, by place in the table; of equal questions the newest answer only.

    Two files ask the same when agent, data set, split and rules are equal; they differ when an agent or a TRM was
    trained anew.
    """
    newest: dict[tuple[str, ...], AgentResult] = {}
    for path in sorted(_rows_folder(out).glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        header, rows = read_rows(path)
        if header is not None and rows:
            question = (header.agent, header.dataset, header.split, header.game)
            newest[question] = AgentResult(header, tuple(rows.values()))
    return sorted(newest.values(), key=lambda result: (result.header.dataset, result.header.order, result.header.agent))


def _estimate(values: np.ndarray) -> Estimate:
    low, high = bootstrap_interval(values)
    return Estimate(float(values.mean()), float(low), float(high))


def _row(played: PlayedEpisode) -> UserRow:
    episode = played.episode
    return UserRow(
        user_index=episode.user_index,
        user_id=episode.user_id,
        rank=target_rank(episode),
        num_searches=episode.num_searches,
        well_formed=episode.well_formed,
        in_pool=episode.target_in_pool,
        reward=episode.reward,
        seconds=played.seconds,
        turns=tuple((turn.action, turn.candidate_ids) for turn in episode.turns),
    )


def target_rank(episode: Episode) -> int:
    """Return the target's 1-based place in the recommended list by item id, 0 without it or if malformed."""
    return episode.outcome.hit_rank if episode.outcome is not None and episode.well_formed else 0


def build_header(game: Game, agent: Agent, *, split: str, seed: int) -> Header:
    """Return what keys the results of this agent in this game."""
    world = game.world
    return Header(
        agent=agent.name,
        fingerprint=str(getattr(agent, "fingerprint", "")),
        dataset=world.name,
        world=world.fingerprint,
        split=split,
        seed=seed,
        game=repr(game.config),
        options=dataclasses.asdict(game.config),
    )


def _rows_folder(out: Path) -> Path:
    return out / "rows"


def read_rows(path: Path) -> tuple[Header | None, dict[int, UserRow]]:
    """Return header and rows of a file of `evaluate`; whatever is cut short, or of another format, is left out."""
    header: Header | None = None
    rows: dict[int, UserRow] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            record: dict[str, Any] = json.loads(line)
            if number == 0:
                if record.pop("format", None) != FORMAT:
                    return None, {}
                header = Header(**record)
            else:
                turns = tuple((action, tuple(ids)) for action, ids in record.pop("turns", ()))
                row = UserRow(**record, turns=turns)
                rows[row.user_index] = row
        except (json.JSONDecodeError, TypeError, ValueError):
            logger.warning("%s: line %d is not a row and is left out", path, number + 1)
            if header is None:
                return None, {}
    return header, rows


class _RowStore:
    """The rows of one agent: read at the beginning, appended to line by line."""

    def __init__(self, out: Path | None, header: Header) -> None:
        self.header = header
        self.rows: dict[int, UserRow] = {}
        self._path = None if out is None else _rows_folder(out) / f"{header.key}.jsonl"
        self._stream: IO[str] | None = None

    def __enter__(self) -> _RowStore:
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        headers = [read_rows(path)[0] for path in self._path.parent.glob("*.jsonl")]
        orders = [found.order for found in headers if found is not None]
        self.header = dataclasses.replace(self.header, order=max(orders, default=-1) + 1)
        if self._path.exists():
            found, self.rows = read_rows(self._path)
            self.header = found or self.header
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        first = json.dumps({"format": FORMAT, **dataclasses.asdict(self.header)}, ensure_ascii=False)
        draft.write_text("".join(f"{line}\n" for line in (first, *self._lines())), encoding="utf-8")
        draft.replace(self._path)
        self._stream = self._path.open("a", encoding="utf-8")
        return self

    def _lines(self) -> Iterable[str]:
        return (json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in self.rows.values())

    def add(self, row: UserRow) -> None:
        """Keep a row, and have it on its way to the disk before this returns."""
        self.rows[row.user_index] = row
        if self._stream is not None:
            self._stream.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
            self._stream.flush()

    def __exit__(self, *exc_info: object) -> None:
        if self._stream is not None:
            self._stream.close()
