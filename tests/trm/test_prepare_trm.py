"""A TRM belongs to the data that it was trained on; one of other data is never used silently."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.trm.worlds import colour_world
from trm.data.catalog import Catalog, Item
from trm.data.dataset import Dataset
from trm.data.prepare import DatasetRef
from trm.errors import DatasetNotPrepared
from trm.prepare_trm import export_arrays, load_trm, prepare_trm, trm_folder
from trm.text_encoder import NO_TEXT, HashingEncoder, load_encoder

REF = DatasetRef("ml-100k")


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, one epoch, an encoder without weights."""
    monkeypatch.setenv("DEEPREC_HOME", str(tmp_path))
    monkeypatch.setattr(
        "trm.prepare_trm.load_encoder", lambda name: load_encoder(name) if name == NO_TEXT else HashingEncoder(16)
    )
    monkeypatch.setattr("trm.prepare_trm.FAST_EPOCHS", 1)


def without_texts(dataset: Dataset) -> Dataset:
    items = [Item(item.item_id, str(item.item_id), str(item.item_id), {}) for item in dataset.catalog]
    return dataclasses.replace(dataset, catalog=Catalog(items))


def written_at() -> int:
    return (trm_folder(REF) / "trm.npz").stat().st_mtime_ns


def test_one_of_other_histories_is_refused_or_trained_again(caplog: pytest.LogCaptureFixture) -> None:
    world, other = colour_world(num_users=20), colour_world(num_users=20, seed=1)
    assert world.fingerprint == colour_world(num_users=20).fingerprint != other.fingerprint
    prepare_trm(REF, world, progress=False, fast=True)
    load_trm(REF, world)
    with pytest.raises(DatasetNotPrepared, match="another state of the data set; run `deeprec train-trm ml-100k`"):
        load_trm(REF, other)
    before = written_at()
    prepare_trm(REF, other, progress=False, fast=True)
    assert written_at() != before
    assert "training the TRM of ml-100k again" in caplog.text
    load_trm(REF, other)


def test_one_of_other_items_is_refused() -> None:
    prepare_trm(REF, colour_world(num_users=20), progress=False, fast=True)
    with pytest.raises(DatasetNotPrepared, match="knows 60 items, the data set has 50"):
        load_trm(REF, colour_world(num_users=20, num_items=50))


def test_one_that_says_nothing_is_taken_with_a_warning_unless_repeats_came_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = colour_world(num_users=20)
    prepare_trm(REF, world, progress=False, fast=True)
    (trm_folder(REF) / "dataset.json").unlink()
    load_trm(REF, world)
    assert "does not say which data it was trained on" in caplog.text
    with pytest.raises(DatasetNotPrepared, match="does not say which data"):
        load_trm(REF, dataclasses.replace(world, report={"repeated_interactions_kept": 3}))


def test_another_encoder_trains_again() -> None:
    world = colour_world(num_users=20)
    prepare_trm(REF, world, progress=False, fast=True)
    before = written_at()
    prepare_trm(REF, world, progress=False, fast=True, encoder_name="hashing-16")
    assert written_at() == before
    assert prepare_trm(REF, world, progress=False, fast=True, encoder_name=NO_TEXT).encoder_name == NO_TEXT


def test_an_unknown_encoder_is_refused_before_anything_is_announced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = colour_world(num_users=20)
    prepare_trm(REF, world, progress=False, fast=True)
    monkeypatch.setattr("trm.prepare_trm.load_encoder", load_encoder)
    caplog.clear()
    with pytest.raises(ValueError, match="got 'foo'"):
        prepare_trm(REF, world, progress=False, fast=True, encoder_name="foo")
    assert not caplog.records
    assert (trm_folder(REF) / "trm.npz").is_file()


def test_items_without_texts_train_on_ids_alone() -> None:
    """Nine of ten items follow in their colour, which the ids alone can learn; a preference changes nothing."""
    world = without_texts(colour_world(num_users=40))
    assert not world.catalog.has_texts
    frozen = prepare_trm(REF, world, progress=False, fast=True)
    assert frozen.encoder_name == NO_TEXT
    assert frozen.item_text_vectors.shape == (61, 1)
    assert not frozen.item_text_vectors.any()


def test_what_an_export_gets_from_the_trm() -> None:
    world = colour_world(num_users=20)
    assert export_arrays(REF, world) is None
    frozen = prepare_trm(REF, world, progress=False, fast=True)
    arrays = export_arrays(REF, world)
    assert arrays is not None
    np.testing.assert_array_equal(arrays.item_id_vectors, frozen.item_id_vectors)
    assert arrays.ranks.shape == (20,)
    assert arrays.ranks.min() >= 0
    assert arrays.ranks.max() <= 60
