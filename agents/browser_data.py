"""Played episodes as plain data for the browser of transcripts: replayed from their rows, by item ids, compact.

Titles stand once in a table; a turn holds its text, its candidates' ids and what it paid.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.breakdown import end_of
from agents.rescore import config_of, world_of
from deeprec_env.errors import DeepRecError
from deeprec_env.protocol import ActionKind
from deeprec_env.transcripts import Replayer
from trm.errors import TRMError

if TYPE_CHECKING:
    from agents.rows import AgentResult, UserRow
    from deeprec_env.episode import Episode, Turn
    from deeprec_env.rewards.outcome import RankedLine
    from deeprec_env.world import World

logger = logging.getLogger(__name__)

DIGITS = 6
"""Decimals of rewards."""


def build_browser_data(results: Sequence[AgentResult], *, max_users: int) -> dict[str, Any]:
    """Return what the browser shows of these results, which are of one data set and split.

    Args:
        results: rows with their actions.
        max_users: how many users are shown at most: a fixed sample of those that were played.

    Returns:
        {"name", "num_users", "items": {id: [title, attributes]}, "users": {index: {...}}, "agents": [{"name", "k",
        "rows": {index: [end, rank, reward, failure, turns]}}], "note"}; a turn is [kind, action, candidate ids, terms,
        target's place, reason, flags]. See agents/html/page.js. Where an agent's episodes cannot be played again, it
        has no rows and the note says why.
    """
    header = results[0].header
    users = _chosen_users(results, max_users)
    played = {row.user_index for result in results for row in result.rows}
    data: dict[str, Any] = {
        "name": f"{header.dataset}, {header.split} split",
        "num_users": len(played),
        "items": {},
        "users": {},
        "agents": [],
    }
    notes = []
    for result in results:
        try:
            data["agents"].append(_Builder(data, world_of(result), result).build(users))
        except (TRMError, DeepRecError, ValueError) as error:
            logger.warning("no transcripts of %s: %s", result.header.agent, error)
            notes.append(f"{result.header.agent}: {error}")
    data["note"] = "; ".join(notes)
    return data


def _chosen_users(results: Sequence[AgentResult], max_users: int) -> set[int]:
    """Return a fixed sample of the users, first of those whom all agents have played."""
    sets = [{row.user_index for row in result.rows} for result in results]
    common, all_users = set.intersection(*sets), set.union(*sets)
    rng = np.random.default_rng(0)
    order = [*rng.permutation(sorted(common)).tolist(), *rng.permutation(sorted(all_users - common)).tolist()]
    return set(order[:max_users])


class _Builder:
    """Plays one agent's episodes again and notes items and users that they meet."""

    def __init__(self, data: dict[str, Any], world: World, result: AgentResult) -> None:
        self._items: dict[int, list[str]] = data["items"]
        self._users: dict[int, dict[str, Any]] = data["users"]
        self._world = world
        self._result = result
        self._config = config_of(result)
        self._replayer = Replayer(world, self._config)

    def build(self, users: set[int]) -> dict[str, Any]:
        rows = [row for row in self._result.rows if row.user_index in users and row.turns]
        if not rows:
            raise ValueError("the rows are of an older file and hold no actions; evaluate again")
        built = {row.user_index: self._row(row) for row in rows}
        return {"name": self._result.header.agent, "k": self._config.k, "rows": built}

    def _row(self, row: UserRow) -> list[Any]:
        episode = self._replayer.replay(row.user_index, self._result.header.split, row.turns)
        self._note_user(row, episode)
        turns = [self._turn(episode, turn) for turn in episode.turns]
        return [str(end_of(row)), row.rank, round(row.reward, DIGITS), row.failure, turns]

    def _note_user(self, row: UserRow, episode: Episode) -> None:
        if row.user_index in self._users:
            return
        shown = list(episode.history[-self._config.max_history :])
        self._note_items([*shown, episode.target])
        self._users[row.user_index] = {
            "id": row.user_id,
            "history": shown,
            "history_length": len(episode.history),
            "target": episode.target,
            "target_count": row.target_count,
            "trm_rank": row.trm_rank,
        }

    def _turn(self, episode: Episode, turn: Turn) -> list[Any]:
        self._note_items(turn.candidate_ids)
        place = turn.candidate_ids.index(episode.target) + 1 if episode.target in turn.candidate_ids else 0
        terms = {name: round(amount, DIGITS) for name, amount in turn.reward_terms.items() if amount}
        reason = None if turn.malformed_reason is None else str(turn.malformed_reason)
        flags = ""
        if turn.kind is ActionKind.RECOMMEND and episode.outcome is not None:
            flags = "".join(_flag(line, episode.target) for line in episode.outcome.lines)
        return [str(turn.kind), turn.action, list(turn.candidate_ids), terms, place, reason, flags]

    def _note_items(self, item_ids: Sequence[int]) -> None:
        for item_id in item_ids:
            if item_id not in self._items:
                self._items[item_id] = list(self._world.display(item_id))


def _flag(line: RankedLine, target: int) -> str:
    """Return a letter for a line of the final list: target, unknown title, duplicate, never retrieved, or a dot."""
    if target in line.item_ids:
        return "t"
    if not line.item_ids:
        return "u"
    if line.is_duplicate:
        return "d"
    return "." if line.is_retrieved else "n"
