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
from agents.grpo.policy import load_policy, save_policy
from agents.grpo.ranks import Ranks, join_ranks
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.trainer import StageSetup, train_stage
from agents.llm_agent import PolicyCard
from tests.agents.grpo.worlds import build_game, teacher_episodes

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


def run_job(job: dict[str, Any]) -> None:
    """Train into job["out"]; a folder that is named there as job["resume"] is gone on with in a copy."""
    torch.set_num_threads(1)
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
