"""Trains a warm policy under several backends, one job after the other; started by torchrun or in the test's process.

usage: torchrun --nproc-per-node 2 -m tests.agents.grpo.backend_jobs JOBS.json
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from agents.grpo.config import BackendConfig, GrpoConfig, SftConfig
from agents.grpo.generation.base import GenerationRequest, SamplingParams, StreamingGenerator
from agents.grpo.policy import Policy, PolicyConfig, load_policy, save_policy
from agents.grpo.ranks import Ranks, join_ranks
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.trainer import StageSetup, train_stage
from agents.llm_agent import PolicyCard
from tests.agents.grpo.worlds import build_game, build_tiny_policy, teacher_episodes

GRPO = GrpoConfig(
    num_steps=3,
    users_per_step=4,
    group_size=4,
    learning_rate=1e-3,
    warmup_steps=1,
    max_tokens=40,
    checkpoint_every=1,
    num_minibatches=2,
)
SFT = SftConfig(batch_size=8, learning_rate=1e-3, checkpoint_every=2, micro_batch_tokens=700)


def follow_job(job: dict[str, Any]) -> None:
    """Write how far this rank's vLLM engine and its policy are apart, at the start and after two large changes."""
    from agents.grpo.generation.vllm import VllmGenerator

    # vLLM's attention on CPUs knows no heads of 16.
    wider = PolicyConfig(hidden_size=64, num_layers=2, num_heads=2, max_tokens=512, vocab_size=600)
    policy = build_tiny_policy(build_game(), config=wider)
    engine, rank = VllmGenerator.of_policy(policy), Ranks.current().rank
    differences = [_difference(engine, policy)]
    for seed in range(2):
        rng = torch.Generator().manual_seed(10 * rank + seed)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.02)
        engine.weights_changed()
        differences.append(_difference(engine, policy))
    Path(job["out"]).with_suffix(f".{rank}.json").write_text(json.dumps(differences), encoding="utf-8")


def _difference(engine: StreamingGenerator, policy: Policy) -> float:
    requests = [GenerationRequest(key, range(20, 40 + key), seed=key) for key in range(3)]
    completions = engine.generate(requests, SamplingParams(16, frozenset([1])))
    worst = 0.0
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([[*request.ids, *completion.ids]])
        with torch.no_grad():
            logps = torch.log_softmax(policy.model(ids).logits[0, len(request.ids) - 1 : -1], dim=-1)
        own = logps.gather(1, torch.tensor(completion.ids).unsqueeze(1)).squeeze(1)
        worst = max(worst, float((own - torch.tensor(completion.logps)).abs().max()))
    return worst


def run_job(job: dict[str, Any]) -> None:
    """Train into job["out"]; a folder that is named there as job["resume"] is gone on with in a copy."""
    torch.set_num_threads(1)
    if job["kind"] == "follow":
        follow_job(job)
        return
    out, backend = Path(job["out"]), BackendConfig(**job["backend"])
    ranks, game = Ranks.current(), build_game()
    if "resume" in job and ranks.first:
        shutil.copytree(Path(job["resume"]) / "checkpoints", out / "checkpoints")
    ranks.barrier()
    policy = load_policy(Path(job["policy"]))
    if job["kind"] == "sft":
        traces = [encode_episode(episode, policy.tokenizer) for episode in teacher_episodes(game, num_samples=1)]
        policy = train_sft(policy, [Phase(traces, 1, 8)], SFT, folder=out, seed=0, progress=False, backend=backend)
    else:
        config = dataclasses.replace(GRPO, **job.get("config", {}))
        setup = StageSetup("cold", game, list(range(12)), out, seed=0, card=PolicyCard(), backend=backend)
        policy = train_stage(policy, config, setup, progress=False)
    if ranks.first:
        save_policy(policy, out / "policy")


if __name__ == "__main__":
    with join_ranks():
        for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            run_job(one)
