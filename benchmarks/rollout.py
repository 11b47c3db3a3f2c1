"""Rollouts without a barrier against the lock-step loop, on one vLLM engine.

    python agents/llm_grpo.py quickstart --stages sft --sft.teacher 'heuristic?num_searches=1-6&empty_weight=12' \\
        --sft.num-samples 2 --out runs/uneven
    python -m benchmarks.rollout runs/uneven/sft

Both play the same users with the same weights, sampling parameters and seeds. *lock-step* decodes and encodes the whole
text anew each turn and waits for the slowest episode of the turn; *ours* sends ids and steps whoever is ready. Each is
played in turns, the prefix cache dropped between them; the figures are sampled tokens a second of all rounds together.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.base import Agent, EpisodeView
from agents.grpo.engines import Engine
from agents.grpo.generation.base import GenerationRequest, Generator, SamplingParams
from agents.grpo.policy import Policy, load_policy
from agents.grpo.tokenizer import decode, encode, stop_token_ids
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from deeprec_env.world import load_world


class LockStepAgent:
    """Sends each episode's whole text and answers when all are answered."""

    name = "lock-step"

    def __init__(self, generator: Generator, policy: Policy, params: SamplingParams) -> None:
        """Play with this engine."""
        self._generator, self._tokenizer, self._params = generator, policy.tokenizer, params
        self._max_length = policy.max_length
        self.num_tokens = 0

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return one action an episode."""
        room = self._max_length - self._params.max_tokens
        requests = [
            GenerationRequest(view.key, encode(self._tokenizer, _text(view))[:room], view.seed + view.num_turns)
            for view in episodes
        ]
        completions = self._generator.generate(requests, self._params)
        self.num_tokens += sum(len(completion.ids) for completion in completions)
        return [decode(self._tokenizer, completion.ids) for completion in completions]


@dataclass(frozen=True)
class Measured:
    """One pass over the users."""

    tokens: int
    seconds: float
    searches: tuple[int, ...]


def _text(view: EpisodeView) -> str:
    return view.prompt + "".join(turn.action + turn.observation for turn in view.turns)


def _measure(game: Game, agent: Agent, users: Sequence[int], *, batch_size: int, seed: int) -> Measured:
    before = getattr(agent, "num_tokens", 0)
    started = time.perf_counter()
    episodes = play(game, agent, users, split="test", seed=seed, batch_size=batch_size)
    seconds = time.perf_counter() - started
    if isinstance(agent, LlmAgent):
        tokens = sum(sum(agent.trace(key).loss_mask) for key in range(len(episodes)))
    else:
        tokens = getattr(agent, "num_tokens", 0) - before
    return Measured(tokens, seconds, tuple(episode.num_searches for episode in episodes))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a stage's folder")
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64, help="episodes that are live at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="vllm", choices=("vllm", "hf"))
    options = parser.parse_args()
    folder = options.checkpoint / "policy"
    policy, card = load_policy(folder), PolicyCard.load(folder)
    game = Game(load_world("ml-100k"), GameConfig(**card.game_options))
    generator = Engine(options.engine).follow(policy)
    params = SamplingParams(card.max_tokens, stop_token_ids(policy.tokenizer))
    agents: dict[str, Agent] = {
        "lock-step": LockStepAgent(generator, policy, params),
        "ours": LlmAgent.of_policy(policy, card, temperature=1.0, name="ours", generator=generator),
    }
    users = np.random.default_rng(0).permutation(game.world.splits.num_users)[: options.users].tolist()
    found: dict[str, list[Measured]] = {name: [] for name in agents}
    for agent in agents.values():  # warm-up: compiled kernels, cached preferences
        _measure(game, agent, users[:32], batch_size=options.batch_size, seed=99)
    for number in range(options.rounds):
        for name, agent in agents.items():
            generator.weights_changed()
            found[name].append(_measure(game, agent, users, batch_size=options.batch_size, seed=number))
    rates = {name: [one.tokens / one.seconds for one in passes] for name, passes in found.items()}
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["lock-step"], strict=True)]
    lines = ["| loop | tokens/s, median | tokens an episode | searches, mean (10 % to 90 %) |", "|---|---:|---:|---|"]
    for name, passes in found.items():
        searches = np.concatenate([one.searches for one in passes])
        low, high = np.quantile(searches, [0.1, 0.9])
        tokens = sum(one.tokens for one in passes) / len(searches)
        spread = f"{searches.mean():.1f} ({low:.0f} to {high:.0f})"
        lines.append(f"| {name} | {statistics.median(rates[name]):.0f} | {tokens:.0f} | {spread} |")
    by_round = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    lines.append(f"\nours / lock-step by round: {by_round}; median {statistics.median(ratios):.2f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
