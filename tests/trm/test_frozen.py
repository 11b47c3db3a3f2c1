from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trm.test_model import NUM_ITEMS, TEXT_DIM, random_model, unit_texts
from trm.errors import CheckpointError
from trm.frozen import FrozenTRM, _erf, load_frozen
from trm.model import profiles_of

HISTORIES = [(3,), (1, 2, 3), tuple(range(1, 31)) * 3, (), (5,) * 50, tuple(range(30, 0, -1))]


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3])
@torch.no_grad()
def test_agrees_with_torch(num_layers: int):
    model = random_model(num_layers=num_layers)
    temperature = model.config.temperature
    frozen = model.export(encoder_name="x")
    states = frozen.encode_histories(HISTORIES)
    vectors = unit_texts(1)[1 : len(HISTORIES) + 1]
    own, (queries, trust) = frozen.queries(states), frozen.steered(states, vectors)
    scale = temperature / float(model.log_temperature.exp())
    np.testing.assert_allclose(queries, scale * frozen.queries(states, vectors), atol=1e-6)
    texts = model.item_texts()
    table = model.item_table(texts)
    for row, history in enumerate(HISTORIES):
        if not history:
            assert (states[row] == 0).all()
            continue
        sequence = torch.tensor([history[-frozen.max_history :]])
        state, profile = model.states(sequence, table)[0, -1], profiles_of(sequence, texts)[0, -1]
        np.testing.assert_allclose(states[row], torch.cat([state, profile]).numpy(), atol=1e-4)
        own_logits = model.own_logits(model.own_query(state), table)
        np.testing.assert_allclose(own[row] @ frozen.item_vectors[1:].T, temperature * own_logits, atol=1e-4)
        preference = model.adapt(torch.from_numpy(vectors[row]))
        fused = model.preference_query(state, preference)
        logits = model.preference_logits(fused, table) + model.gate(model.own_query(state), fused, preference, profile)
        logits = logits - model.config.caution
        scores = queries[row] @ frozen.item_vectors[1:].T + trust[row]
        np.testing.assert_allclose(scores, temperature * logits, atol=1e-4)


def test_agreement_adds_the_own_score_above_its_level():
    frozen = random_model().export(encoder_name="x")
    states, vectors = frozen.encode_histories(HISTORIES), unit_texts(1)[1 : len(HISTORIES) + 1]
    own = frozen.queries(states) @ frozen.item_vectors.T

    def scores(model: FrozenTRM) -> np.ndarray:
        steered, trust = model.steered(states, vectors)
        return steered @ model.item_vectors.T + trust[:, None]

    agreeing = frozen.with_agreement(0.5, level=0.2)
    np.testing.assert_allclose(scores(agreeing), scores(frozen) + 0.5 * (own - 0.2), atol=1e-5)
    np.testing.assert_array_equal(agreeing.queries(states), frozen.queries(states))


def test_an_empty_preference_has_the_historys_own_query():
    frozen = random_model().export(encoder_name="x")
    states = frozen.encode_histories(HISTORIES)
    empty = np.zeros((len(HISTORIES), TEXT_DIM), dtype=np.float32)
    np.testing.assert_array_equal(frozen.queries(states, empty), frozen.queries(states))


def test_vectors_are_unit_and_the_padding_is_zero():
    frozen = random_model().export(encoder_name="x")
    assert (frozen.num_items, frozen.dim, frozen.text_dim) == (NUM_ITEMS, 8, TEXT_DIM)
    for vectors in (frozen.item_vectors, frozen.item_id_vectors, frozen.item_text_vectors):
        assert (vectors[0] == 0).all()
        assert np.linalg.norm(vectors[1:], axis=1) == pytest.approx(np.ones(NUM_ITEMS), abs=1e-5)


def test_a_batch_gives_what_single_histories_give():
    frozen = random_model().export(encoder_name="x")
    together = frozen.encode_histories(HISTORIES)
    alone = np.concatenate([frozen.encode_histories([history]) for history in HISTORIES])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_save_and_load_give_the_same_model(tmp_path: Path):
    frozen = random_model().export(encoder_name="hashing-16").with_agreement(0.25, level=0.1)
    frozen.save(tmp_path / "trm")
    loaded = load_frozen(tmp_path / "trm")
    assert loaded.encoder_name == "hashing-16"
    np.testing.assert_array_equal(loaded.encode_histories(HISTORIES), frozen.encode_histories(HISTORIES))
    states, vectors = frozen.encode_histories(HISTORIES), unit_texts(1)[1 : len(HISTORIES) + 1]
    for mine, theirs in zip(frozen.steered(states, vectors), loaded.steered(states, vectors)):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match="read-only"):
        loaded.item_table[0] = 1


def test_damage_is_a_checkpoint_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="expected a trained TRM"):
        load_frozen(tmp_path / "missing")
    folder = tmp_path / "trm"
    frozen = random_model().export(encoder_name="x")
    frozen.save(folder)
    weights = (folder / "trm.npz").read_bytes()
    (folder / "trm.npz").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError):
        load_frozen(folder)
    frozen.save(folder)
    config = json.loads((folder / "trm.json").read_text())
    (folder / "trm.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(CheckpointError, match="version 2, got 99"):
        load_frozen(folder)
    with pytest.raises(CheckpointError, match="encoder_name"):
        FrozenTRM(config={}, arrays={})


def test_unknown_ids_are_refused():
    with pytest.raises(ValueError, match="got 31"):
        random_model().export(encoder_name="x").encode_histories([(1, 31)])


def test_erf_is_exact_enough():
    xs = np.linspace(-5, 5, 1001, dtype=np.float32)
    np.testing.assert_allclose(_erf(xs), [math.erf(x) for x in xs], atol=5e-7)


def test_inference_imports_no_torch():
    modules = "frozen", "retriever", "text_encoder", "preferences", "evaluate", "prepare_trm"
    code = ";".join([*(f"import trm.{module}" for module in modules), "import sys; assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True)
