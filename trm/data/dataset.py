"""A prepared data set: catalogue, interactions and the account of how they came about, in memory and on disk.

On disk: `manifest.json` (version, counts, report, checksums), `items.jsonl` (an item a line), `interactions.npz`.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trm.data.catalog import Catalog, Item
from trm.data.interactions import Interactions
from trm.data.splits import LeaveOneOut
from trm.data.storage import file_sha256, written_folder
from trm.errors import DataFormatError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_ITEMS = "items.jsonl"
_INTERACTIONS = "interactions.npz"


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a reader makes and everything else starts from."""

    name: str
    """E.g. "ml-100k" or "amazon-Industrial_and_Scientific"."""
    catalog: Catalog
    interactions: Interactions
    report: Mapping[str, int | str] = field(default_factory=dict)
    """What was read, what was dropped and why: counts by name."""

    def __post_init__(self) -> None:
        """Check that the catalogue knows every item.

        Raises:
            ValueError: if an interaction names an item beyond the catalogue.
        """
        largest = int(self.interactions.item_ids.max(initial=0))
        if largest > self.catalog.num_items:
            raise ValueError(f"expected item ids up to {self.catalog.num_items}, got {largest}")

    @cached_property
    def splits(self) -> LeaveOneOut:
        """The leave-one-out split; made once."""
        return LeaveOneOut(self.interactions, num_items=self.catalog.num_items)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the items and the histories, of all that a recommender learns from; made once."""
        digest = hashlib.sha256()
        for item in self.catalog:
            digest.update(json.dumps(_item_record(item)).encode())
        digest.update(np.ascontiguousarray(self.interactions.offsets, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(self.interactions.item_ids, dtype="<i8").tobytes())
        return digest.hexdigest()


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """Write the data set into folder, whole or not at all; what was there before is replaced."""
    with written_folder(folder) as draft:
        with (draft / _ITEMS).open("w", encoding="utf-8") as file:
            for item in dataset.catalog:
                file.write(json.dumps(_item_record(item), ensure_ascii=False) + "\n")
        interactions = dataset.interactions
        np.savez_compressed(
            draft / _INTERACTIONS,
            user_ids=np.array(interactions.user_ids, dtype=np.str_),
            offsets=interactions.offsets,
            item_ids=interactions.item_ids,
            timestamps=interactions.timestamps,
        )
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": dataset.name,
            "num_users": interactions.num_users,
            "num_items": dataset.catalog.num_items,
            "num_interactions": interactions.num_interactions,
            "report": dict(dataset.report),
            "sha256": {name: file_sha256(draft / name) for name in (_ITEMS, _INTERACTIONS)},
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (draft / MANIFEST).write_text(text, encoding="utf-8")


def load_dataset(folder: Path) -> Dataset:
    """Return the data set that save_dataset wrote.

    Raises:
        DataFormatError: if a file is missing, of another version, or not as it was written.
    """
    manifest = _load_manifest(folder)
    try:
        items = _load_items(folder / _ITEMS)
        dataset = Dataset(
            name=manifest["name"],
            catalog=Catalog(items),
            interactions=_load_interactions(folder / _INTERACTIONS),
            report=manifest["report"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataFormatError(f"{folder}: expected a prepared data set, got {error}; prepare it again") from error
    return dataset


def _item_record(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "source_id": item.source_id,
        "title": item.title,
        "attributes": {kind: list(values) for kind, values in item.attributes.items()},
        "description": item.description,
        "year": item.year,
    }


def _load_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder whose files have the checksums that it names."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataFormatError(f"{path}: expected a prepared data set, got no such file; prepare it first") from error
    except ValueError as error:
        raise DataFormatError(f"{path}: expected JSON, got {error}; prepare the data set again") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DataFormatError(f"{path}: expected format version {FORMAT_VERSION}, got {version}; prepare it again")
    checksums = manifest.get("sha256")
    for name in (_ITEMS, _INTERACTIONS):
        expected = checksums.get(name) if isinstance(checksums, dict) else None
        try:
            actual = file_sha256(folder / name)
        except FileNotFoundError as error:
            raise DataFormatError(f"{folder / name}: no such file; prepare the data set again") from error
        if actual != expected:
            raise DataFormatError(
                f"{folder / name}: expected the sha256 {expected}, got {actual}; prepare the data set again"
            )
    return manifest


def _load_items(path: Path) -> list[Item]:
    items = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            record["attributes"] = {kind: tuple(values) for kind, values in record["attributes"].items()}
            items.append(Item(**record))
    return items


def _load_interactions(path: Path) -> Interactions:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Interactions(
                user_ids=tuple(arrays["user_ids"].tolist()),
                offsets=arrays["offsets"],
                item_ids=arrays["item_ids"],
                timestamps=arrays["timestamps"],
            )
    except zipfile.BadZipFile as error:
        raise DataFormatError(f"{path}: expected a whole .npz file, got {error}; prepare it again") from error
