"""What `info` holds: one value an episode in columns, the same as a dict for each episode, or as a vector env's arrays.

Nothing here is kept: every dict and array is fresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeprec_env.episode import Episode
from deeprec_env.rewards.outcome import INFO_FIELDS

Columns = dict[str, Any]
"""By key a list with one value an episode; for a key that is a dict in each `info`, such columns again."""
VectorInfo = dict[str, Any]
"""By key an array [N], and under `_key` a bool array of who has it: Gymnasium's layout. A dict in each `info` is such a
mapping again."""


def reset_columns(episodes: Sequence[Episode]) -> Columns:
    """Return the columns of episodes that have just started: a step's keys, empty, and who the user is."""
    count = len(episodes)
    return {
        "turn": [0] * count,
        "user_index": [episode.user_index for episode in episodes],
        "user_id": [episode.user_id for episode in episodes],
        "action_kind": [None] * count,
        "malformed_reason": [None] * count,
        "preference": [None] * count,
        "candidate_ids": [()] * count,
        "reward_terms": {},
        "oracle": {
            "target_id": [episode.target for episode in episodes],
            "target_rank": [0] * count,
            "target_in_pool": [False] * count,
        },
    }


def step_columns(episodes: Sequence[Episode]) -> Columns:
    """Return the columns of each episode's last turn, without the outcome; every episode has one turn at least."""
    turns = [episode.turns[-1] for episode in episodes]
    targets = [episode.target for episode in episodes]
    found = [turn.candidate_ids for turn in turns]
    seen = [episode.target in episode.seen for episode in episodes]
    return {
        "turn": [len(episode.turns) for episode in episodes],
        "action_kind": [str(turn.kind) for turn in turns],
        "malformed_reason": [turn.malformed_reason and str(turn.malformed_reason) for turn in turns],
        "preference": [turn.preference for turn in turns],
        "candidate_ids": found,
        "reward_terms": {name: [turn.reward_terms[name] for turn in turns] for name in turns[0].reward_terms},
        "oracle": {
            "target_id": targets,
            "target_rank": [
                ids.index(item) + 1 if was_seen and item in ids else 0
                for item, ids, was_seen in zip(targets, found, seen)
            ],
            "target_in_pool": seen,
        },
    }


def outcome_columns(episodes: Sequence[Episode]) -> Columns:
    """Return the columns of the outcomes of episodes that have ended, under `outcome`."""
    outcomes = [episode.outcome for episode in episodes]
    return {"outcome": {name: list(map(read, outcomes)) for name, read in INFO_FIELDS.items()}}  # type: ignore[arg-type]


def info_dicts(columns: Columns, count: int) -> list[dict[str, Any]]:
    """Return the same by episode."""
    values = [info_dicts(column, count) if isinstance(column, dict) else column for column in columns.values()]
    return [dict(zip(columns, row)) for row in zip(*values)] if values else [{} for _ in range(count)]


def reset_infos(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Return the `info` of each episode that has just started."""
    return info_dicts(reset_columns(episodes), len(episodes))


def step_infos(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Return the `info` of each episode's last turn."""
    infos = info_dicts(step_columns(episodes), len(episodes)) if episodes else []
    for episode, info in zip(episodes, infos):
        if episode.outcome is not None:
            info["outcome"] = episode.outcome.as_info()
    return infos


def put_columns(info: VectorInfo, columns: Columns, places: Sequence[int], *, num_envs: int) -> None:
    """Write columns into the arrays of a vector environment's info, at the sub-environments that they are of.

    Numbers and bools are kept in arrays of their type, with 0 where there is none; all else as objects.

    Args:
        info: changed in place; empty at first.
        columns: a value for each place.
        places: which sub-environments, each once, ascending; none of them has the keys yet.
        num_envs: how many sub-environments there are.
    """
    _put(info, columns, slice(None) if len(places) == num_envs else np.array(places, dtype=np.intp), num_envs)


def _put(info: VectorInfo, columns: Columns, where: slice | NDArray[np.intp], num_envs: int) -> None:
    for name, column in columns.items():
        has_it = f"_{name}"
        is_dict = isinstance(column, dict)
        if has_it not in info:
            info[name] = {} if is_dict else np.zeros(num_envs, dtype=_dtype_of(column[0]))
            info[has_it] = np.zeros(num_envs, dtype=np.bool_)
            if not is_dict and info[name].dtype == object:
                info[name].fill(None)
        info[has_it][where] = True
        if is_dict:
            _put(info[name], column, where, num_envs)
        elif info[name].dtype == object:
            info[name][where] = np.fromiter(column, dtype=object, count=len(column))
        else:
            info[name][where] = column


def _dtype_of(value: object) -> type:
    kind = type(value)
    return kind if kind in (int, float, bool) else object
