"""Measures retrieval: a call against computing everything anew, a million items, text encoders, training without text.

Run it from the repository's root: `python -m benchmarks.retrieval --write benchmarks/results/retrieval.md`, or a part
of it with `--sections small` and so on; only the sections that were measured are replaced in the file. Text encoding is
left out of all figures but those of the encoders. Ratios are of figures of the same run.
"""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from benchmarks.plain_sasrec import SasrecConfig, train_sasrec
from trm.addret import Addret, AddretConfig
from trm.data.dataset import Dataset
from trm.data.prepare import DatasetRef, prepare_dataset
from trm.evaluate import KINDS, find_row, split_examples, trm_ranks
from trm.frozen import FrozenTRM
from trm.index import ExactIndex, FaissIndex, IndexKind, overlap
from trm.metrics import ndcg_at_k, recall_at_k, standard_error
from trm.model import SteerConfig, SteerTRM
from trm.preferences import PreferenceWriter
from trm.retriever import TRMRetriever
from trm.text_encoder import MINILM, NO_TEXT, CachedEncoder, load_encoder
from trm.train import train_trm
from trm.train_config import TrainConfig
from trm.training_run import TrainingRun
from trm.types import FloatArray, IntArray, RetrievalQuery, TextEncoder
from trm.wordllama import WORDLLAMA

Section = Literal["small", "million", "encoders", "ids"]

NUM_ITEMS = 25_612
TEXT_DIM = 1024
DIM = 128
HISTORY = 20
K = 20
NUM_CLUSTERS = 5_000


@dataclass(frozen=True)
class Args:
    """What is measured."""

    sections: tuple[Section, ...] = ("small", "million", "encoders", "ids")
    """The parts; "encoders" and "ids" train models."""
    datasets: tuple[str, ...] = ("ml-100k", "amazon:Industrial_and_Scientific")
    """Where the encoders' Recall@10 is compared."""
    ids: Path = Path(os.environ.get("DEEPREC_DATA", ".")) / "ids" / "Games.txt"
    """Histories without text."""
    ids_users: int = 50_000
    """Test users that are asked for there."""
    kinds: tuple[IndexKind, ...] = ("flat", "ivf", "hnsw")
    """The faiss indexes that are measured at a million items."""
    items: int = 1_000_000
    """How many items a million is."""
    epochs: int | None = None
    """Of the trainings; their own number, if not given."""
    write: Path | None = None
    """A Markdown file; standard output, if not given."""


class FixedEncoder:
    """Random unit vectors for the texts "0", "1", …: what an encoder's cache holds."""

    name = "fixed"
    dim = TEXT_DIM

    def __init__(self, num_texts: int) -> None:
        self.vectors = unit(np.random.default_rng(0).standard_normal((num_texts, TEXT_DIM), dtype=np.float32))

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors of texts."""
        return self.vectors[[int(text) for text in texts]]


def unit(rows: FloatArray) -> FloatArray:
    """Return the rows with norm 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def times_ms(call: Callable[[], object], *, seconds: float = 3.0, least: int = 15) -> np.ndarray:
    """Return the duration of repeated calls, after one to warm up."""
    call()
    durations: list[float] = []
    while len(durations) < least or sum(durations) < seconds:
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return np.array(durations) * 1000


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def small(args: Args) -> str:
    """Return the section on a catalogue of the paper's size."""
    rng = np.random.default_rng(1)
    texts = np.concatenate(
        (np.zeros((1, TEXT_DIM), np.float32), unit(rng.standard_normal((NUM_ITEMS, TEXT_DIM), np.float32)))
    )
    config = SteerConfig(num_items=NUM_ITEMS, text_dim=TEXT_DIM, dim=DIM, max_history=HISTORY)
    frozen = SteerTRM(config, texts).export(encoder_name=FixedEncoder.name)
    addret = Addret(AddretConfig(n_items=NUM_ITEMS, plm_size=TEXT_DIM)).eval()
    addret.item_plm_embedding.weight.data.copy_(torch.from_numpy(texts))
    encoder = FixedEncoder(512)
    rows = []
    for batch in (1, 64, 512):
        anew, product, ours, fresh = calls_ms(frozen, addret, encoder, batch=batch)
        cells = (anew, product, ours, anew / ours, ours / product, fresh, anew / fresh)
        rows.append([str(batch), *(f"{cell:.2f}" for cell in cells)])
    header = ["users", "`addret` anew, ms", "bare product, ms", "retriever, ms", "times as fast", "of the bare product"]
    header += ["histories new, ms", "times as fast"]
    return f"""{NUM_ITEMS:,} items, {DIM} dimensions, {TEXT_DIM:,}-dimensional text, histories of {HISTORY}, the best
{K}. Of repeated calls the fastest counts.

{table(header, rows)}

*`addret` anew*: the published model from ids, everything computed each time (torch), and top-k. *Bare product*: queries
times item vectors (numpy), no top-k. *Retriever*: `TRMRetriever.retrieve`, from queries to candidates, of users seen
before; *histories new*: of users not seen before. Goal: 6 times as fast as `addret` at 64 and 512 users, and within 2
times of the bare product.
"""


