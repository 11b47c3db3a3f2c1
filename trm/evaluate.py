"""Full-ranking metrics of a TRM by kind of preference, beside popularity and a last-item KNN. Trains nothing.

Every target is ranked among all items. Each figure stands twice: with the history's items left in the ranking, and with
them excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from trm.data.dataset import Dataset
from trm.data.splits import Example, Split
from trm.metrics import ndcg_at_k, recall_at_k, standard_error
from trm.preferences import PreferenceWriter
from trm.retriever import TRMRetriever, ranks_of
from trm.types import FloatArray, IntArray, RetrievalQuery

PreferenceKind = Literal["empty", "vague", "one", "informative", "other"]
KINDS: tuple[PreferenceKind, ...] = ("empty", "vague", "one", "informative", "other")
"""none; the history's commonest attributes; one attribute of the target; all of them; all of another item."""
CUTOFFS = (5, 10, 20)
_BATCH = 256


def preference_texts(
    dataset: Dataset, examples: Sequence[Example], *, kind: PreferenceKind, seed: int = 0
) -> list[str]:
    """Return one preference an example, in wordings that are kept from training; the same for the same seed."""
    writer = PreferenceWriter(dataset.catalog, templates="test")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    others = rng.integers(1, dataset.catalog.num_items + 1, size=len(examples))
    write: Callable[[Example, int], str]
    match kind:
        case "empty":
            return [""] * len(examples)
        case "vague":
            write = lambda example, _: writer.vague(example.history, rng)  # noqa: E731
        case "one":
            write = lambda example, _: writer.one(example.target, rng)  # noqa: E731
        case "informative":
            write = lambda example, _: writer.informative(example.target, rng)  # noqa: E731
        case "other":
            write = lambda _, other: writer.informative(other, rng)  # noqa: E731
    return [write(example, int(other)) for example, other in zip(examples, others)]


def trm_ranks(
    retriever: TRMRetriever, examples: Sequence[Example], preferences: Sequence[str], *, exclude_history: bool
) -> IntArray:
    """Return each target's rank from 1 among all items, int64 [len(examples)]; 0 if it was excluded itself."""
    ranks = []
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        queries = [
            RetrievalQuery(example.history, preference, exclude_history=exclude_history)
            for example, preference in zip(batch, preferences[start : start + _BATCH])
        ]
        ranks.append(retriever.ranks(queries, [example.target for example in batch]))
    return np.concatenate(ranks)


def split_examples(dataset: Dataset, split: Split, *, max_users: int | None = None, seed: int = 0) -> list[Example]:
    """Return the examples of a split whose history is not empty; a fixed random sample past max_users."""
    users = np.arange(dataset.splits.num_users)
    if max_users is not None and len(users) > max_users:
        users = np.sort(np.random.default_rng(seed).choice(users, size=max_users, replace=False))
    examples = (dataset.splits.example(split, int(user)) for user in users)
    return [example for example in examples if example.history]


def evaluate_trm(
    retriever: TRMRetriever, dataset: Dataset, *, split: Split = "test", seed: int = 0, max_users: int | None = None
) -> dict[str, Any]:
    """Return the metrics of all kinds and of the baselines, as JSON holds them.

    `rows` has an entry a model, kind of preference and treatment of the history, with mean and standard error of
    Recall and NDCG at each of CUTOFFS.
    """
    examples = split_examples(dataset, split, max_users=max_users, seed=seed)
    rows = []
    for kind in KINDS:
        texts = preference_texts(dataset, examples, kind=kind, seed=seed)
        for excluded in (False, True):
            ranks = trm_ranks(retriever, examples, texts, exclude_history=excluded)
            rows.append(_row("trm", kind, excluded, ranks))
    for name, scores in (("popularity", popularity_scores), ("last-item KNN", last_item_scores)):
        for excluded in (False, True):
            rows.append(_row(name, "-", excluded, _baseline_ranks(dataset, examples, scores, excluded)))
    return {
        "dataset": dataset.name,
        "split": split,
        "num_users": len(examples),
        "num_items": dataset.catalog.num_items,
        "ranking": "full catalogue",
        "rows": rows,
    }


def popularity_scores(dataset: Dataset, examples: Sequence[Example]) -> Iterator[FloatArray]:
    """Yield, an example, how often each item occurs in the training sequences: float32 [num_items + 1]."""
    counts = dataset.splits.train_counts().astype(np.float32)
    for _ in examples:
        yield counts


