"""TRL as an oracle: the same loss of the same rollouts has the same gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

pytest.importorskip("trl", reason="TRL, the oracle, is not installed")

# In a process of its own: importing TRL takes a while, warns, and leaves states behind.
_PROGRAM = """
import importlib.util, json, torch
find_spec = importlib.util.find_spec
# TRL imports vLLM where there is one, which takes longer than all the rest.
importlib.util.find_spec = lambda name, *rest: None if name == "vllm" else find_spec(name, *rest)
from benchmarks.grpo import LOSS_TYPES, SIZES, compare_gradients, draw_groups
torch.set_num_threads(1)
SIZES["tiny"] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "vocab_size": 300, "initializer_range": 0.2}
groups = draw_groups(num_groups=2, group_size=4, vocab_size=300, seed=3)
print(json.dumps({name: compare_gradients("tiny", groups, normalization=name) for name in LOSS_TYPES}))
"""


@pytest.mark.slow
def test_the_gradient_is_that_of_trl() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    gradients = json.loads(found.stdout.splitlines()[-1])
    assert gradients.keys() == {"token", "sequence", "constant"}
    for name, (cosine, norms) in gradients.items():
        assert cosine > 0.9999, name
        assert norms == pytest.approx(1.0, abs=1e-3), name
