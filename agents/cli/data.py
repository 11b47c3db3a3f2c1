"""`deeprec prepare`, `deeprec train-trm` and `deeprec export-deeprec`."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from agents.cli.common import dataset_ref, say

if TYPE_CHECKING:
    from trm.data.prepare import CsvFiles, DatasetRef
    from trm.data.sources.assemble import Filters


@dataclass(frozen=True)
class Prepare:
    """Read a data set's raw files, or fetch them, and write it in the project's own form."""

    dataset: Positional[str]
    """ml-100k, ml-1m, ml-20m, ml-32m, amazon or amazon-2018 (with --category), deeprec:DIR (the original layout),
    recbole:DIR (atomic files), ids:FILE (a line a user), csv (with --interactions and --items), or the name by which an
    installed package brings one."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    interactions: Path | None = None
    """For csv: columns user_id, item_id and timestamp."""
    items: Path | None = None
    """For csv: columns item_id, title and whatever describes an item, several values of a kind between "|"."""
    attributes: tuple[str, ...] | None = None
    """For csv: the columns that describe an item; all that are nothing else, if not given."""
    name: str | None = None
    """For csv: the data set is csv:NAME from then on; the name of the first file, if not given."""
    min_interactions: int | None = None
    """Users with fewer interactions are left out."""
    k_core: int | None = None
    """Leave out users and items with fewer interactions than this, until there are none."""
    drop_repeats: bool = False
    """Keep only the first of several interactions of one user with one item."""

    def run(self) -> None:
        """Prepare the data set and print what was kept, what was left out, and where it lies."""
        from trm.data.prepare import prepare_dataset, prepared_folder
        from trm.data.sources.assemble import render_report

        ref, csv = self._ref_and_files()
        with _quiet("trm.data.sources"):  # the account is printed below
            dataset = prepare_dataset(ref, filters=self._filters(ref), csv=csv)
        say(render_report(dataset.report))
        num_users, num_items = dataset.interactions.num_users, dataset.catalog.num_items
        say(f"{ref.key}: {num_users} users, {num_items} items; in {prepared_folder(ref)}")

    def _ref_and_files(self) -> tuple[DatasetRef, CsvFiles | None]:
        from trm.data.prepare import CsvFiles

        options = {
            "interactions": self.interactions,
            "items": self.items,
            "attributes": self.attributes,
            "name": self.name,
        }
        given = [f"--{option}" for option, value in options.items() if value is not None]
        is_csv = self.dataset.partition(":")[0] == "csv"
        if given and not is_csv:
            raise ValueError(f"expected {given[0]} with the data set csv only, got {self.dataset!r}")
        if not given and self.dataset != "csv":
            return dataset_ref(self.dataset, self.category), None
        if self.interactions is None or self.items is None:
            raise ValueError("csv needs both --interactions FILE and --items FILE")
        name = self.dataset
        if name == "csv":
            name = f"csv:{self.name or self.interactions.name.split('.')[0]}"
        return dataset_ref(name, self.category), CsvFiles(self.interactions, self.items, self.attributes)

    def _filters(self, ref: DatasetRef) -> Filters | None:
        """Return the filters that were asked for, the others as by default; None if none was."""
        from trm.data.prepare import default_filters
        from trm.data.sources.assemble import Filters

        if self.min_interactions is None and self.k_core is None and not self.drop_repeats:
            return None
        usual = default_filters(ref)
        return Filters(
            min_interactions=usual.min_interactions if self.min_interactions is None else self.min_interactions,
            k_core=usual.k_core if self.k_core is None else self.k_core,
            drop_repeats=self.drop_repeats,
        )


@dataclass(frozen=True)
class ExportDeepRec:
    """Write a prepared data set in the original DeepRec layout, with embeddings and ranks where its TRM is trained."""

    dataset: Positional[str]
    """A data set that `deeprec prepare` made."""
    folder: Positional[Path]
    """A new folder; gets Retrieval/ and RL/."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""

    def run(self) -> None:
        """Write the layout and print where it lies."""
        from trm.data.prepare import load_prepared
        from trm.data.sources.deeprec_export import write_deeprec
        from trm.prepare_trm import export_arrays

        ref = dataset_ref(self.dataset, self.category)
        dataset = load_prepared(ref)
        arrays = export_arrays(ref, dataset)
        write_deeprec(dataset, self.folder, trm=arrays)
        without = "" if arrays else "; no TRM is trained on it, so there are neither embeddings nor subsets by rank"
        say(f"{ref.key}: {dataset.splits.num_users} users, {dataset.catalog.num_items} items in {self.folder}{without}")


@dataclass(frozen=True)
class TrainTRM:
    """Train the preference-aware recommender of a data set and print its full-ranking metrics."""

    dataset: Positional[str]
    """As `deeprec prepare` takes it (csv:NAME for two CSV files); it is prepared first if need be."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    fast: bool = False
    """Train briefly; enough to see every step work."""
    encoder: str | None = None
    """The text encoder: all-minilm-l6-v2 (the default), wordllama-256 (fast), hashing-256, or none for ids alone."""
    preferences: Path | None = None
    """Written by a language model (`deeprec preferences`); they are mixed in with those made of the attributes."""
    log_dir: Path | None = None
    """Where TensorBoard events go."""

    def run(self) -> None:
        """Train, or load what has been trained, and print the metrics."""
        from trm.data.prepare import prepare_dataset
        from trm.evaluate import render_metrics
        from trm.prepare_trm import prepare_trm, trm_folder
        from trm.train import METRICS_FILE
        from trm.written_preferences import read_written_preferences

        ref = dataset_ref(self.dataset, self.category)
        dataset = prepare_dataset(ref)
        written = None if self.preferences is None else read_written_preferences(self.preferences, dataset)
        prepare_trm(ref, dataset, fast=self.fast, log_dir=self.log_dir, encoder_name=self.encoder, written=written)
        folder = trm_folder(ref)
        say(render_metrics(json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))))
        say(f"{ref.key}: the recommender is in {folder}")


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep what this logger and those below it say, warnings aside, to themselves for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
