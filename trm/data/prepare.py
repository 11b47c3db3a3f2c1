"""Prepared data sets: loads one from disk, or makes it from raw files, fetched where a network allows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trm.data.dataset import MANIFEST, Dataset, load_dataset, save_dataset
from trm.data.fetch import WHEEL, fetch_amazon, fetch_ml100k_wheel, fetch_movielens
from trm.data.plugins import load_reader, read_plugin
from trm.data.refs import DATASET_NAMES, DatasetRef, data_home, prepared_folder, raw_home
from trm.data.sources.amazon import AMAZON_2018, AMAZON_2023, DEFAULT_FILTERS, AmazonLayout, read_amazon
from trm.data.sources.assemble import NO_FILTERS, Filters
from trm.data.sources.csv_files import read_csv
from trm.data.sources.deeprec import read_deeprec
from trm.data.sources.ids import read_ids
from trm.data.sources.movielens import read_ml1m, read_ml100k, read_ml_csv
from trm.data.sources.recbole import read_recbole
from trm.errors import DataFormatError, DatasetNotPrepared

__all__ = [
    "DATASET_NAMES",
    "CsvFiles",
    "DatasetRef",
    "data_home",
    "default_filters",
    "load_prepared",
    "prepare_dataset",
    "prepared_folder",
    "raw_home",
]

_AMAZON = {"amazon": AMAZON_2023, "amazon-2018": AMAZON_2018}
_MARKERS = {
    "ml-100k": "ml-100k/u.data",
    "ml-1m": "ml-1m/ratings.dat",
    "ml-20m": "ml-20m/ratings.csv",
    "ml-32m": "ml-32m/ratings.csv",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CsvFiles:
    """What a `csv:NAME` is made from."""

    interactions: Path
    items: Path
    attributes: tuple[str, ...] | None = None
    """The columns that describe an item; all that are nothing else, if not given."""


def default_filters(ref: DatasetRef) -> Filters:
    """Return which interactions of a data set stay where nothing else is asked for."""
    if ref.plugin is not None:
        return load_reader(ref).filters()
    return DEFAULT_FILTERS if ref.name in _AMAZON else NO_FILTERS


def load_prepared(ref: DatasetRef) -> Dataset:
    """Return the data set from disk.

    Raises:
        DatasetNotPrepared: if it is not there, or was made from something else or by rules that no longer hold; the
            message names the command that prepares it.
        DataFormatError: if its files were damaged.
    """
    folder = prepared_folder(ref)
    if not (folder / MANIFEST).is_file():
        raise DatasetNotPrepared(f"the data set {ref.key!r} is not prepared in {folder}; run `{ref.prepare_command}`")
    dataset = load_dataset(folder)
    if (reason := _outdated(dataset, ref, filters=None)) is not None:
        raise DatasetNotPrepared(f"the data set {ref.key!r} in {folder} {reason}; run `{ref.prepare_command}`")
    return dataset


def prepare_dataset(
    ref: DatasetRef, *, filters: Filters | None = None, csv: CsvFiles | None = None, progress: bool = True
) -> Dataset:
    """Return the data set: from disk if it is prepared, else made from raw files (fetched where possible) and saved.

    Args:
        ref: names the data set.
        filters: which interactions stay. If not given, a prepared data set is taken as it is, and a new one is made by
            `default_filters`; one that was prepared otherwise than asked for is made again.
        csv: for `csv:NAME`; a prepared data set is then made again.
        progress: show bars on stderr.

    Raises:
        DatasetNotPrepared: if there are no raw files and they cannot be fetched.
        DataFormatError: if a raw file is not what it should be.
        ValueError: if the options do not go with the data set.
    """
    _check_options(ref, filters=filters, csv=csv)
    folder = prepared_folder(ref)
    if (folder / MANIFEST).is_file() and csv is None:
        try:
            dataset = load_dataset(folder)
            reason = _outdated(dataset, ref, filters=filters)
            if reason is None:
                return dataset
        except DataFormatError as error:
            reason = f"is damaged: {error}"
        logger.warning("preparing %s again: what is there %s", ref.key, reason)
    dataset = _read_raw(ref, filters or default_filters(ref), csv=csv, progress=progress)
    save_dataset(dataset, folder)
    logger.info("%s: saved in %s", ref.key, folder)
    return dataset


def _check_options(ref: DatasetRef, *, filters: Filters | None, csv: CsvFiles | None) -> None:
    if filters is not None and (ref.source == "deeprec" or ref.name == "sample"):
        raise ValueError(f"expected no filters with {ref.name!r}, got {filters}; it is taken as it is")
    if csv is not None and ref.source != "csv":
        raise ValueError(f"expected a data set csv:NAME with --interactions and --items, got {ref.name!r}")


def _outdated(dataset: Dataset, ref: DatasetRef, *, filters: Filters | None) -> str | None:
    """Return why a prepared data set is not what is asked for; None if it is."""
    report = dataset.report
    source = load_reader(ref).source() if ref.plugin is not None else ref.path and str(ref.path)
    if source is not None and report.get("source") != source:
        return f"was made from {report.get('source')}, not from {source}"
    if "filters" not in report and report.get("repeated_interactions_dropped", 0):
        return "was made when repeated interactions were dropped, which are kept now"
    if filters is not None and report.get("filters", str(NO_FILTERS)) != str(filters):
        return f"was made with other filters ({report.get('filters')})"
    return None


def _read_raw(ref: DatasetRef, filters: Filters, *, csv: CsvFiles | None, progress: bool) -> Dataset:
    match ref.source or ref.name:
        case "ml-100k":
            folder = _find_raw(_MARKERS[ref.name])
            wheel = data_home() / "raw" / WHEEL
            if folder is None:
                folder = wheel if wheel.is_file() else _fetch(ref, fetch_ml100k_wheel, wheel.parent)
            return _read_logged(folder, lambda path: read_ml100k(path, filters=filters))
        case "ml-1m":
            folder = _grouplens(ref, progress=progress)
            return _read_logged(folder, lambda path: read_ml1m(path, filters=filters, progress=progress))
        case "ml-20m" | "ml-32m":
            folder = _grouplens(ref, progress=progress)
            return _read_logged(folder, lambda path: read_ml_csv(ref.name, path, filters=filters, progress=progress))
        case "amazon" | "amazon-2018":
            return _read_amazon(ref, _AMAZON[ref.name], filters, progress=progress)
        case "sample":
            raise DatasetNotPrepared(f"the data set {ref.key!r} is not made from raw files; it comes with deeprec_env")
        case _:
            return _read_own(ref, filters, csv=csv, progress=progress)


def _read_own(ref: DatasetRef, filters: Filters, *, csv: CsvFiles | None, progress: bool) -> Dataset:
    if ref.plugin is not None:
        return read_plugin(load_reader(ref), name=ref.key, filters=filters)
    if ref.source == "csv":
        if csv is None:
            raise DatasetNotPrepared(f"the data set {ref.name!r} is not prepared; run `{ref.prepare_command}`")
        return read_csv(
            csv.interactions,
            csv.items,
            name=ref.key,
            attributes=csv.attributes,
            filters=filters,
            progress=progress,
        )
    path = ref.path
    assert path is not None
    if not path.exists():
        raise DatasetNotPrepared(f"expected the raw data of {ref.name!r}, got no such file or folder: {path}")
    if ref.source == "deeprec":
        return _read_logged(path, lambda folder: read_deeprec(folder, name=ref.key))
    read = {"recbole": read_recbole, "ids": read_ids}[str(ref.source)]
    return _read_logged(path, lambda found: read(found, name=ref.key, filters=filters, progress=progress))


def _read_amazon(ref: DatasetRef, layout: AmazonLayout, filters: Filters, *, progress: bool) -> Dataset:
    category = ref.category or ""
    folders = [home / layout.key for home in _raw_homes()]
    folder = next((folder for folder in folders if layout.find(folder, category) is not None), None)
    if folder is None:
        try:
            folder = fetch_amazon(layout, category, folders[-1], progress=progress)
        except DatasetNotPrepared as error:
            raise DatasetNotPrepared(
                f"{error}; expected {layout.file_names(category)} in {' or '.join(map(str, folders))}, got none; put "
                f"them there (DEEPREC_DATA names a folder that holds {layout.key}/) and run `{ref.prepare_command}`"
            ) from error
    return _read_logged(
        folder, lambda path: read_amazon(path, category, layout=layout, filters=filters, progress=progress)
    )


def _grouplens(ref: DatasetRef, *, progress: bool) -> Path:
    if (folder := _find_raw(_MARKERS[ref.name])) is not None:
        return folder
    target = data_home() / "raw" / ref.name
    return _fetch(ref, lambda target: fetch_movielens(ref.name, target, progress=progress), target)


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
