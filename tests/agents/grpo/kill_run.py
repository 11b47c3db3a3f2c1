"""Kills a run at random moments until it has ended, and prints what it found; started as a process of its own.

usage: python -m tests.agents.grpo.kill_run POLICY FOLDER NUM_KILLS

Children are forked from one process that has imported everything: a start costs milliseconds instead of seconds. A
child tells its phase by a byte of shared memory; the parent waits for a phase and then a random share of its duration.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import agents.grpo.sft
import agents.grpo.trainer
from agents.grpo.config import GrpoConfig, SftConfig
from agents.grpo.policy import load_policy, save_policy
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.trainer import StageSetup, train_stage
from agents.grpo.update import Learner
from agents.llm_agent import PolicyCard
from tests.agents.grpo.worlds import build_game, teacher_episodes

PHASES = ("else", "sampling", "update", "saving", "sft")
GRPO = GrpoConfig(
    num_steps=16, users_per_step=4, group_size=4, learning_rate=1e-3, max_tokens=40, checkpoint_every=1, kl_coef=0.01
)
SFT = SftConfig(batch_size=8, learning_rate=1e-3, checkpoint_every=2)


def run(policy_folder: Path, folder: Path) -> None:
    """SFT, then a stage of GRPO; what is finished is skipped, as by the command."""
    torch.set_num_threads(1)
    game, warm = build_game(), load_policy(policy_folder)
    if not (folder / "sft.done").exists():
        traces = [encode_episode(episode, warm.tokenizer) for episode in teacher_episodes(game, num_samples=2)]
        save_policy(
            train_sft(warm, [Phase(traces, 1, 8)], SFT, folder=folder / "sft", seed=0, progress=False),
            folder / "sft" / "policy",
        )
        (folder / "sft.done").touch()
    setup = StageSetup("cold", game, list(range(12)), folder / "cold", seed=0, card=PolicyCard())
    policy = train_stage(load_policy(folder / "sft" / "policy"), GRPO, setup, progress=False)
    save_policy(policy, folder / "policy")


class Watch:
    """The phase of a child, seen from the parent."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)
        self.seconds: dict[str, list[float]] = {}

    @property
    def phase(self) -> str:
        return PHASES[self._byte[0]]

    def reset(self) -> None:
        self._byte[0] = 0

    def during(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, saying when it runs."""

        def watched(*args: Any, **options: Any) -> Any:
            before, started = self._byte[0], time.monotonic()
            self._byte[0] = PHASES.index(phase)
            try:
                return function(*args, **options)
            finally:
                self._byte[0] = before
                self.seconds.setdefault(phase, []).append(time.monotonic() - started)

        return watched


def start(policy: Path, folder: Path, watch: Watch) -> int:
    """Fork a child that runs and leaves its phases' durations, and return its process id."""
    watch.reset()
    child = os.fork()
    if child == 0:
        # No handler of the parent's runs in the child, whatever happens.
        try:
            run(policy, folder)
            durations = {phase: statistics.median(seconds) for phase, seconds in watch.seconds.items()}
            (folder / "durations.json").write_text(json.dumps(durations))
            os._exit(0)
        finally:
            os._exit(1)
    return child


def kill_in(child: int, phase: str, watch: Watch, rng: random.Random, durations: dict[str, float]) -> str | None:
    """Kill the child at a random moment of its next such phase; return where it was then, None if it had ended."""
    while watch.phase != phase:
        if os.waitpid(child, os.WNOHANG)[0]:
            return None
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, durations[phase]))
    found = watch.phase
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return found if os.WIFSIGNALED(status) else None


def main(policy: Path, folder: Path, num_kills: int) -> dict[str, Any]:
    """Run once undisturbed and once killed over and over; return what was hit."""
    watch, rng = Watch(), random.Random(0)
    agents.grpo.trainer.collect_groups = watch.during("sampling", agents.grpo.trainer.collect_groups)
    agents.grpo.trainer.save_checkpoint = watch.during("saving", agents.grpo.trainer.save_checkpoint)
    agents.grpo.sft.save_checkpoint = watch.during("saving", agents.grpo.sft.save_checkpoint)
    agents.grpo.sft._update = watch.during("sft", agents.grpo.sft._update)
    Learner.learn = watch.during("update", Learner.learn)  # type: ignore[method-assign]
    # All of it in children: a process that has started threads does not fork safely.
    _, status = os.waitpid(start(policy, folder / "straight", watch), 0)
    durations = json.loads((folder / "straight" / "durations.json").read_text()) if status == 0 else {}
    wanted = ["sft", "saving", *("sampling", "update", "saving") * num_kills][:num_kills]
    hit: Counter[str] = Counter()
    for phase in wanted if durations else []:
        found = kill_in(start(policy, folder / "killed", watch), phase, watch, rng, durations)
        if found is None:
            break
        hit[found] += 1
    _, status = os.waitpid(start(policy, folder / "killed", watch), 0)
    return {"hit": dict(hit), "status": status, "durations": durations}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))) + "\n")
