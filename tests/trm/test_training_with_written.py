"""Preferences that a language model wrote, in training: where they come in, and that they are learned from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from agents.cli import main
from tests.trm.worlds import COLOURS, colour_world
from trm.data.dataset import Dataset, save_dataset
from trm.data.prepare import DatasetRef
from trm.frozen import load_frozen
from trm.prepare_trm import prepare_trm, trm_folder
from trm.retriever import TRMRetriever
from trm.text_encoder import HashingEncoder
from trm.train import train_trm
from trm.train_config import TrainConfig
from trm.training_data import PreferenceMix, TrainingData
from trm.training_run import TrainingRun
from trm.types import RetrievalQuery
from trm.written_preferences import Prefix, WrittenPreferences

ENCODER = HashingEncoder(128)
NOTHING = PreferenceMix(empty=0.0, vague=0.0, one=0.0, some=0.0, other=0.0)
MADE_UP = ("zorbl", "quimp", "fresk", "wadjo", "hyrrt")
"""A word for each colour that stands in no attribute."""


def made_up(world: Dataset) -> WrittenPreferences:
    texts = {item_id: (MADE_UP[item_id % 5],) for item_id in range(1, world.catalog.num_items + 1)}
    return WrittenPreferences(texts, {}, "1")


def shares_of_word(world: Dataset, written: WrittenPreferences, mix: PreferenceMix, word: str) -> dict[int, float]:
    """Return how often a position gets the text `word`, by the position in its window."""
    data = TrainingData(world, ENCODER, mix=mix, max_history=20, seed=0, written=written)
    vector = ENCODER.encode([word])[0]
    hits: dict[int, list[bool]] = {}
    for epoch in range(10):
        for batch in data.batches(np.random.default_rng(epoch), batch_size=16, max_positions=10**9):
            found = (data.preference_vectors[batch.preference_rows] == vector).all(axis=-1)
            for place in range(batch.targets.shape[1]):
                hits.setdefault(place, []).extend(found[batch.targets[:, place] > 0, place].tolist())
    return {place: float(np.mean(values)) for place, values in hits.items()}


def test_an_item_s_texts_take_part_of_the_places_of_some_of_its_attributes() -> None:
    world = colour_world(num_users=40)
    written = WrittenPreferences(dict.fromkeys(range(1, 61), ("zorbl",)), {}, "1")
    some = shares_of_word(world, written, dataclasses.replace(NOTHING, some=1.0), "zorbl")
    assert all(0.5 < share < 0.85 for share in some.values())
    one = shares_of_word(world, written, dataclasses.replace(NOTHING, one=1.0), "zorbl")
    assert set(one.values()) == {0.0}


def test_a_beginning_s_texts_stand_from_its_end_on_and_never_before() -> None:
    world = colour_world(num_users=1)
    written = WrittenPreferences({}, {Prefix(0, 4): ("zorbl",)}, "1")
    vague = shares_of_word(world, written, dataclasses.replace(NOTHING, vague=1.0), "zorbl")
    assert {place: share for place, share in vague.items() if place < 3} == dict.fromkeys(range(3), 0.0)
    assert {place: share for place, share in vague.items() if place >= 3} == dict.fromkeys(range(3, 9), 1.0)


def test_words_that_only_the_written_texts_hold_are_learned(tmp_path: Path) -> None:
    world = colour_world()
    mix = PreferenceMix(empty=0.1, vague=0.05, one=0.1, some=0.7, other=0.05)
    config = TrainConfig(
        dim=16, hidden_dim=32, max_epochs=25, patience=25, batch_size=16, learning_rate=1e-2, dropout=0.1, mix=mix
    )
    metrics = train_trm(world, ENCODER, config, out=tmp_path / "trm", progress=False, written=made_up(world))
    assert metrics["training"]["written_preferences"] == "1"
    retriever = TRMRetriever(load_frozen(tmp_path / "trm"), ENCODER)
    for colour, word in enumerate(MADE_UP):
        (answer,) = retriever.retrieve([RetrievalQuery((1, 2, 3, 4, 5), word, k=5)])
        assert sum(item_id % 5 == colour for item_id in answer.item_ids) >= 4, COLOURS[colour]


def test_a_checkpoint_belongs_to_the_texts(tmp_path: Path) -> None:
    world = colour_world(num_users=30)
    config = TrainConfig(dim=16, hidden_dim=32, max_epochs=3)
    TrainingRun(world, ENCODER, config, folder=tmp_path, written=made_up(world)).train_epoch()
    for written, epoch in ((made_up(world), 1), (None, 0), (dataclasses.replace(made_up(world), fingerprint="2"), 0)):
        run = TrainingRun(world, ENCODER, config, folder=tmp_path, written=written)
        run.resume()
        assert run.epoch == epoch


def test_a_trained_trm_is_trained_again_for_other_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPREC_HOME", str(tmp_path))
    monkeypatch.setattr("trm.prepare_trm.FAST_EPOCHS", 1)
    world, ref = colour_world(num_users=30), DatasetRef("ml-1m")
    save_dataset(world, tmp_path / "datasets" / "ml-1m")
    prepare_trm(ref, world, fast=True, progress=False, encoder_name="hashing-256")
    file = tmp_path / "written.jsonl"
    header = {"format": 1, "dataset": "colours", "fingerprint": world.fingerprint, "model": "m", "prompts": 1}
    file.write_text("".join(json.dumps(line) + "\n" for line in (header, {"item": 1, "texts": ["zorbl"]})))
    stamp = trm_folder(ref) / "dataset.json"
    assert json.loads(stamp.read_text()).get("written_preferences") is None
    main(["train-trm", "ml-1m", "--fast", "--encoder", "hashing-256", "--preferences", str(file)])
    told = json.loads(stamp.read_text())["written_preferences"]
    assert told
    before = stamp.stat().st_mtime_ns
    main(["train-trm", "ml-1m", "--preferences", str(file)])  # nothing to do
    prepare_trm(ref, world)  # whoever asks for no texts takes what is there
    assert stamp.stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        main(["train-trm", "ml-1m", "--preferences", str(tmp_path / "no.jsonl")])
    assert "no.jsonl" in capsys.readouterr().err
