"""The TRM by kind of preference, mean of several seeds, beside the goals: `python -m benchmarks.trm`.

Trains one configuration, the default, on every data set and seed; what `--runs` already holds is not trained again.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from trm.data.dataset import Dataset
from trm.data.prepare import DatasetRef, prepare_dataset
from trm.evaluate import KINDS, PreferenceKind, find_row, preference_texts, split_examples
from trm.metrics import recall_at_k, standard_error
from trm.prepare_trm import load_cached_encoder
from trm.retriever import ranks_of
from trm.train import METRICS_FILE, train_trm
from trm.train_config import TrainConfig
from trm.training_run import item_text_vectors
from trm.types import TextEncoder

NOTES = "## Notes"
"""What follows this heading is written by hand and kept."""
INDUSTRIAL, MOVIELENS = "amazon:Industrial_and_Scientific", "ml-100k"
GOALS: dict[str, dict[tuple[str, bool, str], str]] = {
    INDUSTRIAL: {
        ("empty", False, "recall@10"): "0.130",
        ("empty", False, "ndcg@10"): "0.078",
        ("vague", False, "recall@10"): "empty - 0.003",
        ("one", False, "recall@10"): "0.38",
        ("informative", False, "recall@10"): "0.80",
        ("other", False, "recall@10"): "0.09",
    },
    MOVIELENS: {
        ("empty", False, "recall@10"): "0.114",
        ("empty", False, "ndcg@10"): "0.054",
        ("empty", True, "recall@10"): "0.154",
        ("empty", True, "ndcg@10"): "0.083",
        ("vague", False, "recall@10"): "empty - 0.005",
        ("one", False, "recall@10"): "0.27",
        ("informative", False, "recall@10"): "0.66",
    },
}


@dataclass(frozen=True)
class Args:
    """What is measured."""

    datasets: tuple[str, ...] = (INDUSTRIAL, MOVIELENS)
    """Data sets, a category after a colon."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    runs: Path = Path("runs/trm")
    """Where the trained models and their metrics lie."""
    write: Path | None = None
    """A Markdown file; standard output, if not given."""


def trained_metrics(dataset: Dataset, encoder: TextEncoder, *, seed: int, folder: Path) -> dict[str, Any]:
    """Return the test metrics of the default configuration, from the folder if it was trained before."""
    if (folder / METRICS_FILE).is_file():
        found: dict[str, Any] = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        return found
    return train_trm(dataset, encoder, TrainConfig(seed=seed), out=folder)


def quality_table(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """Return the metrics of all seeds in one row a kind of preference and treatment of the history."""
    lines = [
        "| preference | history | Recall@10 | of the seeds | goal | NDCG@10 | goal |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in KINDS:
        for excluded in (False, True):
            rows = [find_row(metrics, preference=kind, history_excluded=excluded) for metrics in runs]
            seeds = " ".join(f"{row['recall@10']['mean']:.3f}" for row in rows)
            goals = [GOALS.get(name, {}).get((kind, excluded, metric), "") for metric in ("recall@10", "ndcg@10")]
            recall, ndcg = (_cell(rows, metric) for metric in ("recall@10", "ndcg@10"))
            history = "excluded" if excluded else "left in"
            lines.append(f"| {kind} | {history} | {recall} | {seeds} | {goals[0]} | {ndcg} | {goals[1]} |")
    return "\n".join(lines)


def baseline_table(dataset: Dataset, encoder: TextEncoder, metrics: dict[str, Any]) -> str:
    """Return Recall@10 of what reads no history, or no text."""
    lines = ["| beside it, history left in | preference | Recall@10 |", "| --- | --- | ---: |"]
    examples = split_examples(dataset, "test")
    targets = np.array([example.target for example in examples])
    items = item_text_vectors(dataset, encoder)
    kinds: tuple[PreferenceKind, ...] = ("vague", "one", "informative")
    for kind in kinds:
        vectors = encoder.encode(preference_texts(dataset, examples, kind=kind))
        hits = recall_at_k(ranks_of(vectors @ items.T, targets), 10)
        lines.append(f"| cosine of the texts alone | {kind} | {hits.mean():.3f} ± {standard_error(hits):.3f} |")
    for model in ("popularity", "last-item KNN"):
        cell = find_row(metrics, model=model, preference="-", history_excluded=False)["recall@10"]
        lines.append(f"| {model} | - | {cell['mean']:.3f} ± {cell['standard_error']:.3f} |")
    return "\n".join(lines)


def time_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return what each training took; texts that the encoder's cache on disk holds take no time."""
    lines = [
        "| seed | epochs, best | agreement | texts encoded, s | an epoch, s | to the best epoch, s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for metrics in runs:
        training = metrics["training"]
        lines.append(
            f"| {training['config']['seed']} | {training['epochs']}, {training['best_epoch']} "
            f"| {training['agreement']} | {training['encoding_seconds']:.0f} | {training['epoch_seconds']:.1f} "
            f"| {training['seconds_to_best_epoch']:.0f} |"
        )
    return "\n".join(lines)


def _cell(rows: Sequence[dict[str, Any]], metric: str) -> str:
    mean = np.mean([row[metric]["mean"] for row in rows])
    error = np.mean([row[metric]["standard_error"] for row in rows])
    return f"{mean:.3f} ± {error:.3f}"


def main(args: Args) -> None:
    """Train what is missing and write the tables."""
    encoder = load_cached_encoder()
    parts = []
    for name in args.datasets:
        dataset = prepare_dataset(DatasetRef(*name.split(":")), progress=False)
        runs = [
            trained_metrics(dataset, encoder, seed=seed, folder=args.runs / name.replace(":", "-") / str(seed))
            for seed in args.seeds
        ]
        parts.append(
            f"## {dataset.name}\n\n{runs[0]['num_users']:,} users, {runs[0]['num_items']:,} items.\n\n"
            f"{quality_table(name, runs)}\n\n{baseline_table(dataset, encoder, runs[0])}\n\n{time_table(runs)}\n"
        )
    text = f"""# The recommender by kind of preference, measured

`python -m benchmarks.trm` on {os.cpu_count()} CPU cores, threads: {torch.get_num_threads()}, Python
{platform.python_version()}. Test split, full ranking over all items; mean of the seeds
{", ".join(map(str, args.seeds))} of one default configuration, ± the standard error over the users.

*vague* names what is commonest in the history, *one* a single attribute or keyphrase of the target, *informative* all
of them (an upper bound), *other* those of a random item; their wordings were not trained on. Where a catalogue has few
attributes, keyphrases of the titles stand beside them (`trm/keyphrases.py`).

"""
    text += "\n".join(parts)
    if args.write is None:
        print(text)
    else:
        old = args.write.read_text(encoding="utf-8") if args.write.is_file() else ""
        _, heading, notes = old.partition(f"\n{NOTES}\n")
        args.write.write_text(text + heading + notes, encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
