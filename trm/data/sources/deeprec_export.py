"""The data layout of the original DeepRec, written: `Retrieval/` for the recommender, `RL/` for the agent's training.

Keys beyond the original's (`source_id`, `attributes`, `description`, `year` of items; `user_id`, `timestamps` of test
lines) hold what it has no place for, so that `read_deeprec` gives the same data set again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm.data.catalog import Item
from trm.data.dataset import Dataset
from trm.data.sources.deeprec import CATEGORIES_AS_TEXT, ID_FILES, META, RETRIEVAL
from trm.data.splits import Split
from trm.data.storage import written_folder
from trm.data.user_numbers import are_numbers, user_numbers
from trm.types import FloatArray, IntArray

TEXT_VECTORS = "meta.embeddings.npy"
ID_VECTORS = "embeddings.npy"
RL = "RL"
TRAIN_TEXTS = "train.jsonl"
SUBSETS = "data_idx_two_stage.json"

_TOP = 100
_COLD_EVERY = 5
"""One in so many users is of stage 1, as the paper's 20 iterations of stage cold are to its 80 of rec."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TRMArrays:
    """What a trained recommender adds to the layout."""

    item_text_vectors: FloatArray
    """float32 [num_items + 1, P], row 0 zeros."""
    item_id_vectors: FloatArray
    """float32 [num_items + 1, D], row 0 zeros."""
    ranks: IntArray
    """int64 [num_users], the rank from 1 of each user's training target without a preference; 0 if it has none."""


def write_deeprec(dataset: Dataset, folder: Path, *, trm: TRMArrays | None = None) -> None:
    """Write the data set into a new folder, whole or not at all.

    Users with fewer than 3 interactions have no place in the layout; a line of the training file needs a history, so
    users with 3 have none. Without a TRM the embeddings are left out, and the subsets of users are all of them.

    Args:
        dataset: what is written.
        folder: must not be there, or be empty.
        trm: of this data set.

    Raises:
        FileExistsError: if folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"expected a new or empty folder, got {folder}; name another")
    left_out = dataset.interactions.num_users - dataset.splits.num_users
    if left_out:
        logger.warning("%d users with fewer than 3 interactions have no place in the layout and are left out", left_out)
    with written_folder(folder) as draft:
        retrieval, rl = draft / RETRIEVAL, draft / RL
        retrieval.mkdir()
        rl.mkdir()
        _write_meta(dataset, retrieval / META)
        layout_ids = user_numbers(dataset.splits.user_ids)
        for split, name in ID_FILES.items():
            _write_lines(retrieval / name, _id_lines(dataset, split, layout_ids))  # type: ignore[arg-type]
        _write_lines(rl / TRAIN_TEXTS, _text_lines(dataset, layout_ids))
        if trm is not None:
            np.save(retrieval / TEXT_VECTORS, trm.item_text_vectors)
            np.save(retrieval / ID_VECTORS, trm.item_id_vectors)
        text = json.dumps(_subsets(layout_ids, None if trm is None else trm.ranks))
        (rl / SUBSETS).write_text(text + "\n", encoding="utf-8")


def _write_meta(dataset: Dataset, path: Path) -> None:
    as_text = bool(dataset.report.get(CATEGORIES_AS_TEXT))
    ids = _layout_item_ids(dataset)
    records = {
        str(ids[item.item_id]): _meta_record(item, ids[item.item_id], as_text=as_text) for item in dataset.catalog
    }
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _meta_record(item: Item, layout_id: int | str, *, as_text: bool) -> dict[str, Any]:
    """Return the item as the layout has it; only what it has no place for goes into further keys."""
    attributes = {kind: list(values) for kind, values in item.attributes.items()}
    record: dict[str, Any] = {"title": item.title}
    if list(attributes) == ["category"] and len(attributes["category"]) == 1:
        record["category"] = attributes["category"][0]
    else:
        categories = [value for values in attributes.values() for value in values]
        if as_text:
            record["categories"] = ", ".join(categories)
        elif categories:
            record["categories"] = categories
        if list(attributes) not in ([], ["categories"]):
            record["attributes"] = attributes
    if str(layout_id) != item.source_id:
        record["source_id"] = item.source_id
    if item.description:
        record["description"] = item.description
    if item.year is not None:
        record["year"] = item.year
    return record


def _layout_item_ids(dataset: Dataset) -> Mapping[int, int | str]:
    """Return the id of each item in the layout: its own if all are whole numbers, else its place from 1."""
    own = {item.item_id: item.source_id for item in dataset.catalog}
    if are_numbers(own.values()):
        return {item_id: int(source_id) for item_id, source_id in own.items()}
    return {item_id: item_id for item_id in own}


def _id_lines(dataset: Dataset, split: Split, layout_ids: list[int]) -> Iterable[dict[str, Any]]:
    splits, interactions = dataset.splits, dataset.interactions
    item_ids = _layout_item_ids(dataset)
    row_by_user = {user_id: row for row, user_id in enumerate(interactions.user_ids)}
    for user, idx in enumerate(layout_ids):
        example = splits.example(split, user)
        if not example.history:
            continue
        line: dict[str, Any] = {
            "idx": idx,
            "history": [item_ids[item_id] for item_id in example.history],
            "target": item_ids[example.target],
        }
        if split == "test":
            row = row_by_user[example.user_id]
            times = interactions.timestamps[interactions.offsets[row] : interactions.offsets[row + 1]].tolist()
            if times != list(range(len(times))):
                line["timestamps"] = times
            if example.user_id != str(idx):
                line["user_id"] = example.user_id
        yield line


def _text_lines(dataset: Dataset, layout_ids: list[int]) -> Iterable[dict[str, Any]]:
    for user, idx in enumerate(layout_ids):
        example = dataset.splits.example("train", user)
        if example.history:
            titles = [dataset.catalog.title(item_id) for item_id in example.history]
            text = "\n".join(f"{place}. {title}" for place, title in enumerate(titles, start=1))
            yield {"idx": idx, "history": text, "target": dataset.catalog.title(example.target)}


def _subsets(layout_ids: list[int], ranks: IntArray | None) -> dict[str, list[int]]:
    """Return the users of both stages by the names that the original gives them."""
    name, chosen = "all", layout_ids
    if ranks is not None:
        name = f"top0_{_TOP}"
        chosen = [idx for idx, rank in zip(layout_ids, ranks.tolist()) if 0 < rank <= _TOP]
    return {
        f"{name}_stage1": chosen[::_COLD_EVERY],
        f"{name}_stage2": [idx for place, idx in enumerate(chosen) if place % _COLD_EVERY],
    }


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
