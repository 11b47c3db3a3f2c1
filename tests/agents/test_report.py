from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents.evaluate import METRICS, AgentSummary, Estimate
from agents.report import (
    Curve,
    load_curves,
    plot_curves,
    render_details,
    render_slopes,
    render_table,
    write_report,
)
from agents.slope import MIN_STEPS, reward_slope
from agents.strata import Stratum, StratumEstimate


def _summary(agent: str, *, num_users: int = 943, mean: float = 0.25) -> AgentSummary:
    return AgentSummary(agent, "ml-100k", "test", num_users, dict.fromkeys(METRICS, Estimate(mean, mean / 2, mean * 2)))


def _noise(rng: np.random.Generator, size: int, correlation: float) -> np.ndarray:
    values = rng.normal(size=size)
    for step in range(1, size):
        values[step] += correlation * values[step - 1]
    return values


def test_the_slope_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(30)
    rewards = 0.1 * steps + rng.normal(size=30)
    slope = reward_slope(steps, rewards)
    assert slope.value == pytest.approx(np.polyfit(steps, rewards, 1)[0])
    assert slope.low < slope.value < slope.high
    assert slope.value - slope.low == pytest.approx(slope.high - slope.value)
    shuffled = rng.permutation(30)
    again = reward_slope(steps[shuffled], rewards[shuffled])
    assert (again.value, again.low) == pytest.approx((slope.value, slope.low))


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.95), (0.5, 0.91)])
@pytest.mark.parametrize("size", [12, 40])
def test_noise_without_a_trend_is_seldom_taken_for_one(correlation: float, least: float, size: int) -> None:
    rng = np.random.default_rng(1)
    slopes = [reward_slope(np.arange(size), _noise(rng, size, correlation)) for _ in range(400)]
    held = np.mean([slope.low <= 0 <= slope.high for slope in slopes])
    assert held >= least


def test_a_clear_trend_is_seen_and_named() -> None:
    steps = np.arange(40)
    noise = _noise(np.random.default_rng(2), 40, 0.3) * 0.1
    assert reward_slope(steps, 0.02 * steps + noise).verdict == "rises"
    assert reward_slope(steps, -0.02 * steps + noise).verdict == "falls"
    assert reward_slope(steps, noise).verdict == "no clear change"


def test_a_constant_reward_neither_rises_nor_falls() -> None:
    assert reward_slope(np.arange(10), np.ones(10)).verdict == "no clear change"


@pytest.mark.parametrize(
    ("steps", "rewards"),
    [(range(3), range(3)), ([1] * 9, range(9)), (range(9), [float("nan")] * 9), (range(9), range(8))],
)
def test_what_has_no_slope_is_refused(steps: object, rewards: object) -> None:
    with pytest.raises(ValueError, match="a slope needs"):
        reward_slope(list(steps), list(rewards))  # type: ignore[call-overload]


def _write_metrics(folder: Path, records: list[dict[str, object]], *, tail: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records) + tail
    (folder / "metrics.jsonl").write_text(text)


def test_metrics_files_give_a_curve_a_stage(tmp_path: Path) -> None:
    records = [{"step": step, "stage": "cold", "reward_mean": step / 10} for step in range(4)]
    records += [{"step": 3, "stage": "cold", "reward_mean": 9.0}]  # resumed: the last value counts
    records += [{"step": 4, "stage": "rec", "reward_mean": 1.0}, {"step": 5, "stage": "rec", "loss": 2.0}]
    _write_metrics(tmp_path / "run" / "llm", records, tail='{"step": 6, "sta')
    cold, rec = load_curves(tmp_path / "run")
    assert cold == Curve("run/llm cold", (0.0, 1.0, 2.0, 3.0), (0.0, 0.1, 0.2, 9.0))
    assert rec == Curve("run/llm rec", (4.0,), (1.0,))


def test_a_stage_is_named_once(tmp_path: Path) -> None:
    _write_metrics(tmp_path / "run" / "cold", [{"step": 0, "stage": "cold", "reward_mean": 1.0}])
    assert [curve.name for curve in load_curves(tmp_path / "run")] == ["run/cold"]


