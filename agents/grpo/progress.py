"""A run's record: one line a step in metrics.jsonl, TensorBoard events, and whether the reward rises."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
BAR_INTERVAL_S = 0.5 if sys.stderr.isatty() else 20.0
"""How often a progress bar is drawn: seldom where it would fill a log file."""


@dataclass(frozen=True, slots=True)
class Slope:
    """A least-squares line through a curve: its slope a step and the slope's 95 % interval."""

    slope: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the slope and its interval."""
        return f"{self.slope:+.5f} a step, 95 % interval [{self.low:+.5f}, {self.high:+.5f}]"


def fit_slope(values: Sequence[float]) -> Slope:
    """Return the slope of values over 0, 1, 2, ...; the interval takes the steps' errors as independent.

    Raises:
        ValueError: with fewer than 3 values, through which a line has no error.
    """
    count = len(values)
    if count < 3:
        raise ValueError(f"expected at least 3 values to fit a slope, got {count}")
    steps = np.arange(count, dtype=np.float64) - (count - 1) / 2
    heights = np.asarray(values, dtype=np.float64)
    spread = float((steps**2).sum())
    slope = float((steps * heights).sum()) / spread
    residuals = heights - heights.mean() - slope * steps
    margin = _student_quantile(count - 2) * math.sqrt(float((residuals**2).sum()) / (count - 2) / spread)
    return Slope(slope, slope - margin, slope + margin)


def _student_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, by its expansion about the normal one (Abramowitz & Stegun 26.7.5)."""
    exact = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}
    if freedom in exact:
        return exact[freedom]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


class RunLog:
    """Where a stage writes what it measures. Steps after the one that is resumed are forgotten."""

    def __init__(self, folder: Path, *, stage: str, first_step: int) -> None:
        """Open the log.

        Args:
            folder: of the stage.
            stage: stands in every line.
            first_step: the step that comes next; later ones, of a run that was killed, are dropped.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._stage = stage
        self._path = folder / METRICS_FILE
        kept = [record for record in read_metrics(self._path) if record["step"] < first_step]
        draft = self._path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        draft.replace(self._path)
        self._stream = self._path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a step's metrics; `rollout/reward_mean` stands in the line as `reward_mean` too."""
        record: dict[str, Any] = {"step": step, "stage": self._stage}
        if "rollout/reward_mean" in metrics:
            record["reward_mean"] = metrics["rollout/reward_mean"]
        self._stream.write(json.dumps({**record, **metrics}) + "\n")
        self._stream.flush()
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def write_text(self, step: int, name: str, text: str) -> None:
        """Write a text, such as a transcript, shown as it is."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.split("\n")), step)

    def close(self) -> None:
        """Close the files."""
        self._stream.close()
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; [] without one. A line that was cut short ends the file."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
