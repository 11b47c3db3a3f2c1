"""The command itself, by subprocess, on the sample data: all stages, resumed after a kill, done again in no time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.grpo.progress import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[3]
PRESET = """
dataset: sample
num_threads: 1
policy: {hidden_size: 32, num_layers: 2, num_heads: 2, vocab_size: 1500}
sft: {num_samples: 1, max_users: 60, num_drills: 64, num_epochs: 4, batch_size: 8, checkpoint_every: 10}
cold: {num_steps: 6, users_per_step: 2, group_size: 3, max_tokens: 60, checkpoint_every: 1}
rec: {num_steps: 3, users_per_step: 2, group_size: 3, max_tokens: 60, checkpoint_every: 1}
"""


def _command(preset: Path, out: Path) -> list[str]:
    return [sys.executable, str(ROOT / "agents" / "llm_grpo.py"), str(preset), "--out", str(out)]


def _run(preset: Path, out: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        _command(preset, out), capture_output=True, text=True, cwd=cwd, env=environment, timeout=250, check=False
    )


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(PRESET)
    return path


@pytest.mark.slow
def test_all_stages_resumed_after_kill_9(preset: Path, tmp_path: Path) -> None:
    straight = _run(preset, tmp_path / "a", tmp_path)
    assert straight.returncode == 0, straight.stderr[-2000:]
    for stage in ("sft", "cold", "rec"):
        folder = tmp_path / "a" / stage
        assert json.loads((folder / "done.json").read_text())["summary"]
        assert (folder / "policy" / "model.safetensors").is_file()
        assert list((folder / "tensorboard").glob("events.*"))
    assert "slope" in straight.stdout

    process = subprocess.Popen(
        _command(preset, tmp_path / "b"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    metrics = tmp_path / "b" / "cold" / METRICS_FILE
    deadline = time.monotonic() + 200
    while len(read_metrics(metrics)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = _run(preset, tmp_path / "b", tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    for stage in ("cold", "rec"):
        weights = [(tmp_path / run / stage / "policy" / "model.safetensors").read_bytes() for run in "ab"]
        assert weights[0] == weights[1]
        rewards = [
            [(record["step"], record["reward_mean"]) for record in read_metrics(tmp_path / run / stage / METRICS_FILE)]
            for run in "ab"
        ]
        assert rewards[0] == rewards[1]

    again = _run(preset, tmp_path / "a", tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("already finished") == 3


def test_a_mistake_ends_in_one_sentence(tmp_path: Path) -> None:
    found = _run(Path("nosuchpreset"), tmp_path, tmp_path)
    assert found.returncode == 1
    assert "expected a preset out of" in found.stderr.replace("\n", " ")
    assert "Traceback" not in found.stderr


def test_a_stage_without_the_one_before_it_says_so(preset: Path, tmp_path: Path) -> None:
    command = [*_command(preset, tmp_path / "out"), "--stages", "rec"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 1
    assert "begins with the policy of stage cold" in found.stderr.replace("\n", " ")
