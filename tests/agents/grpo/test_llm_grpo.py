"""The command itself, by subprocess, on the sample data: all stages, resumed after a kill, done again in no time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from agents.cli.main import main as deeprec
from agents.grpo.policy import load_policy
from agents.grpo.pretrained import load_pretrained
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.tokenizer import encode
from agents.llm_grpo import main
from deeprec_env.protocol import SPECIAL_TOKENS
from tests.agents.grpo.pretrained_models import save_pretrained_model

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


_SMALL = ["--dataset", "sample", "--num-threads", "1", "--engine", "hf", "--backend.precision", "fp32"]
_SHORT = [
    f"--{stage}.{option}"
    for stage in ("cold", "rec")
    for option in ("num-steps=1", "users=all", "users-per-step=2", "group-size=2", "max-tokens=16")
]


def _weights(stage: Path) -> dict[str, torch.Tensor]:
    return dict(load_policy(stage / "policy").model.state_dict())


def test_a_pretrained_model_goes_through_sft_cold_and_rec_one_command_each(tmp_path: Path) -> None:
    model, out = save_pretrained_model(tmp_path / "hub"), tmp_path / "run"
    options = [*_SMALL, *_SHORT, "--policy.pretrained", str(model), "--out", str(out), "--backend.lora-rank", "2"]
    options += ["--sft.max-users", "6", "--sft.num-checked", "2"]
    with pytest.raises(SystemExit) as exit_of_sft:
        deeprec(["sft", "smollm2", "--teacher", "heuristic?num_searches=1", "--keep-best=1", *options])
    assert exit_of_sft.value.code == 0
    assert [path.name for path in out.iterdir()] == ["sft"]
    assert "2 sampled episodes" in json.loads((out / "sft" / "done.json").read_text())["summary"]
    losses = [record["loss/sft"] for record in read_metrics(out / "sft" / METRICS_FILE)]
    assert len(losses) == 2
    for stage in ("cold", "rec"):
        assert main(["smollm2", "--stage", stage, *options]) == 0
        assert len(read_metrics(out / stage / METRICS_FILE)) == 1

    stages = [_weights(out / name) for name in ("sft", "cold", "rec")]
    assert all(weights.keys() == stages[0].keys() for weights in stages)
    # SFT trains every weight, those of the tags among them; what follows trains adapters beside the linear layers.
    tags = [encode(load_policy(out / "rec" / "policy").tokenizer, tag)[0] for tag in SPECIAL_TOKENS]
    embeddings = "model.embed_tokens.weight"
    begin = load_pretrained(str(model), max_tokens=1536).model.state_dict()[embeddings]
    assert not torch.equal(stages[0][embeddings][tags], begin[tags])
    assert torch.equal(stages[2][embeddings], stages[0][embeddings])


def test_the_papers_preset_runs_with_a_tiny_qwen_in_the_large_ones_place(tmp_path: Path) -> None:
    model, out = save_pretrained_model(tmp_path / "hub", kind="qwen2", spare_rows=32), tmp_path / "run"
    options = [*_SMALL, *_SHORT, "--category", "None", "--backend.name", "torch", "--sft.num-checked", "2"]
    assert main(["qwen2.5-7b", *options, "--policy.pretrained", str(model), "--out", str(out)]) == 0
    begin = load_pretrained(str(model), max_tokens=16384).model.state_dict()
    for name, tensor in _weights(out / "sft").items():
        assert torch.equal(tensor, begin[name])  # the paper has no warm start
    card = json.loads((out / "rec" / "policy" / "policy.json").read_text())
    assert card["game_options"] == {"prompt_style": "full", "max_history": 20}


def test_a_teacher_without_successes_is_no_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_pretrained_model(tmp_path / "hub")
    options = [*_SMALL, "--policy.pretrained", str(model), "--sft.max-users", "2", "--stage", "sft"]
    untrained = ["--sft.num-epochs", "0", "--sft.num-checked", "0", "--out", str(tmp_path / "teacher")]
    assert main(["smollm2", *options, *untrained]) == 0
    again = ["--sft.teacher", f"llm:{tmp_path / 'teacher' / 'sft'}", "--out", str(tmp_path / "pupil")]
    assert main(["smollm2", *options, *again]) == 1
    assert "got none of 2" in " ".join(capsys.readouterr().err.split())
