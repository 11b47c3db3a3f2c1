"""The scripts that carry the names of the paper's repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.processes import ROOT, Service

SCRIPTS = ("recall.sh", "reward.sh", "cold_train.sh", "rec_train.sh", "eval_generate.sh")
TINY = ("--policy.hidden-size", "32", "--policy.num-layers", "2", "--policy.num-heads", "2", "--num-threads", "1")


def run(
    script: str, *args: object, cwd: Path | str = "/", timeout: int = 280, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with the sample data set, from another folder."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DATASET": "sample", **variables}
    environment = {name: value for name, value in environment.items() if value}
    command = ["bash", str(ROOT / "scripts" / script), *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself_and_is_short(script: str) -> None:
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert f"bash scripts/{script}" in done.stdout
    assert "--preset NAME" in done.stdout
    assert len((ROOT / "scripts" / script).read_text().splitlines()) < 40


@pytest.mark.parametrize(
    ("script", "args", "said"),
    [
        ("reward.sh", ("5001",), "expected PORT STAGE"),
        ("rec_train.sh", (), "expected CKPT"),
        ("rec_train.sh", ("/nowhere",), "got /nowhere without policy/"),
        ("eval_generate.sh", ("cpu", "0", "10"), "expected GPU START END CKPT"),
        ("recall.sh", ("--preset", "papr"), "expected a preset out of paper.env, quickstart.env"),
        ("recall.sh", ("--preset",), "expected a value after --preset"),
        ("cold_train.sh", ("--retriever", "http://h:1", "--replay", "/a"), "--replay answers alone"),
    ],
)
def test_a_mistake_is_one_sentence(script: str, args: tuple[str, ...], said: str) -> None:
    done = run(script, *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_presets_set_the_same_variables() -> None:
    names = [
        {line.split(":=")[0] for line in path.read_text().splitlines() if line.startswith(": ")}
        for path in sorted((ROOT / "scripts" / "presets").glob("*.env"))
    ]
    assert len(names) == 2
    assert names[0] == names[1]


@pytest.mark.parametrize(("script", "stages"), [("cold_train.sh", ("sft", "cold")), ("rec_train.sh", ("rec",))])
def test_the_preset_paper_is_the_published_run(script: str, stages: tuple[str, ...], tmp_path: Path) -> None:
    """By the arguments with which the trainer would be started."""
    from agents.llm_grpo import parse_config

    fake = tmp_path / "bin" / "torchrun"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor each in "$@"; do echo "$each"; done\n')
    fake.chmod(0o755)
    (tmp_path / "cold" / "policy").mkdir(parents=True)
    path = f"{fake.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run(script, *([tmp_path / "cold"] if "rec" in stages else []), PRESET="paper", DATASET="", PATH=path)
    assert done.returncode == 0, done.stderr
    launcher, _, arguments = done.stdout.partition("agents/llm_grpo.py\n")
    assert launcher.split() == ["--standalone", "--nproc-per-node", "8"]
    config = parse_config(arguments.splitlines())
    assert config.stage_names == stages
    assert config.policy.pretrained == "Qwen/Qwen2.5-7B"
    assert (config.dataset, config.category, config.game.reward) == ("amazon", "Video_Games", "paper")
    assert (config.cold.num_steps, config.rec.num_steps) == (20, 80)
    for stage in (config.cold, config.rec):
        assert (stage.users_per_step, stage.group_size, stage.max_tokens, stage.users) == (128, 8, 2048, "top0_100")
        assert (stage.learning_rate, stage.kl_coef, stage.clip_low, stage.clip_high) == (1e-6, 0.0, 0.2, 0.28)
        assert (stage.temperature, stage.advantage) == (1.0, "group_mean")
    assert config.policy.max_tokens == 16_384
    assert config.sft.num_epochs == config.sft.num_drills == 0, "stage cold begins with the base model itself"


def test_shards_side_by_side_make_one_folder(tmp_path: Path) -> None:
    command = ["bash", str(ROOT / "scripts" / "eval_generate.sh"), "--out", str(tmp_path), "cpu"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DATASET": "sample"}
    with Service("recall", "--dataset", "sample") as service:
        shards = [
            subprocess.Popen([*command, str(start), str(start + 100), "heuristic", *options], cwd="/", env=environment)
            for start, options in ((0, []), (100, []), (200, ["--retriever", service.url]), (300, ["--quiet"]))
        ]
        assert [shard.wait(timeout=120) for shard in shards] == [0, 0, 0, 0]
    metrics = [sys.executable, str(ROOT / "scripts" / "metric_calc_rec.py"), "--test_results_dir"]
    done = subprocess.run(
        [*metrics, str(tmp_path / "test-heuristic")], capture_output=True, text=True, timeout=60, check=False
    )
    assert "400 of 400 users" in done.stdout, done.stderr


def rewards_of(metrics: Path) -> list[float]:
    return [json.loads(line)["reward_mean"] for line in metrics.read_text().splitlines()]


@pytest.mark.slow
def test_the_paper_s_workflow_from_a_base_model_to_metrics(tmp_path: Path) -> None:
    grpo = ("num-steps", "2"), ("users-per-step", "2"), ("group-size", "2"), ("max-tokens", "32")
    cold = [part for name, value in grpo for part in (f"--cold.{name}", value)]
    rec = [part for name, value in grpo for part in (f"--rec.{name}", value)]
    sft = ["--sft.num-drills", "64", "--sft.max-users", "16", "--sft.num-samples", "1", "--sft.num-epochs", "1"]
    done = run("cold_train.sh", "--out", tmp_path / "run", *TINY, *sft, *cold)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "run" / "cold" / "policy" / "config.json").is_file()

    done = run("rec_train.sh", "run/cold", "--record", "kept.jsonl", *TINY, *rec, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "run" / "rec" / "policy" / "config.json").is_file()

    # The same stage again from a folder of another name, answered from what was kept.
    (tmp_path / "run" / "cold").rename(tmp_path / "elsewhere")
    options = ("--out", "other", "--replay", "kept.jsonl")
    done = run("rec_train.sh", *options, tmp_path / "elsewhere", *TINY, *rec, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    one, other = (tmp_path / run / "rec" / "metrics.jsonl" for run in ("run", "other"))
    assert rewards_of(one) == rewards_of(other), "the same candidates, the same rewards"

    for _ in range(2):
        done = run("eval_generate.sh", "--out", tmp_path / "run", "cpu", 0, 6, "run/rec", "--quiet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    command = [sys.executable, str(ROOT / "scripts" / "metric_calc_rec.py"), "--users", "0", "6", "--test_results_dir"]
    metrics = subprocess.run(
        [*command, str(tmp_path / "run" / "test-rec")], capture_output=True, text=True, timeout=60, check=False
    )
    assert "6 of 400 users" in metrics.stdout, metrics.stderr
    assert "failures, counted as misses" in metrics.stdout
