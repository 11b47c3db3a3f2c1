from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trm.worlds import COLOURS, colour_world
from trm.data.prepare import DatasetRef
from trm.errors import DatasetNotPrepared
from trm.evaluate import KINDS, find_row, last_item_scores, preference_texts, render_metrics, split_examples
from trm.frozen import load_frozen
from trm.prepare_trm import load_trm, prepare_trm, trm_folder
from trm.retriever import TRMRetriever
from trm.text_encoder import HashingEncoder
from trm.train import train_trm
from trm.train_config import TrainConfig
from trm.training_data import PreferenceMix, TrainingData
from trm.training_run import AGREEMENTS, TrainingRun
from trm.types import RetrievalQuery

SMALL = TrainConfig(dim=16, hidden_dim=32, max_history=10, max_epochs=3, batch_size=16)
ENCODER = HashingEncoder(128)


def weights(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "trm.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_a_preference_steers_and_the_files_are_whole(tmp_path: Path):
    world = colour_world()
    config = TrainConfig(
        dim=16, hidden_dim=32, max_history=10, max_epochs=25, batch_size=16, learning_rate=1e-2, dropout=0.1
    )
    metrics = train_trm(world, ENCODER, config, out=tmp_path / "trm", progress=False)
    retriever = TRMRetriever(load_frozen(tmp_path / "trm"), ENCODER)
    reds = (5, 10, 15, 20)
    for colour, name in enumerate(COLOURS):
        (answer,) = retriever.retrieve([RetrievalQuery(reds, name, k=5)])
        assert sum(item_id % 5 == colour for item_id in answer.item_ids) >= 4, name
    (own,) = retriever.retrieve([RetrievalQuery(reds, "", k=5)])
    assert sum(item_id % 5 == 0 for item_id in own.item_ids) >= 4
    empty, informative = (
        find_row(metrics, preference=kind, history_excluded=False)["recall@10"]["mean"]
        for kind in ("empty", "informative")
    )
    assert informative > empty
    assert json.loads((tmp_path / "trm" / "metrics.json").read_text())["rows"] == metrics["rows"]
    card = (tmp_path / "trm" / "MODEL_CARD.md").read_text()
    assert render_metrics(metrics) in card
    assert "last-item KNN" in card
    assert list(tmp_path.iterdir()) == [tmp_path / "trm"]


def test_training_is_deterministic_and_resumes_to_the_same_weights(tmp_path: Path):
    world = colour_world(num_users=30)
    torch.manual_seed(123)  # the caller's own state neither matters nor changes
    before = torch.random.get_rng_state()
    train_trm(world, ENCODER, SMALL, out=tmp_path / "whole", progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    killed = TrainingRun(world, ENCODER, SMALL, folder=tmp_path / "resumed.training")
    killed.train_epoch()
    assert killed.epoch == 1
    metrics = train_trm(world, ENCODER, SMALL, out=tmp_path / "resumed", progress=False)
    assert metrics["training"]["epochs"] == 3
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)


def test_a_checkpoint_of_another_config_or_a_damaged_one_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    world = colour_world(num_users=30)
    folder = tmp_path / "x.training"
    TrainingRun(world, ENCODER, SMALL, folder=folder).train_epoch()
    other = TrainingRun(world, ENCODER, TrainConfig(dim=8, hidden_dim=32, max_epochs=3), folder=folder)
    other.resume()
    assert other.epoch == 0
    (folder / "checkpoint.pt").write_bytes(b"cut")
    run = TrainingRun(world, ENCODER, SMALL, folder=folder)
    run.resume()
    assert run.epoch == 0
    assert "damaged" in caplog.text


def test_tensorboard_events_are_written(tmp_path: Path):
    train_trm(
        colour_world(num_users=20), ENCODER, SMALL, out=tmp_path / "trm", progress=False, log_dir=tmp_path / "logs"
    )
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("gain", [0.5, 1.0, 9.0])
def test_the_agreement_is_the_one_that_validates_best_if_that_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float
):
    monkeypatch.setattr("trm.training_run.WORTHWHILE", gain)
    config = replace(SMALL, max_epochs=5, learning_rate=1e-2)
    run = TrainingRun(colour_world(), ENCODER, config, folder=tmp_path / "x.training")
    while not run.finished:
        run.train_epoch()
    chosen = run.calibrated_model()

    def score(agreement: float) -> float:
        model = chosen.with_agreement(agreement, level=chosen.config["agreement_level"])
        retriever = TRMRetriever(model, ENCODER)
        return float(np.exp(np.mean([np.log(run._validate(retriever, kind)) for kind in KINDS])))

    scores = [score(agreement) for agreement in AGREEMENTS]
    assert len(set(scores)) > 1
    assert chosen.config["agreement"] == (0.0 if gain == 9.0 else AGREEMENTS[int(np.argmax(scores))])


def test_an_epoch_tells_its_losses_and_validates_every_kind(tmp_path: Path):
    figures = TrainingRun(colour_world(num_users=20), ENCODER, SMALL, folder=tmp_path / "x.training").train_epoch()
    kinds = [figures[f"valid/ndcg_at_10_{kind}"] for kind in KINDS]
    assert figures["valid/score"] == pytest.approx(np.exp(np.log(kinds).mean()))
    assert {name for name in figures if name.startswith("loss/")} == {"loss/own", "loss/mixture", "loss/gate"}