def calls_ms(frozen: FrozenTRM, addret: Addret, encoder: FixedEncoder, *, batch: int) -> tuple[float, ...]:
    """Return the fastest of repeated calls: addret, the bare product, the retriever, the same with new histories."""
    rng = np.random.default_rng(batch)
    histories = rng.integers(1, NUM_ITEMS + 1, (batch, HISTORY)).tolist()
    queries = [RetrievalQuery(tuple(history), str(place), k=K) for place, history in enumerate(histories)]
    retriever = TRMRetriever(frozen, encoder)
    vectors = retriever.query_vectors(queries)
    calls = (
        lambda: recompute(addret, queries, encoder),
        lambda: vectors @ frozen.item_vectors.T,
        lambda: retriever.retrieve(queries),
        lambda: TRMRetriever(frozen, encoder).retrieve(queries),
    )
    fastest = [np.inf] * len(calls)
    for _ in range(3):
        fastest = [min(best, times_ms(call, seconds=1).min()) for best, call in zip(fastest, calls)]
    return tuple(fastest)


@torch.inference_mode()
def recompute(model: Addret, queries: Sequence[RetrievalQuery], encoder: FixedEncoder) -> IntArray:
    """Return the best ids by the published model, from ids."""
    histories = torch.tensor([query.history for query in queries])
    lengths = torch.full((len(queries),), HISTORY)
    scores = model.scores(histories, lengths, torch.from_numpy(encoder.encode([query.preference for query in queries])))
    return np.asarray(scores.topk(K).indices)


def million(args: Args) -> str:
    """Return the section on a large catalogue."""
    rng = np.random.default_rng(2)
    vectors = clustered(rng, args.items)
    sets = {batch: [mixed_tastes(rng, vectors, batch) for _ in range(20)] for batch in (1, 64)}
    exact = ExactIndex(vectors)
    truth = np.concatenate([ids_of(exact, queries) for queries in sets[64]])
    rows, exact_p50 = [], {}
    for kind in ("exact", *args.kinds):
        started = time.perf_counter()
        index = exact if kind == "exact" else FaissIndex(vectors, kind=kind)
        built_s = time.perf_counter() - started
        found = np.concatenate([ids_of(index, queries) for queries in sets[64]])
        effort = str(getattr(index, "effort", 0) or "-")
        row = [
            kind,
            f"{built_s:.0f}",
            f"{vectors.nbytes / 1e9:.2f}" if kind == "exact" else f"+ {index.num_bytes / 1e9:.2f}",
            effort,
        ]
        for batch, queries in sets.items():
            place = iter(range(10**9))
            durations = times_ms(lambda: ids_of(index, queries[next(place) % 20]), seconds=5, least=20)  # noqa: B023
            middle, late = np.percentile(durations, (50, 95))
            exact_p50.setdefault(batch, middle)
            row += [f"{middle:.2f} / {late:.2f}", f"{exact_p50[batch] / middle:.1f}"]
        rows.append([*row, f"{overlap(found, truth):.4f}"])
    header = ["index", "built, s", "memory, GB", "effort", "1 query, p50 / p95 ms", "times as fast"]
    header += ["64 queries, p50 / p95 ms", "times as fast", f"Recall@{K}"]
    return f"""{args.items:,} generated items in {NUM_CLUSTERS:,} clusters of uneven size, {DIM} dimensions; queries
between two items, noise added.

{table(header, rows)}

*exact* is numpy, the others are faiss: `flat` exact, `ivf` inverted lists (the default from 200,000 items on), `hnsw` a
graph. *Memory*: the item vectors, and what the index holds beside them. *Effort*: how many lists,
or how long a queue, a search looks at, found when the index is built on queries of another kind (items with noise) so
that 0.995 of the best 20 are found. Recall against *exact*. Goal: 0.99 at 5 times the speed for
the default approximate index.
"""


