"""Saving and loading a data set, and what happens to damaged ones."""

import json
import multiprocessing

import numpy as np
import pytest

from trm.data.catalog import Catalog
from trm.data.dataset import Dataset, load_dataset, save_dataset
from trm.data.storage import written_folder
from trm.errors import DataFormatError


def test_loading_gives_what_was_saved(dataset, tmp_path):
    save_dataset(dataset, tmp_path / "toy")
    loaded = load_dataset(tmp_path / "toy")
    assert loaded.name == "toy"
    assert list(loaded.catalog) == list(dataset.catalog)
    assert loaded.interactions.user_ids == dataset.interactions.user_ids
    for name in ("offsets", "item_ids", "timestamps"):
        np.testing.assert_array_equal(getattr(loaded.interactions, name), getattr(dataset.interactions, name))
    assert loaded.report == dataset.report
    assert loaded.splits is loaded.splits


def test_saving_twice_gives_the_same_bytes(dataset, tmp_path):
    for name in ("one", "two"):
        save_dataset(dataset, tmp_path / name)
    for file in ("manifest.json", "items.jsonl", "interactions.npz"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_saving_replaces_and_leaves_nothing_behind(dataset, tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "stale").touch()
    save_dataset(dataset, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["interactions.npz", "items.jsonl", "manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_failed_write_changes_nothing(dataset, tmp_path):
    save_dataset(dataset, tmp_path / "toy")
    with pytest.raises(FileNotFoundError), written_folder(tmp_path / "toy") as draft:
        (draft / "half").write_bytes((draft / "missing").read_bytes())
    assert load_dataset(tmp_path / "toy").name == "toy"
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def _save_repeatedly(dataset, folder):
    for _ in range(10):
        save_dataset(dataset, folder)


def test_two_processes_may_save_at_once(dataset, tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_save_repeatedly, args=(dataset, tmp_path / "toy")) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert load_dataset(tmp_path / "toy").name == "toy"
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


@pytest.mark.parametrize("name", ["items.jsonl", "interactions.npz"])
def test_damaged_files_are_noticed(dataset, tmp_path, name):
    save_dataset(dataset, tmp_path / "toy")
    path = tmp_path / "toy" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataFormatError, match=rf"{name}.*sha256"):
        load_dataset(tmp_path / "toy")
    path.unlink()
    with pytest.raises(DataFormatError, match=rf"{name}: no such file"):
        load_dataset(tmp_path / "toy")


def test_other_versions_and_missing_manifests_are_refused(dataset, tmp_path):
    save_dataset(dataset, tmp_path / "toy")
    path = tmp_path / "toy" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(DataFormatError, match="version 1, got 99"):
        load_dataset(tmp_path / "toy")
    path.write_text("{")
    with pytest.raises(DataFormatError, match="expected JSON"):
        load_dataset(tmp_path / "toy")
    with pytest.raises(DataFormatError, match="no such file"):
        load_dataset(tmp_path / "elsewhere")


def test_interactions_beyond_the_catalogue_are_refused(dataset):
    small = Catalog(list(dataset.catalog)[:2])
    with pytest.raises(ValueError, match="up to 2, got 4"):
        Dataset("toy", small, dataset.interactions)