def test_preferences_in_training_leave_the_historys_own_loss_alone(tmp_path: Path):
    """The own ranking learns from every position: whether there are preferences does not change its first loss."""
    world = colour_world(num_users=20)
    losses = []
    for mix in (PreferenceMix(), PreferenceMix(empty=1.0, vague=0.0, one=0.0, some=0.0, other=0.0)):
        config = replace(SMALL, mix=mix, dropout=0.0, text_dropout=0.0)
        run = TrainingRun(world, ENCODER, config, folder=tmp_path / "x.training")
        (batch, *_) = run._data.batches(np.random.default_rng(0), batch_size=8, max_positions=10**9)
        losses.append(run._step(batch))
    assert losses[0]["loss/own"] == pytest.approx(losses[1]["loss/own"])
    assert set(losses[1]) == {"loss/own"}


def test_a_small_data_set_is_trained_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    run = TrainingRun(
        colour_world(num_users=80), ENCODER, replace(SMALL, batch_size=64), folder=tmp_path / "x.training"
    )
    monkeypatch.setattr(run, "_step", lambda batch: sizes.append(len(batch.items)) or {"loss/own": 0.0})
    assert run._data.num_windows == 80
    run.train_epoch()
    assert sizes == [8] * 10


def test_windows_cover_every_position_once_with_its_own_target():
    world = colour_world(num_users=10, length=33)
    data = TrainingData(world, ENCODER, mix=PreferenceMix(), max_history=10, seed=0)
    pairs = []
    for batch in data.batches(np.random.default_rng(0), batch_size=4, max_positions=10**9):
        assert batch.items.shape[1] <= 10
        assert ((batch.items > 0) == (batch.targets > 0)).all()
        np.testing.assert_array_equal(
            batch.items[:, 1:][batch.items[:, 1:] > 0], batch.targets[:, :-1][batch.items[:, 1:] > 0]
        )
        pairs += list(zip(batch.items[batch.items > 0].tolist(), batch.targets[batch.targets > 0].tolist()))
    sequences = [world.splits.train_sequence(user).tolist() for user in range(10)]
    assert sorted(pairs) == sorted(pair for sequence in sequences for pair in pairwise(sequence))
    assert len(pairs) == data.num_positions == 10 * 30


def test_an_epoch_is_capped():
    data = TrainingData(colour_world(length=40), ENCODER, mix=PreferenceMix(), max_history=10, seed=0)
    batches = data.batches(np.random.default_rng(0), batch_size=8, max_positions=500)
    assert 400 <= sum((batch.targets > 0).sum() for batch in batches) <= 500


def test_vague_training_texts_know_the_prefix_alone():
    """The first half of every sequence is red, the rest blue: a vague text at a red place never says blue."""
    world = colour_world(num_users=1, length=42)
    sequence = [5] * 20 + [2] * 20
    mix = PreferenceMix(empty=0.0, vague=1.0, one=0.0, some=0.0, other=0.0)
    data = TrainingData(world, ENCODER, mix=mix, max_history=50, seed=0)
    data._flat = np.array(sequence)
    texts: list[str] = []

    class Pool:
        def row(self, text: str) -> int:
            texts.append(text)
            return len(texts) - 1

    from trm.preferences import PreferenceWriter

    rows = data._vague_rows(PreferenceWriter(world.catalog), Pool(), rng=np.random.default_rng(0))  # type: ignore[arg-type]
    assert all("blue" not in texts[row] for row in rows[:20])
    assert texts[rows[0]] != ""


def test_the_mix_of_preferences_is_kept():
    data = TrainingData(colour_world(), ENCODER, mix=PreferenceMix(empty=0.4, vague=0.1), max_history=10, seed=0)
    batches = list(data.batches(np.random.default_rng(0), batch_size=1000, max_positions=10**9))
    rows = np.concatenate([batch.preference_rows[batch.targets > 0] for batch in batches])
    share = float((rows == 0).mean())
    assert abs(share - 0.4) < 4 * np.sqrt(0.4 * 0.6 / len(rows))
    with pytest.raises(ValueError, match="sum to at most 1"):
        PreferenceMix(empty=0.9, vague=0.2)


def test_last_item_scores_by_hand():
    world = colour_world(num_users=6, length=6)
    (example,) = split_examples(world, "test")[:1]
    (scores,) = last_item_scores(world, [example])
    sets = [set(world.splits.train_sequence(user).tolist()) for user in range(6)]
    last = example.history[-1]
    for item_id in range(1, 61):
        together = sum(last in s and item_id in s for s in sets)
        size = max(1, sum(last in s for s in sets)) * max(1, sum(item_id in s for s in sets))
        expected = 0.0 if item_id == last else together / np.sqrt(size)
        assert scores[item_id] == pytest.approx(expected, abs=1e-6)


def test_other_preferences_do_not_come_from_the_target_and_texts_are_fixed_by_seed():
    world = colour_world()
    examples = split_examples(world, "test")
    for kind in ("empty", "vague", "one", "informative", "other"):
        assert preference_texts(world, examples, kind=kind, seed=1) == preference_texts(
            world, examples, kind=kind, seed=1
        )
    informative, other = (preference_texts(world, examples, kind=kind) for kind in ("informative", "other"))
    assert sum(a == b for a, b in zip(informative, other)) < len(examples) / 4


def test_load_trm_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEEPREC_HOME", str(tmp_path))
    with pytest.raises(DatasetNotPrepared, match="deeprec train-trm ml-100k"):
        load_trm(DatasetRef("ml-100k"))


def test_prepare_trm_trains_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEEPREC_HOME", str(tmp_path))
    monkeypatch.setattr("trm.prepare_trm.load_encoder", lambda _: ENCODER)
    monkeypatch.setattr("trm.prepare_trm.FAST_EPOCHS", 1)
    ref, world = DatasetRef("ml-100k"), colour_world(num_users=20)
    first = prepare_trm(ref, world, progress=False, fast=True)
    written = (trm_folder(ref) / "trm.npz").stat().st_mtime_ns
    second = prepare_trm(ref, world, progress=False)
    assert (trm_folder(ref) / "trm.npz").stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.item_table, second.item_table)