def clustered(rng: np.random.Generator, num_items: int) -> FloatArray:
    """Return unit vectors around centres, row 0 zeros."""
    centres = rng.standard_normal((NUM_CLUSTERS, DIM), dtype=np.float32)
    of_item = (NUM_CLUSTERS * rng.random(num_items) ** 2).astype(np.int64)
    items = centres[of_item] + 0.5 * rng.standard_normal((num_items, DIM), dtype=np.float32)
    return np.concatenate((np.zeros((1, DIM), np.float32), unit(items)))


def mixed_tastes(rng: np.random.Generator, vectors: FloatArray, batch: int) -> FloatArray:
    """Return unit queries between two items each, with noise."""
    one, two = vectors[rng.integers(1, len(vectors), batch)], vectors[rng.integers(1, len(vectors), batch)]
    noise = rng.standard_normal((batch, DIM), dtype=np.float32) / np.float32(DIM**0.5)
    return unit(one + np.float32(0.5) * two + np.float32(0.3) * noise)


def ids_of(index: Any, queries: FloatArray) -> IntArray:
    """Return the best ids of each query."""
    return np.asarray(index.search(queries, K, excluded=[()] * len(queries))[0])


def encoders(args: Args) -> str:
    """Return the section on text encoders: their speed, and what they do to the recommender."""
    rng = np.random.default_rng(3)
    parts = []
    for name in args.datasets:
        dataset = prepare_dataset(DatasetRef(*name.split(":")), progress=False)
        writer = PreferenceWriter(dataset.catalog, templates="test")
        items = rng.integers(1, dataset.catalog.num_items + 1, 4_000)
        fresh = list(dict.fromkeys(text for item in items if (text := writer.some(int(item), rng))))[:1_024]
        metrics = {encoder: trained_metrics(dataset, encoder, args) for encoder in (MINILM, WORDLLAMA)}
        speeds = {encoder: encodings_a_second(load_encoder(encoder), fresh) for encoder in metrics}
        rows = []
        for encoder, found in metrics.items():
            cells = [find_row(found, preference=kind, history_excluded=False)["recall@10"] for kind in KINDS]
            rows.append(
                [encoder, f"{speeds[encoder]:,.0f}", f"{speeds[encoder] / speeds[MINILM]:.0f}"]
                + [f"{cell['mean']:.3f} ± {cell['standard_error']:.3f}" for cell in cells]
                + [f"{found['training']['seconds']:.0f}"]
            )
        loss = [recall(metrics[MINILM], kind) - recall(metrics[WORDLLAMA], kind) for kind in KINDS]
        rows.append(["loss of Recall@10", "", "", *(f"{value:+.3f}" for value in loss), ""])
        header = ["encoder", "texts a second", "times as fast", *KINDS, "training, s"]
        parts.append(
            f"{dataset.name}, test, full ranking, history left in, one seed; {len(fresh)} fresh preferences in\n"
            f"batches of 64. Recall@10 by kind of preference:\n\n{table(header, rows)}\n"
        )
    return "\n".join(parts)


def recall(metrics: dict[str, Any], kind: str) -> float:
    """Return Recall@10 of a kind of preference."""
    return float(find_row(metrics, preference=kind, history_excluded=False)["recall@10"]["mean"])


def trained_metrics(dataset: Dataset, encoder: str, args: Args) -> dict[str, Any]:
    """Return the test metrics of a TRM that was trained with the encoder."""
    config = TrainConfig() if args.epochs is None else TrainConfig(max_epochs=args.epochs)
    with tempfile.TemporaryDirectory() as folder:
        return train_trm(dataset, CachedEncoder(load_encoder(encoder), None), config, out=Path(folder, "trm"))


