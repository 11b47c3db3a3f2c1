"""`deeprec prepare` and `deeprec train-trm`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from agents.cli.common import DatasetName, dataset_ref, say


@dataclass(frozen=True)
class Prepare:
    """Read a data set's raw files, or fetch them, and write it in the project's own form."""

    dataset: Positional[DatasetName]
    """Which data set."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""

    def run(self) -> None:
        """Prepare the data set and print where it lies."""
        from trm.data.prepare import prepare_dataset, prepared_folder

        ref = dataset_ref(self.dataset, self.category)
        dataset = prepare_dataset(ref)
        num_users, num_items = dataset.interactions.num_users, dataset.catalog.num_items
        say(f"{ref.key}: {num_users} users, {num_items} items; in {prepared_folder(ref)}")


@dataclass(frozen=True)
class TrainTRM:
    """Train the preference-aware recommender of a data set and print its full-ranking metrics."""

    dataset: Positional[DatasetName]
    """Which data set; it is prepared first if need be."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    fast: bool = False
    """Train briefly; enough to see every step work."""
    log_dir: Path | None = None
    """Where TensorBoard events go."""

    def run(self) -> None:
        """Train, or load what has been trained, and print the metrics."""
        from trm.data.prepare import prepare_dataset
        from trm.evaluate import render_metrics
        from trm.prepare_trm import prepare_trm, trm_folder
        from trm.train import METRICS_FILE

        ref = dataset_ref(self.dataset, self.category)
        prepare_trm(ref, prepare_dataset(ref), fast=self.fast, log_dir=self.log_dir)
        folder = trm_folder(ref)
        say(render_metrics(json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))))
        say(f"{ref.key}: the recommender is in {folder}")
