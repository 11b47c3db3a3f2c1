"""What training runs have logged: every scalar of every run under a folder, from TensorBoard's event files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

EVENTS = "events.out.tfevents.*"
METRICS_FILE = "metrics.jsonl"
"""Trainers of this project write the same scalars there, a line a step: {"step": int, "stage": str, "reward_mean":
float, …}. It is read where a run has no event files."""
EVENTS_FOLDER = "tensorboard"
"""What a run's folder calls the folder of its events; it does not stand in the run's name."""

Series = tuple[tuple[float, ...], tuple[float, ...]]
"""Steps, ascending, and a value for each."""


@dataclass(frozen=True, slots=True)
class RunLogs:
    """The scalars of one run or stage."""

    name: str
    """Its folder, seen from the one that was searched."""
    scalars: Mapping[str, Series]
    """By tag, such as rollout/reward_mean, in the alphabet's order."""


def load_run_logs(folder: Path) -> list[RunLogs]:
    """Return the runs under a folder, in the order of their first events; those without a scalar are left out.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no run at {folder}")
    event_folders = sorted({path.parent for path in folder.rglob(EVENTS)}, key=_first_event)
    found = [RunLogs(_name(_run_of(path), folder), _read_events(path)) for path in event_folders]
    named = {run.name for run in found}
    for path in sorted(folder.rglob(METRICS_FILE)):
        if (name := _name(path.parent, folder)) not in named:
            found.append(RunLogs(name, _read_metrics(path)))
    return [run for run in found if run.scalars]


def _first_event(folder: Path) -> tuple[str, str]:
    return min(path.name for path in folder.glob(EVENTS)), str(folder)  # the name holds the time of its making


def _run_of(events: Path) -> Path:
    return events.parent if events.name == EVENTS_FOLDER else events


def _name(run: Path, folder: Path) -> str:
    return run.relative_to(folder).as_posix() if run != folder else folder.resolve().name


def _read_events(folder: Path) -> dict[str, Series]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    points = {
        tag: {float(event.step): float(event.value) for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    return _series(points)


def iter_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file; one that is cut short is left out with a warning."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            logger.warning("%s: line %d is cut short and is left out", path, number)


def _read_metrics(path: Path) -> dict[str, Series]:
    points: dict[str, dict[float, float]] = {}
    for record in iter_metrics(path):
        for tag, value in record.items():
            if "/" in tag and isinstance(value, int | float):
                points.setdefault(tag, {})[float(record["step"])] = float(value)
    return _series(points)


def _series(points: Mapping[str, Mapping[float, float]]) -> dict[str, Series]:
    """Return the points as series; a step that was logged twice, by a run that was resumed, has its last value."""
    return {
        tag: (tuple(sorted(by_step)), tuple(by_step[step] for step in sorted(by_step)))
        for tag, by_step in sorted(points.items())
    }
