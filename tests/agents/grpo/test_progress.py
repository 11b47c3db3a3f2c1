import json
from pathlib import Path

from agents.grpo.progress import METRICS_FILE, RunLog, read_metrics


def test_a_resumed_log_forgets_later_steps(tmp_path: Path) -> None:
    log = RunLog(tmp_path, stage="rec", first_step=0)
    for step in range(5):
        log.write(step, {"rollout/reward_mean": float(step), "loss/policy": 0.5})
    log.write_text(4, "transcript/best", "<think>\n1. x")
    log.close()
    log = RunLog(tmp_path, stage="rec", first_step=3)
    log.write(3, {"rollout/reward_mean": 30.0})
    log.close()
    records = read_metrics(tmp_path / METRICS_FILE)
    assert [(record["step"], record["reward_mean"]) for record in records] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
    assert {record["stage"] for record in records} == {"rec"}
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_line_that_was_cut_short_ends_the_file(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(json.dumps({"step": 0}) + '\n{"step": 1, "rew')
    assert read_metrics(path) == [{"step": 0}]
    assert read_metrics(tmp_path / "none") == []
