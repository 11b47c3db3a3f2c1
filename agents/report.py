"""Results for people: a table of agents as Markdown and CSV, reward curves as a PNG, and what their slopes say.

Reads what evaluation and trainers have written; computes no metric of its own but the slope.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.evaluate import METRICS, AgentSummary, Estimate
from agents.slope import MIN_STEPS, reward_slope

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
"""Trainers write one line a step: {"step": int, "stage": str, "reward_mean": float, ...}."""
REWARD_TAG = "rollout/reward_mean"
"""The TensorBoard scalar that is read where a run has no metrics file."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean training reward of one run and stage."""

    name: str
    steps: tuple[float, ...]
    rewards: tuple[float, ...]
    """As long as steps."""


def load_curves(run: Path) -> list[Curve]:
    """Return the reward curves of a run's folder, one a stage, in the order of their first steps.

    Every metrics file under the folder is read; where there is none, every folder with TensorBoard events. A step that
    was logged twice (by a run that was resumed) counts once, with its last value.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"there is no run at {run}")
    files = sorted(run.rglob(METRICS_FILE))
    if files:
        return [curve for path in files for curve in _curves_of_metrics(path, run)]
    folders = sorted({path.parent for path in run.rglob("events.out.tfevents.*")})
    return [curve for folder in folders if (curve := _curve_of_events(folder, run)) is not None]


def _curves_of_metrics(path: Path, run: Path) -> list[Curve]:
    points: dict[str, dict[float, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            logger.warning("%s: line %d is cut short and is left out", path, number)
            continue
        if record.get("reward_mean") is not None:
            points.setdefault(str(record.get("stage", "")), {})[float(record["step"])] = float(record["reward_mean"])
    name = _run_name(path.parent, run)
    names = {stage: name if path.parent.name == stage else f"{name} {stage}".strip() for stage in points}
    return [_curve(names[stage], values) for stage, values in points.items()]


def _curve_of_events(folder: Path, run: Path) -> Curve | None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if REWARD_TAG not in events.Tags()["scalars"]:
        return None
    rewards = {float(event.step): float(event.value) for event in events.Scalars(REWARD_TAG)}
    return _curve(_run_name(folder, run), rewards)


def _run_name(folder: Path, run: Path) -> str:
    return run.name if folder == run else f"{run.name}/{folder.relative_to(run)}"


def _curve(name: str, reward_by_step: dict[float, float]) -> Curve:
    steps = sorted(reward_by_step)
    return Curve(name, tuple(steps), tuple(reward_by_step[step] for step in steps))


def plot_curves(curves: Sequence[Curve], path: Path) -> None:
    """Write a PNG with one panel a curve: the rewards, their least-squares line and its slope.

    Raises:
        ValueError: if there is no curve.
    """
    if not curves:
        raise ValueError("there is no reward curve to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(curves), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        steps, rewards = np.array(curve.steps), np.array(curve.rewards)
        axes.plot(steps, rewards, marker=".", linewidth=1, alpha=0.7, label="mean of the rollouts")
        if steps.size >= MIN_STEPS:
            slope = reward_slope(steps, rewards)
            label = f"slope {slope.value:+.3g} [{slope.low:+.3g}, {slope.high:+.3g}]"
            axes.plot(steps, rewards.mean() + slope.value * (steps - steps.mean()), "--", linewidth=1.5, label=label)
        axes.set_title(curve.name)
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("reward")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def render_slopes(curves: Sequence[Curve]) -> str:
    """Return a Markdown table of the curves' slopes."""
    lines = [
        "| Run | Steps | First fifth | Last fifth | Slope a step (95 % interval) | Reward |",
        "|---|---:|---:|---:|---|---|",
    ]
    for curve in curves:
        fifth = max(1, len(curve.rewards) // 5)
        first, last = np.mean(curve.rewards[:fifth]), np.mean(curve.rewards[-fifth:])
        if len(curve.steps) >= MIN_STEPS:
            slope = reward_slope(curve.steps, curve.rewards)
            said = f"{slope.value:+.4f} ({slope.low:+.4f} to {slope.high:+.4f}) | {slope.verdict}"
        else:
            said = "too few steps | "
        lines.append(f"| {_cell(curve.name)} | {len(curve.steps)} | {first:.3f} | {last:.3f} | {said} |")
    return "\n".join(lines) + "\n"


def render_table(summaries: Sequence[AgentSummary]) -> str:
    """Return the Markdown table of agents, one line each, means with their 95 % intervals."""
    names = ("Agent", "Users", *METRICS)
    lines = [f"| {' | '.join(names)} |", f"|---|---:|{'---:|' * len(METRICS)}"]
    for summary in summaries:
        cells = (_cell(summary.agent), str(summary.num_users), *(_metric_cell(name, summary) for name in METRICS))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _metric_cell(name: str, summary: AgentSummary) -> str:
    estimate: Estimate = summary.metrics[name]
    if name == "Seconds/user":
        return f"{estimate.mean:.2g}"
    digits = 2 if name in ("Searches", "Reward") else 3
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f}–{estimate.high:.{digits}f})"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def write_csv(summaries: Sequence[AgentSummary], path: Path) -> None:
    """Write the table with full precision: for every metric its mean and the interval's ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        bounds = (f"{name}{end}" for name in METRICS for end in ("", " low", " high"))
        writer.writerow(["agent", "dataset", "split", "num_users", *bounds])
        for summary in summaries:
            values = (getattr(summary.metrics[name], end) for name in METRICS for end in ("mean", "low", "high"))
            writer.writerow([summary.agent, summary.dataset, summary.split, summary.num_users, *values])
    draft.replace(path)


def write_report(summaries: Sequence[AgentSummary], curves: Sequence[Curve], out: Path) -> str:
    """Write table.md, table.csv and, if there are curves, curves.png into `out`; return the Markdown text."""
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for dataset, split in dict.fromkeys((summary.dataset, summary.split) for summary in summaries):
        group = [summary for summary in summaries if (summary.dataset, summary.split) == (dataset, split)]
        parts.append(f"### {dataset}, {split} split\n\n{render_table(group)}\n{_legend(group)}")
    write_csv(summaries, out / "table.csv")
    if curves:
        plot_curves(curves, out / "curves.png")
        parts.append(f"### Training reward\n\n{render_slopes(curves)}\n![reward curves](curves.png)\n")
    text = "\n".join(parts)
    draft = out / "table.md.tmp"
    draft.write_text(text, encoding="utf-8")
    draft.replace(out / "table.md")
    return text


def _legend(summaries: Sequence[AgentSummary]) -> str:
    most = max(summary.num_users for summary in summaries)
    fewer = [f"*{summary.agent}* {summary.num_users}" for summary in summaries if summary.num_users < most]
    sampled = f" A fixed sample of the {most} users was played by: {', '.join(fewer)}." if fewer else ""
    return (
        "Means over users, in parentheses the 95 % bootstrap interval. The target's rank is its place in the "
        "recommended list; a target that is not in it counts 0. Pool recall: the target is among all candidates seen."
        f"{sampled}\n"
    )
