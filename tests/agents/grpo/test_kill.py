"""kill -9 at random moments: the run that is started again ends with the weights of one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from agents.grpo.progress import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[3]
NUM_KILLS = 20


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_bitwise_the_same(warm_policy: Path, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.agents.grpo.kill_run", str(warm_policy), str(tmp_path), str(NUM_KILLS)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    result = json.loads(found.stdout.splitlines()[-1])
    assert result["status"] == 0, found.stderr[-3000:]
    assert sum(result["hit"].values()) == NUM_KILLS, result
    assert all(result["hit"].get(phase, 0) >= 2 for phase in ("sampling", "update", "saving")), result
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    weights = [load_file(folder / "policy" / "model.safetensors") for folder in (straight, killed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    for stage, number in (("sft", "loss/sft"), ("cold", "reward_mean")):
        records = [read_metrics(folder / stage / METRICS_FILE) for folder in (straight, killed)]
        numbers = [[(record["step"], record[number]) for record in of_run] for of_run in records]
        assert numbers[0] == numbers[1]
