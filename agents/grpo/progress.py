"""A run's record: one line a step in metrics.jsonl, TensorBoard events, and whether the reward rises."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from agents.training_log import METRICS_FILE

__all__ = ["METRICS_FILE", "RunLog", "read_metrics"]

logger = logging.getLogger(__name__)


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
        """Close the files; what cannot be written any more is a warning, for a run ends with an error of its own."""
        for part in (self._stream, self._writer):
            try:
                part.close()
            except OSError as error:
                logger.warning("the end of the log in %s is not written: %s", self._path.parent, error)


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