def last_item_scores(dataset: Dataset, examples: Sequence[Example]) -> Iterator[FloatArray]:
    """Yield, an example, each item's cosine with the history's last item over the training users, [num_items + 1].

    The last item itself scores 0.
    """
    sequences = [np.unique(dataset.splits.train_sequence(user)) for user in range(dataset.splits.num_users)]
    flat = np.concatenate(sequences)
    user_of_flat = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    order = np.argsort(flat, kind="stable")
    num_columns = dataset.catalog.num_items + 1
    starts = np.searchsorted(flat[order], np.arange(num_columns + 1))
    users_by_item = user_of_flat[order]
    norms = np.sqrt(np.maximum(np.diff(starts), 1)).astype(np.float32)
    for example in examples:
        last = example.history[-1]
        users = users_by_item[starts[last] : starts[last + 1]]
        scores = np.zeros(num_columns, dtype=np.float32)
        if len(users):
            together = np.bincount(np.concatenate([sequences[user] for user in users]), minlength=num_columns)
            scores = together.astype(np.float32) / (norms * norms[last])
            scores[last] = 0.0
        yield scores


def find_row(metrics: dict[str, Any], *, model: str = "trm", preference: str, history_excluded: bool) -> dict[str, Any]:
    """Return the one row of evaluate_trm's metrics that fits.

    Raises:
        KeyError: if there is none.
    """
    for row in metrics["rows"]:
        if (row["model"], row["preference"], row["history_excluded"]) == (model, preference, history_excluded):
            return dict(row)
    raise KeyError(f"expected a row of {model!r}, preference {preference!r}, history_excluded {history_excluded}")


def render_metrics(metrics: dict[str, Any]) -> str:
    """Return a plain table of evaluate_trm's metrics, mean ± standard error."""
    names = [f"{metric}@{cutoff}" for metric in ("Recall", "NDCG") for cutoff in CUTOFFS]
    header = ["model", "preference", "history", *names]
    body = [
        [row["model"], row["preference"], "excluded" if row["history_excluded"] else "left in"]
        + [f"{row[name.lower()]['mean']:.3f} ± {row[name.lower()]['standard_error']:.3f}" for name in names]
        for row in metrics["rows"]
    ]
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [header, *body]]
    lines.insert(1, "  ".join("-" * width for width in widths))
    title = (
        f"TRM on {metrics['dataset']}, {metrics['split']}: {metrics['num_users']} users, every target ranked among "
        f"all {metrics['num_items']} items; mean ± standard error"
    )
    return "\n".join([title, *lines])


def render_model_card(metrics: dict[str, Any]) -> str:
    """Return a short Markdown card of a model that train_trm made."""
    training = metrics["training"]
    return f"""# TRM for {metrics["dataset"]}

A sequential recommendation model that also takes a preference in words. Written by DeepRec's training; `trm.json` and
`trm.npz` beside this file are what `trm.frozen.load_frozen` reads, `metrics.json` holds the figures below.

- Trained on each user's interactions but the last two; the best of {training["epochs"]} epochs (number
  {training["best_epoch"]}) by validation NDCG@10, the geometric mean over all kinds of preference;
  {training["seconds"]:.0f} s in all, {training["encoding_seconds"]:.0f} s of it on texts before the first epoch.
- Texts are encoded by `{training["text_encoder"]}`; a query needs the same encoder.
- Preferences: *vague* names the history's commonest attributes, *one* a single attribute of the target, *informative*
  all of them (an upper bound: it knows the target), *other* those of a random item. Their wordings were not trained on.
  Where the catalogue has few attributes, keyphrases that several titles share count as attributes.
- Knows the items of this catalogue only, and nothing of who likes what beyond this data set.

```
{render_metrics(metrics)}
```
"""


def _row(model: str, kind: str, excluded: bool, ranks: IntArray) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model, "preference": kind, "history_excluded": excluded}
    for cutoff in CUTOFFS:
        for name, metric in (("recall", recall_at_k), ("ndcg", ndcg_at_k)):
            values = metric(ranks, cutoff)
            error = standard_error(values) if len(values) > 1 else 0.0
            row[f"{name}@{cutoff}"] = {"mean": float(values.mean()), "standard_error": error}
    return row


def _baseline_ranks(
    dataset: Dataset,
    examples: Sequence[Example],
    scores_of: Callable[[Dataset, Sequence[Example]], Iterator[FloatArray]],
    excluded: bool,
) -> IntArray:
    ranks = np.zeros(len(examples), dtype=np.int64)
    for place, (example, scores) in enumerate(zip(examples, scores_of(dataset, examples))):
        scores = scores.copy()
        scores[0] = -np.inf
        if excluded:
            scores[list(example.history)] = -np.inf
        ranks[place] = ranks_of(scores[None], np.array([example.target]))[0]
    return ranks
