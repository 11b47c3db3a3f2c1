"""Saved rollouts scored again by other reward rules: no agent plays, no recommender is asked."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluate import FORMAT, AgentResult, Estimate, UserRow, load_results, read_rows
from deeprec_env.config import GameConfig, build_game_config
from deeprec_env.transcripts import Replayer
from deeprec_env.world import World, load_world
from trm.data.refs import SOURCES, WITH_CATEGORY
from trm.metrics import bootstrap_interval

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rescored:
    """One agent's rows under other rules."""

    result: AgentResult
    """With the new rewards and rules; everything else is as it was played."""
    old_rewards: tuple[float, ...]
    """By row, in the same order."""
    terms: Mapping[str, float]
    """Each term's mean over the rows; they sum to the mean reward."""
    num_left_out: int
    """Rows without their actions, of older files."""


def load_rows(path: Path) -> list[AgentResult]:
    """Return the rows of one file, or of all files that `deeprec evaluate` has kept in a folder.

    Raises:
        ValueError: if there are none.
    """
    if path.is_dir():
        results = load_results(path)
    else:
        header, rows = read_rows(path)
        results = [AgentResult(header, tuple(rows.values()))] if header is not None and rows else []
    if not results:
        raise ValueError(f"expected rows of `deeprec evaluate` in {path}, got none; name its --out or a file in rows/")
    return results


def config_of(result: AgentResult, *, reward: Any | None = None, stage: str | None = None) -> GameConfig:
    """Return the rules that the rows were played by, with another reward or stage where one is given.

    Raises:
        ValueError: if the file does not say the rules, or a name is unknown.
    """
    header = result.header
    if not header.options:
        raise ValueError(f"expected rows of {header.agent!r} with their rules, got an older file; evaluate it again")
    changes = {name: value for name, value in (("reward", reward), ("stage", stage)) if value is not None}
    return build_game_config({**header.options, **changes})


def world_of(result: AgentResult) -> World:
    """Return the world that the rows were played in.

    Raises:
        DatasetNotPrepared: if it is not at hand.
        ValueError: if its recommender has been trained anew since.
    """
    header = result.header
    name, category = dataset_named(header.dataset)
    world = load_world(name, category=category, auto_prepare=False)
    if world.fingerprint != header.world:
        raise ValueError(
            f"expected the recommender that the rows of {header.agent!r} were played with ({header.world}), got "
            f"another ({world.fingerprint}); evaluate again"
        )
    return world


def dataset_named(key: str) -> tuple[str, str | None]:
    """Return name and category of the data set that is kept under this key, e.g. ("amazon", "Books")."""
    for name in sorted(WITH_CATEGORY, key=len, reverse=True):  # amazon-2018 before amazon
        if key.startswith(f"{name}-"):
            return name, key.removeprefix(f"{name}-")
    source, dash, what = key.partition("-")
    return (f"{source}:{what}", None) if dash and source in SOURCES else (key, None)


def rescore(result: AgentResult, world: World, config: GameConfig) -> Rescored:
    """Return the rows with the rewards of these rules.

    Args:
        result: rows with their actions.
        world: in which they were played.
        config: the rules, which must differ from theirs in reward and stage only.

    Raises:
        ValueError: if no row holds its actions.
        NotThisEpisode: if a row is no episode by these rules.
    """
    kept = [row for row in result.rows if row.turns]
    if not kept:
        raise ValueError(f"expected rows of {result.header.agent!r} with their actions, got an older file; play again")
    replayer = Replayer(world, config)
    rows: list[UserRow] = []
    totals = dict.fromkeys(config.rewards.terms(config.stage), 0.0)
    for row in kept:
        episode = replayer.replay(row.user_index, result.header.split, row.turns)
        rows.append(dataclasses.replace(row, reward=episode.reward))
        for name, paid in episode.paid.items():
            totals[name] += paid
    header = dataclasses.replace(result.header, game=repr(config), options=dataclasses.asdict(config))
    means = {name: total / len(rows) for name, total in totals.items()}
    old = tuple(row.reward for row in kept)
    return Rescored(AgentResult(header, tuple(rows)), old, means, len(result.rows) - len(kept))


def render_table(rescored: Sequence[Rescored]) -> str:
    """Return a Markdown table: a line an agent with old and new mean rewards, 95 % bootstrap intervals, and terms."""
    names = list(dict.fromkeys(name for entry in rescored for name in entry.terms))
    lines = [
        "| Agent | Users | Reward as played | Rescored | " + " | ".join(names) + " |",
        "|---|" + "---:|" * (3 + len(names)),
    ]
    for entry in rescored:
        rows = entry.result.rows
        cells = [_cell(entry.old_rewards), _cell([row.reward for row in rows])]
        cells += [f"{entry.terms[name]:+.3f}" if name in entry.terms else "-" for name in names]
        lines.append(f"| {entry.result.header.agent} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rewards: Sequence[float]) -> str:
    values = np.array(rewards, dtype=np.float64)
    estimate = Estimate(float(values.mean()), *map(float, bootstrap_interval(values)))
    return f"{estimate.mean:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def write_rows(rescored: Rescored, out: Path) -> Path:
    """Write the rows in the form of `deeprec evaluate` and return the file; `deeprec report` reads it."""
    path = out / "rows" / f"{rescored.result.header.key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"format": FORMAT, **dataclasses.asdict(rescored.result.header)}]
    records += [dataclasses.asdict(row) for row in rescored.result.rows]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path