def encodings_a_second(encoder: TextEncoder, texts: Sequence[str]) -> float:
    """Return how many of the texts are encoded a second, in batches of 64."""
    batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    return len(texts) / (
        float(np.median(times_ms(lambda: [encoder.encode(batch) for batch in batches], least=3))) / 1000
    )


def ids(args: Args) -> str:
    """Return the section on training without text."""
    dataset = prepare_dataset(DatasetRef(f"ids:{args.ids}"), progress=False)
    num_epochs = args.epochs or TrainConfig().max_epochs
    config = TrainConfig(max_epochs=num_epochs)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(dataset, load_encoder(NO_TEXT), config, folder=Path(folder))
        seconds = []
        with tqdm(total=num_epochs, desc=f"training on {dataset.name}") as bar:
            while not run.finished:
                seconds.append(run.train_epoch()["time/epoch_s"])
                bar.update()
        retriever = TRMRetriever(run.best_model(), load_encoder(NO_TEXT))
        examples = split_examples(dataset, "test", max_users=args.ids_users, seed=0)
        ranks = trm_ranks(retriever, examples, [""] * len(examples), exclude_history=False)
    plain = train_sasrec(dataset, SasrecConfig(num_epochs=num_epochs), test_users=[e.user_index for e in examples])
    figures = (
        ("ours, encoder `none`", run.best_epoch, float(np.median(seconds)), ranks),
        ("plain SASRec", plain.best_epoch, plain.epoch_s, plain.ranks),
    )
    rows = [
        [name, str(epoch), f"{epoch_s:.1f}", *(_with_error(metric(found, 10)) for metric in (recall_at_k, ndcg_at_k))]
        for name, epoch, epoch_s, found in figures
    ]
    ratio = ndcg_at_k(ranks, 10).mean() / ndcg_at_k(plain.ranks, 10).mean()
    sizes = dataset.interactions.num_users, dataset.catalog.num_items, dataset.interactions.num_interactions
    users, items, interactions = (f"{size:,}" for size in sizes)
    return f"""{args.ids.name}: {users} users, {items} items, {interactions} interactions; {num_epochs} epochs at most.

{table(["model", "best epoch", "an epoch, s", "Recall@10", "NDCG@10"], rows)}

Ours has {ratio:.3f} of the plain SASRec's NDCG@10. Metrics are of {len(examples):,} test users, full ranking, history
left in, one seed; settings are the defaults, and those of `benchmarks/plain_sasrec.py`. Our epoch holds its validation
and sees at most {config.max_positions:,} positions; the plain one sees the newest {SasrecConfig().max_history} items of
each user.
"""


def _with_error(values: FloatArray) -> str:
    return f"{values.mean():.4f} ± {standard_error(values):.4f}"


HEADINGS: dict[Section, str] = {
    "small": "One call",
    "million": "A large catalogue",
    "encoders": "Text encoders",
    "ids": "Training without text",
}


def _options(section: Section, args: Args) -> str:
    """Return the options of the command that count for the section and are not as by default."""
    if section == "million" and args.kinds != Args.kinds:
        return f" --kinds {' '.join(args.kinds)}"
    return f" --epochs {args.epochs}" if section in ("encoders", "ids") and args.epochs else ""


def main(args: Args) -> None:
    """Measure the sections and write them."""
    measured = {}
    measures: dict[Section, Callable[[Args], str]]
    measures = {"small": small, "million": million, "encoders": encoders, "ids": ids}
    for section in args.sections:
        text = measures[section](args)
        measured[section] = f"""## {HEADINGS[section]}

`python -m benchmarks.retrieval --sections {section}{_options(section, args)}` on {os.cpu_count()} CPU cores,
{torch.get_num_threads()} threads, Python {platform.python_version()}.

{text}"""
        print(measured[section], flush=True)
    if args.write is None:
        return
    old = args.write.read_text(encoding="utf-8") if args.write.is_file() else ""
    kept = dict(re.findall(r"^(## (?:[^\n]+))\n(.*?)(?=^## |\Z)", old, flags=re.MULTILINE | re.DOTALL))
    parts = ["# Retrieval, measured\n"]
    for section, heading in HEADINGS.items():
        title = f"## {heading}"
        if section in measured:
            parts.append(measured[section])
        elif title in kept:
            parts.append(f"{title}\n{kept[title]}".rstrip() + "\n")
    args.write.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args))
