"""A world with hostile titles, agents that play it to every end, and the page about them."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agents import browser_data
from agents.base import EpisodeView
from agents.compare import differences_to
from agents.evaluate import AgentResult, evaluate
from agents.report_page import write_page
from agents.training_log import RunLogs
from agents.trm_agent import TRMAgent
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.world import World
from tests.fakes import build_fake_world
from trm.data.catalog import Catalog

HOSTILE = "<script>alert(1)</script>"
HOSTILE_NAME = "<img src=x onerror=\"document.title='owned'\">"


def hostile_world(num_users: int) -> World:
    """Return the fake world with all items of one genre titled by a script."""
    world = build_fake_world(num_users=num_users)
    items = [
        dataclasses.replace(item, title=f"{HOSTILE} {item.item_id}") if item.item_id % 4 == 0 else item
        for item in world.catalog
    ]
    world.catalog = Catalog(items)
    return world


class ByUser:
    """Hits, misses what it saw, never sees the target, or writes a script, by the user's number."""

    name = HOSTILE_NAME
    fingerprint = ""

    def __init__(self, game: Game) -> None:
        self._game = game

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        return [self._act(view) for view in episodes]

    def _act(self, view: EpisodeView) -> str:
        if view.num_turns == 0:
            return render_search(f"{HOSTILE} noir", reasoning=HOSTILE)
        if view.key % 4 == 3:
            return f"{HOSTILE} </think>"
        pool = list(view.pool)
        ranked = pool if view.key % 4 < 2 else pool[::-1]
        titles = [self._game.world.display(item_id).title for item_id in ranked[:9]]
        return render_recommend([*titles, f"{HOSTILE} unknown"], reasoning="So be it.")


def build_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, num_users: int = 24, max_users: int = 1000
) -> tuple[Path, list[AgentResult]]:
    """Return the page's file and the results that it shows."""
    game = Game(hostile_world(num_users), GameConfig())
    monkeypatch.setattr(browser_data, "world_of", lambda result: game.world)
    results = list(evaluate(game, [TRMAgent(), ByUser(game)], range(num_users)).agents)
    steps = tuple(float(step) for step in range(30))
    scalars = dict.fromkeys(("rollout/reward_mean", "reward/format", "reward/outcome", "loss/policy"), (steps, steps))
    path = folder / "report.html"
    runs = [RunLogs(f"{HOSTILE} cold", scalars), RunLogs("rec", scalars)]
    write_page(results, runs, path, differences=differences_to("trm", results), max_users=max_users)
    return path, results


def transcripts_of(page: str) -> list[dict[str, Any]]:
    """Return the data that the page's browser reads."""
    (packed,) = re.findall(r'<script type="text/plain" id="transcripts">(.*?)</script>', page, re.DOTALL)
    return json.loads(gzip.decompress(base64.b64decode(packed)))  # type: ignore[no-any-return]
