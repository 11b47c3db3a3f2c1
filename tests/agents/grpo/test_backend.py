"""One trainer, several backends: the same numbers on one process and two, under torch and DeepSpeed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agents.grpo.backend import OptimizerConfig, TorchBackend, build_backend
from agents.grpo.config import BackendConfig
from agents.grpo.forward import sampled_logps
from agents.grpo.policy import load_policy
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.ranks import Ranks, add_up
from tests.agents.grpo.backend_jobs import run_job

ROOT = Path(__file__).resolve().parents[3]
ADAMW = OptimizerConfig(weight_decay=0.01, max_grad_norm=1.0, betas=(0.9, 0.99))
NUMBERS = ("reward_mean", "loss/policy", "loss/grad_norm", "loss/entropy", "rollout/num_searches", "loss/sft")

needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")
needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed")


def _torchrun(jobs: list[dict[str, Any]], folder: Path) -> None:
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    found = subprocess.run(
        [*command, "tests.agents.grpo.backend_jobs", str(file)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]


def _assert_same_run(one: Path, other: Path, *, atol: float = 1e-4) -> None:
    pair = [read_metrics(folder / METRICS_FILE) for folder in (one, other)]
    assert [record["step"] for record in pair[0]] == [record["step"] for record in pair[1]]
    names = [name for name in NUMBERS if name in pair[0][0]]
    numbers = [[[record[name] for name in names] for record in records] for records in pair]
    np.testing.assert_allclose(numbers[0], numbers[1], atol=atol)
    assert any(record.get("loss/grad_norm", 0) > 0 for record in pair[0])
    weights = [load_policy(folder / "policy").model.state_dict() for folder in (one, other)]
    for name, tensor in weights[0].items():
        # AdamW divides by the gradient's size: where that is nearly 0 its sign decides.
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-3, rtol=0)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(warm_policy: Path, tmp_path: Path) -> None:
    # The last one leaves a rank without users.
    lonely = {"users_per_step": 1, "num_minibatches": 1, "num_steps": 2}
    configs = [{"normalization": "token"}, {"normalization": "sequence"}, {"normalization": "constant"}, lonely]
    job = {"policy": str(warm_policy), "backend": {}}
    jobs = [{**job, "kind": "sft"}, *({**job, "kind": "grpo", "config": config} for config in configs)]
    for number, job in enumerate(jobs):
        run_job({**job, "out": str(tmp_path / f"one_{number}")})
    _torchrun([{**job, "out": str(tmp_path / f"two_{number}")} for number, job in enumerate(jobs)], tmp_path)
    for number in range(len(jobs)):
        _assert_same_run(tmp_path / f"one_{number}", tmp_path / f"two_{number}")


@needs_deepspeed
@pytest.mark.slow
def test_deepspeed_gives_the_numbers_of_torch_and_resumes_its_checkpoints(warm_policy: Path, tmp_path: Path) -> None:
    job = {"kind": "grpo", "policy": str(warm_policy)}
    half = {"config": {"num_steps": 2}}
    run_job({**job, "backend": {}, "out": str(tmp_path / "torch")})
    run_job({**job, "backend": {}, "out": str(tmp_path / "torch_half"), **half})
    stages = [{"name": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)]
    stages.append({"name": "deepspeed", "zero_stage": 3, "offload": "all"})
    jobs = []
    for number, backend in enumerate(stages):
        jobs.append({**job, "backend": backend, "out": str(tmp_path / f"ds_{number}")})
    for number in (1, 2):
        backend = stages[number]
        resumed = {"backend": backend, "resume": str(tmp_path / "torch_half")}
        jobs.append({**job, **resumed, "out": str(tmp_path / f"ds_resumed_{number}")})
        jobs.append({**job, "backend": backend, "out": str(tmp_path / f"ds_half_{number}"), **half})
    jobs.append({"kind": "sft", "policy": str(warm_policy), "backend": stages[1], "out": str(tmp_path / "ds_sft")})
    _torchrun(jobs, tmp_path)
    for number in range(len(stages)):
        _assert_same_run(tmp_path / "torch", tmp_path / f"ds_{number}")
    run_job({"kind": "sft", "policy": str(warm_policy), "backend": {}, "out": str(tmp_path / "torch_sft")})
    _assert_same_run(tmp_path / "torch_sft", tmp_path / "ds_sft")
    for number in (1, 2):
        _assert_last_step(tmp_path / "torch", tmp_path / f"ds_resumed_{number}")
        resumed = {"backend": {}, "resume": str(tmp_path / f"ds_half_{number}")}
        run_job({**job, **resumed, "out": str(tmp_path / f"torch_resumed_{number}")})
        _assert_last_step(tmp_path / "torch", tmp_path / f"torch_resumed_{number}")


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
def test_every_rank_has_an_engine_that_follows_its_policy(tmp_path: Path) -> None:
    _torchrun([{"kind": "follow", "out": str(tmp_path / "found")}], tmp_path)
    for rank in range(2):
        differences = json.loads((tmp_path / f"found.{rank}.json").read_text())
        assert len(differences) == 3
        assert max(differences) < 1e-4, (rank, differences)


def _assert_last_step(straight: Path, resumed: Path) -> None:
    """The checkpoint that was resumed is of one step before the end (a stage's last step leaves none)."""
    numbers = []
    for folder in (straight, resumed):
        record = read_metrics(folder / METRICS_FILE)[-1]
        numbers.append([record[name] for name in ("step", "reward_mean", "loss/policy", "loss/grad_norm")])
    np.testing.assert_allclose(numbers[0], numbers[1], atol=1e-4)


def _model(*, vocab_size: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def _tokens(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 64, (4, 20), generator=rng)
    mask = torch.rand((4, 20), generator=rng) < 0.7
    mask[:, 0] = False
    return ids, mask


def _train(backend: Any, *, steps: range) -> list[float]:
    norms = []
    for step in steps:
        with backend.training():
            logps, _ = backend.score(*_tokens(step))
            backend.accumulate(-logps.mean())
        norms.append(backend.step(1e-2))
    backend.follow()
    return norms


def test_chunks_change_neither_values_nor_gradients() -> None:
    ids, mask = _tokens()
    found = []
    for chunk in (2**26, 64 * 7):  # all at once; seven tokens at a time, with a rest
        model = _model()
        logps, entropies = sampled_logps(model, ids, mask, chunk_numbers=chunk)
        (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append([logps.detach(), entropies, *gradients])
    assert len(found[0]) == len(found[1]) > 10
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_chunks_keep_a_large_vocabulary_out_of_memory() -> None:
    """What autograd keeps for the backward pass does not hold the logits of all tokens."""
    model, kept = _model(vocab_size=5000), []
    ids, mask = _tokens()
    for chunk in (2**26, 5000 * 5):
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sampled_logps(model, ids, mask, chunk_numbers=chunk)
        kept.append(max(size for size in sizes if size != model.get_input_embeddings().weight.numel()))
    assert kept[0] >= 5000 * int(mask.sum())
    assert kept[1] <= kept[0] / 10


def test_gradient_checkpointing_changes_nothing() -> None:
    norms = [
        _train(TorchBackend(_model(), BackendConfig(gradient_checkpointing=on), ADAMW), steps=range(3)) for on in (0, 1)
    ]
    assert norms[0] == pytest.approx(norms[1], abs=1e-5)


def test_bfloat16_is_near_and_its_weights_stay_float32() -> None:
    backends = [TorchBackend(_model(), BackendConfig(precision=precision), ADAMW) for precision in ("fp32", "bf16")]
    norms = [_train(backend, steps=range(3)) for backend in backends]
    assert norms[0] == pytest.approx(norms[1], rel=0.03)
    assert norms[0] != norms[1]
    assert {parameter.dtype for parameter in backends[1].model.parameters()} == {torch.float32}


def test_a_gradient_that_is_not_a_number_changes_nothing() -> None:
    backend = TorchBackend(_model(), BackendConfig(), ADAMW)
    before = backend.policy_weights()
    logps, _ = backend.score(*_tokens())
    backend.accumulate(logps.sum() * float("nan"))
    assert not np.isfinite(backend.step(1e-2))
    after = backend.policy_weights()
    assert before is not None
    assert after is not None
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert np.isfinite(_train(backend, steps=range(1))[0])


@needs_peft
def test_adapters_begin_as_nothing_and_are_all_that_is_trained() -> None:
    ids, mask = _tokens()
    plain, base = _model(), dict(_model().named_parameters())
    expected, _ = sampled_logps(plain, ids, mask)
    backend = TorchBackend(_model(), BackendConfig(lora_rank=4), ADAMW)
    assert backend.trained()
    assert all(".lora_" in name for name in backend.trained())
    torch.testing.assert_close(backend.score(ids, mask)[0], expected)
    _train(backend, steps=range(3))
    adapted, _ = backend.score(ids, mask)
    assert not torch.allclose(adapted, expected, atol=1e-3)
    # What engines sample from and what is saved has the adapters merged.
    merged, _ = sampled_logps(backend.sampling_model, ids, mask)
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=0)
    saved = dict(backend.weights())
    assert saved.keys() == base.keys()
    torch.testing.assert_close(saved["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


@needs_peft
def test_adapters_resume_to_the_same_numbers() -> None:
    config = BackendConfig(lora_rank=4)
    straight = TorchBackend(_model(), config, ADAMW)
    _train(straight, steps=range(2))
    state = straight.state()
    expected = _train(straight, steps=range(2, 4))
    resumed = TorchBackend(_model(), config, ADAMW)
    resumed.load_state(state)
    assert _train(resumed, steps=range(2, 4)) == expected
    assert all(torch.equal(dict(straight.weights())[name], tensor) for name, tensor in resumed.weights())


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    model = _model()
    seeded = torch.get_rng_state()
    build_backend(model, BackendConfig(lora_rank=4 if importlib.util.find_spec("peft") else 0), ADAMW)
    assert torch.equal(torch.get_rng_state(), seeded)
    torch.set_rng_state(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "deepsped"}, "did you mean 'deepspeed'"),
        ({"zero_stage": 4}, "1, 2 or 3"),
        ({"offload": "all", "zero_stage": 2}, "zero_stage 3"),
        ({"precision": "fp16"}, "fp32, bf16"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackendConfig(**options)


def test_ranks_share_every_item_once_and_sum_up() -> None:
    items = list(range(11))
    shares = [Ranks(rank, 4).share(items) for rank in range(4)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    totals: dict[str, float] = {}
    for part in ({"a": 1.0, "b_max": 2.0}, {"a": 2.0, "b_max": 1.0}, {"b_max": float("nan")}):
        add_up(totals, part)
    assert totals["a"] == 3.0
    assert np.isnan(totals["b_max"])
