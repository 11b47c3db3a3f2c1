from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from trm.addret import PADDING_SCORE, AddretConfig, load_addret
from trm.errors import CheckpointError

GOLDEN = Path(os.environ.get("DEEPREC_GOLDEN") or Path(__file__).parents[1] / "golden")
CONFIG = AddretConfig.from_mapping(json.loads((GOLDEN / "addret_small_config.json").read_text()))


def test_the_published_checkpoint_gives_its_scores():
    model = load_addret(GOLDEN / "addret_small.pth", CONFIG)
    with np.load(GOLDEN / "addret_small_io.npz") as arrays:
        io = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    inputs = io["item_seq"], io["item_seq_len"], io["query_embedding"]
    with torch.no_grad():
        users, scores = model(*inputs), model.scores(*inputs)
    torch.testing.assert_close(users, io["user_representation"], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, io["scores"], atol=1e-5, rtol=0)
    assert (scores[:, 0] == PADDING_SCORE).all()


def test_causal_differs_from_bidirectional():
    causal = AddretConfig.from_mapping({**CONFIG.__dict__, "bidirectional": False})
    with np.load(GOLDEN / "addret_small_io.npz") as arrays:
        inputs = [torch.from_numpy(arrays[name]) for name in ("item_seq", "item_seq_len", "query_embedding")]
    with torch.no_grad():
        outputs = [load_addret(GOLDEN / "addret_small.pth", config)(*inputs) for config in (CONFIG, causal)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_gate_noise_is_for_training_only():
    model = load_addret(GOLDEN / "addret_small.pth", CONFIG)
    texts = torch.randn(4, CONFIG.plm_size)
    torch.testing.assert_close(model.moe_adaptor(texts), model.moe_adaptor(texts))
    model.train()
    assert (model.moe_adaptor(texts) - model.moe_adaptor(texts)).abs().max() > 0


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path):
    wrong = AddretConfig.from_mapping({**CONFIG.__dict__, "n_items": 3})
    with pytest.raises(CheckpointError, match="expected a state_dict that fits"):
        load_addret(GOLDEN / "addret_small.pth", wrong)
    with pytest.raises(CheckpointError):
        load_addret(tmp_path / "missing.pth", CONFIG)
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        load_addret(tmp_path / "bad.pth", CONFIG)


def test_another_activation_is_refused():
    with pytest.raises(ValueError, match="'relu'"):
        AddretConfig.from_mapping({"n_items": 3, "hidden_act": "relu"})
