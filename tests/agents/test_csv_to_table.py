"""Two CSV files, five commands, a trained agent in the table; and the account of what was dropped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stable_baselines3", reason="the extra sb3 is not installed")

SCRIPT = Path(__file__).parents[2] / "examples" / "csv_to_table.sh"
GENRES = ("noir", "comedy", "western")


def _write_shop(folder: Path) -> None:
    """Write 60 users of 8 choices, mostly of one genre; one row stands twice, and one user chose a single item."""
    rng = np.random.default_rng(0)
    items = [f"i{item},Tale {item},{GENRES[item % 3]}" for item in range(36)]
    log = []
    for user in range(60):
        liked = rng.permutation([item for item in range(36) if item % 3 == user % 3])[:6]
        other = rng.permutation([item for item in range(36) if item % 3 != user % 3])[:2]
        log += [f"u{user},i{item},{1000 + place}" for place, item in enumerate(rng.permutation([*liked, *other]))]
    log += [log[0], "single,i1,5"]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *log, ""]), encoding="utf-8")
    (folder / "items.csv").write_text("\n".join(["item_id,title,genre", *items, ""]), encoding="utf-8")


@pytest.mark.slow
def test_the_five_commands_put_a_trained_agent_into_the_table(tmp_path: Path) -> None:
    _write_shop(tmp_path)
    command = tmp_path / "bin" / "deeprec"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m agents.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "DEEPREC_HOME": str(tmp_path / "home"),
        "STEPS": "600",
        "FAST": "--fast --encoder hashing-256",
    }
    run = ["bash", str(SCRIPT), "log.csv", "items.csv"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert {"duplicated rows 1", "users with too few items 1"} <= lines
    for agent in ("popularity", "trm", "heuristic", "sb3_ppo"):
        assert f"| {agent}" in done.stdout
    assert (tmp_path / "runs" / "shop" / "report.html").is_file()