def test_tensorboard_events_serve_where_there_is_no_metrics_file(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run" / "cold")) as writer:
        for step in range(5):
            writer.add_scalar("rollout/reward_mean", step / 4, step)
    (curve,) = load_curves(tmp_path / "run")
    assert curve == Curve("run/cold", (0.0, 1.0, 2.0, 3.0, 4.0), (0.0, 0.25, 0.5, 0.75, 1.0))


def test_no_run_is_an_error_and_an_empty_one_no_curve(tmp_path: Path) -> None:
    assert load_curves(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="no run at"):
        load_curves(tmp_path / "missing")


def test_the_table_has_a_line_an_agent_and_intervals() -> None:
    lines = render_table([_summary("trm"), _summary("a|b")]).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("| Agent | Users | Recall@1 | Recall@5 | Recall@10 | NDCG@5 | NDCG@10 | MRR |")
    assert lines[2].startswith("| trm | 943 | 0.250 (0.125–0.500) |")
    assert lines[3].startswith("| a\\|b |")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_the_second_table_says_where_agents_lose() -> None:
    known = dataclasses.replace(
        _summary("llm"),
        details={"Ranking failure": Estimate(0.5, 0.25, 0.75), "Tokens/user": Estimate(120.4, 1.0, 2.0)},
        coverage=0.125,
        share_by_fault={"num_titles": 0.02, "no_action": 0.01},
    )
    head, _, first, second = render_details([known, _summary("old")]).splitlines()
    cells = dict(zip(head.split(" | "), first.split(" | "), strict=True))
    assert cells["Ranking failure"] == "0.500 (0.250–0.750)"
    assert (cells["Retrieval failure"], cells["Tokens/user"], cells["Coverage"]) == ("-", "120", "0.125")
    assert first.endswith("| num_titles 0.020, no_action 0.010 |")
    assert second == "| old |" + " - |" * 8


def test_the_csv_holds_what_the_second_table_adds(tmp_path: Path) -> None:
    known = dataclasses.replace(
        _summary("llm"), details={"Novelty": Estimate(1.0, 0.5, 1.5)}, coverage=0.5, share_by_fault={"no_action": 0.25}
    )
    strata = [StratumEstimate("llm", "ml-100k", "test", Stratum("n", 1, 4), 7, {"Recall@10": Estimate(0.5, 0.0, 1.0)})]
    write_report([known, _summary("old")], [], tmp_path, strata=strata)
    with (tmp_path / "table.csv").open(newline="") as stream:
        llm, old = csv.DictReader(stream)
    assert (llm["Novelty"], llm["Novelty high"], llm["Coverage"], llm["fault no_action"]) == (
        "1.0",
        "1.5",
        "0.5",
        "0.25",
    )
    assert (old["Novelty"], old["Novelty high"], old["Coverage"], old["fault no_action"]) == ("", "", "", "0.0")
    with (tmp_path / "strata.csv").open(newline="") as stream:
        (line,) = csv.DictReader(stream)
    assert (line["users"], line["num_users"], line["Recall@10 high"]) == ("1–4", "7", "1.0")


def test_slopes_say_no_more_than_the_interval_allows() -> None:
    steps = tuple(float(step) for step in range(20))
    rising = Curve("up", steps, tuple(step / 10 + (step % 3) / 50 for step in steps))
    short = Curve("short", steps[: MIN_STEPS - 1], steps[: MIN_STEPS - 1])
    text = render_slopes([rising, short])
    assert "| rises |" in text
    assert "| too few steps |" in text


def test_a_report_writes_markdown_csv_and_a_picture(tmp_path: Path) -> None:
    steps = tuple(float(step) for step in range(20))
    curves = [Curve("cold", steps, steps), Curve("rec", steps[:3], steps[:3])]
    text = write_report([_summary("trm"), _summary("llm", num_users=200)], curves, tmp_path / "out")
    assert text == (tmp_path / "out" / "table.md").read_text()
    assert "A fixed sample of the 943 users was played by: *llm* 200." in text
    with (tmp_path / "out" / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["agent"] for row in rows] == ["trm", "llm"]
    assert (rows[0]["NDCG@10"], rows[0]["NDCG@10 low"], rows[0]["NDCG@10 high"]) == ("0.25", "0.125", "0.5")
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert picture.width > picture.height > 300
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.png", "table.csv", "table.md"]


def test_no_curves_no_picture(tmp_path: Path) -> None:
    write_report([_summary("trm")], [], tmp_path)
    assert not (tmp_path / "curves.png").exists()
    with pytest.raises(ValueError, match="no reward curve"):
        plot_curves([], tmp_path / "curves.png")


@pytest.mark.parametrize(("num_curves", "shape"), [(1, (1, 1)), (3, (3, 1)), (6, (2, 3)), (7, (3, 3))])
def test_many_curves_stand_in_rows(num_curves: int, shape: tuple[int, int], tmp_path: Path) -> None:
    plot_curves([Curve("run", (0, 1), (0.0, 1.0))] * num_curves, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (shape[0] * 600, shape[1] * 432)
