"""Results for people: tables of agents as Markdown and CSV, reward curves as a PNG, and what their slopes say.

Reads what evaluation and trainers have written; computes no metric of its own but the slope.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.compare import Difference, render_differences
from agents.evaluate import DETAILS, METRICS, AgentSummary, Estimate
from agents.slope import MIN_STEPS, reward_slope
from agents.strata import StratumEstimate
from agents.training_log import EVENTS, METRICS_FILE, iter_metrics

REWARD_TAG = "rollout/reward_mean"
"""The TensorBoard scalar that is read where a run has no metrics file."""
_ENDS = ("", " low", " high")
"""What follows a metric's name where mean and interval stand in columns of their own."""


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
    folders = sorted({path.parent for path in run.rglob(EVENTS)})
    return [curve for folder in folders if (curve := _curve_of_events(folder, run)) is not None]


def _curves_of_metrics(path: Path, run: Path) -> list[Curve]:
    points: dict[str, dict[float, float]] = {}
    for record in iter_metrics(path):
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

    More than three stand in rows, an even number of them in pairs, as runs of two stages come.

    Raises:
        ValueError: if there is no curve.
    """
    if not curves:
        raise ValueError("there is no reward curve to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = 2 if len(curves) % 2 == 0 else min(3, len(curves))
    num_rows = math.ceil(len(curves) / num_columns)
    figure = Figure(figsize=(5.0 * num_columns, 3.6 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    for axes, curve in zip(panels, curves):
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


def render_details(summaries: Sequence[AgentSummary]) -> str:
    """Return the second Markdown table: where agents lose, and what their lists are like; "-" where rows do not say."""
    names = ("Agent", *DETAILS, "Coverage", "Faults")
    lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(DETAILS) + 1)}---|"]
    for summary in summaries:
        estimates = [summary.details.get(name) for name in DETAILS]
        cells = [_estimate_cell(name, estimate) for name, estimate in zip(DETAILS, estimates, strict=True)]
        coverage = "-" if summary.coverage is None else f"{summary.coverage:.3f}"
        faults = ", ".join(f"{fault} {share:.3f}" for fault, share in summary.share_by_fault.items())
        lines.append(f"| {' | '.join((_cell(summary.agent), *cells, coverage, faults or '-'))} |")
    return "\n".join(lines) + "\n"


def _metric_cell(name: str, summary: AgentSummary) -> str:
    return _estimate_cell(name, summary.metrics[name])


def _estimate_cell(name: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if name == "Seconds/user":
        return f"{estimate.mean:.2g}"
    if name == "Tokens/user":
        return f"{estimate.mean:.0f}"
    digits = 2 if name in ("Searches", "Reward", "Novelty") else 3
    return f"{estimate.mean:.{digits}f} ({estimate.low:.{digits}f}–{estimate.high:.{digits}f})"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def write_csv(summaries: Sequence[AgentSummary], path: Path) -> None:
    """Write both tables with full precision: for every metric its mean and the interval's ends.

    Coverage and the share of each kind of fault have no interval. What rows do not say is left empty.
    """
    faults = sorted({fault for summary in summaries for fault in summary.share_by_fault})
    names = (*METRICS, *DETAILS)
    header = ["agent", "dataset", "split", "num_users", *(f"{name}{end}" for name in names for end in _ENDS)]
    lines: list[list[object]] = []
    for summary in summaries:
        estimates = {**summary.metrics, **summary.details}
        values = [
            getattr(estimates[name], end) if name in estimates else ""
            for name in names
            for end in ("mean", "low", "high")
        ]
        coverage = "" if summary.coverage is None else summary.coverage
        shares = [summary.share_by_fault.get(fault, 0.0) for fault in faults]
        lines.append([summary.agent, summary.dataset, summary.split, summary.num_users, *values, coverage, *shares])
    _write_lines(path, [*header, "Coverage", *(f"fault {fault}" for fault in faults)], lines)


def write_strata_csv(strata: Sequence[StratumEstimate], path: Path) -> None:
    """Write a line for every agent in every group of users."""
    names = list(dict.fromkeys(name for entry in strata for name in entry.metrics))
    header = ["dataset", "split", "dimension", "users", "agent", "num_users"]
    header += [f"{name}{end}" for name in names for end in _ENDS]
    lines: list[list[object]] = [
        [entry.dataset, entry.split, entry.stratum.dimension, entry.stratum.label, entry.agent, entry.num_users]
        + [getattr(entry.metrics[name], end) for name in names for end in ("mean", "low", "high")]
        for entry in strata
    ]
    _write_lines(path, header, lines)


def _write_lines(path: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *lines])
    draft.replace(path)


def write_report(
    summaries: Sequence[AgentSummary],
    curves: Sequence[Curve],
    out: Path,
    *,
    differences: Sequence[Difference] = (),
    strata: Sequence[StratumEstimate] = (),
) -> str:
    """Write table.md, table.csv and, where there is something for them, strata.csv and curves.png into `out`.

    Returns:
        The text of table.md.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for dataset, split in dict.fromkeys((summary.dataset, summary.split) for summary in summaries):
        group = [summary for summary in summaries if (summary.dataset, summary.split) == (dataset, split)]
        parts.append(f"### {dataset}, {split} split\n\n{render_table(group)}\n{_legend(group)}")
        parts.append(f"Where they lose:\n\n{render_details(group)}\n{_DETAILS_LEGEND}")
        paired = [entry for entry in differences if (entry.dataset, entry.split) == (dataset, split)]
        if paired:
            parts.append(f"Less *{paired[0].baseline}*, user by user:\n\n{render_differences(paired)}")
    write_csv(summaries, out / "table.csv")
    if strata:
        write_strata_csv(strata, out / "strata.csv")
    if curves:
        plot_curves(curves, out / "curves.png")
        parts.append(f"### Training reward\n\n{render_slopes(curves)}\n![reward curves](curves.png)\n")
    text = "\n".join(parts)
    draft = out / "table.md.tmp"
    draft.write_text(text, encoding="utf-8")
    draft.replace(out / "table.md")
    return text


_DETAILS_LEGEND = (
    "Retrieval failure: no search found the target. Ranking failure: a search found it, the list does not hold it. "
    "Format failure: no well-formed list; faults by kind. Novelty: mean -log2 of the share of users who chose an item, "
    "in bits. Coverage: share of the catalogue in at least one list. Tokens: sampled.\n"
)


def _legend(summaries: Sequence[AgentSummary]) -> str:
    most = max(summary.num_users for summary in summaries)
    fewer = [f"*{summary.agent}* {summary.num_users}" for summary in summaries if summary.num_users < most]
    sampled = f" A fixed sample of the {most} users was played by: {', '.join(fewer)}." if fewer else ""
    return (
        "Means over users, in parentheses the 95 % bootstrap interval. The target's rank is its place in the "
        "recommended list; a target that is not in it counts 0. Pool recall: the target is among all candidates seen."
        f"{sampled}\n"
    )
