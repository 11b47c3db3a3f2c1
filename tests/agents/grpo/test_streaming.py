"""Episodes that do not wait for one another are played as those that do."""

from collections.abc import Sequence

import numpy as np
import pytest

from agents.base import AgentError, EpisodeView, StreamingAgent
from agents.grpo.generation.base import (
    Barrier,
    Completion,
    GenerationRequest,
    SamplingParams,
    StreamingGenerator,
    streaming,
)
from agents.grpo.policy import Policy
from agents.heuristic_agent import HeuristicAgent
from agents.llm_agent import LlmAgent
from agents.play import play
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from tests.agents.grpo.worlds import ScriptedGenerator, build_game, build_tiny_policy
from trm.errors import RetrieverUnavailable

SCRIPT = [render_search("", reasoning="First."), render_recommend(["Iron Engine", "Twins"], reasoning="So.")]


class ShuffledGenerator(ScriptedGenerator):
    """Answers in any order, one to three at a time, however many were asked."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._rng = np.random.default_rng(0)
        self._pending: list[tuple[GenerationRequest, SamplingParams]] = []
        self.most_pending = 0

    def abandon(self) -> None:
        self._pending = []

    def submit(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> None:
        self._pending.extend((request, params) for request in requests)
        self.most_pending = max(self.most_pending, len(self._pending))

    def collect(self) -> list[tuple[int, Completion]]:
        self._rng.shuffle(self._pending)  # type: ignore[arg-type]
        taken = [self._pending.pop() for _ in range(min(len(self._pending), int(self._rng.integers(1, 4))))]
        return [(request.key, self.generate([request], params)[0]) for request, params in taken]


class ShuffledHeuristic(HeuristicAgent):
    """The heuristic agent, answering one episode at a time, the last that came first."""

    def __init__(self) -> None:
        super().__init__(num_searches="1-3", name="shuffled")
        self._waiting: list[EpisodeView] = []

    def submit(self, episodes: Sequence[EpisodeView]) -> None:
        self._waiting.extend(episodes)

    def collect(self) -> list[tuple[int, str]]:
        view = self._waiting.pop()
        return [(view.key, self.act([view])[0])]


@pytest.fixture(scope="module")
def game() -> Game:
    return build_game()


@pytest.fixture(scope="module")
def policy(game: Game) -> Policy:
    return build_tiny_policy(game)


def test_the_order_of_answers_does_not_change_the_episodes(game: Game) -> None:
    users = [3, 1, 2, 1]
    agent = ShuffledHeuristic()
    assert isinstance(agent, StreamingAgent)
    plain = play(game, HeuristicAgent(num_searches="1-3"), users, split="test", num_samples=3, batch_size=5)
    shuffled = play(game, agent, users, split="test", num_samples=3, batch_size=5)
    assert [episode.transcript for episode in shuffled] == [episode.transcript for episode in plain]
    assert [episode.reward for episode in shuffled] == [episode.reward for episode in plain]


def test_a_streaming_engine_is_asked_as_episodes_become_ready(game: Game, policy: Policy) -> None:
    generator = ShuffledGenerator(policy.tokenizer, SCRIPT)
    agent = LlmAgent(generator, policy.tokenizer, max_context=512, max_tokens=100)
    assert agent.generator is generator
    episodes = play(game, agent, list(range(6)), split="train", num_samples=2, batch_size=4)
    assert [episode.num_searches for episode in episodes] == [1] * 12
    assert generator.most_pending == 4
    for key in range(12):
        assert agent.trace(key).num_turns == 2


def test_what_a_broken_call_left_in_the_engine_is_not_taken_for_the_next_ones(game: Game, policy: Policy) -> None:
    """The retriever fails while other episodes are being sampled; then the same agent plays again."""
    generator = ShuffledGenerator(policy.tokenizer, SCRIPT)
    agent = LlmAgent(generator, policy.tokenizer, max_context=512, max_tokens=100)
    users, retriever = list(range(6)), game.world.retriever
    game.world.retriever = _Down()  # type: ignore[assignment]
    try:
        with pytest.raises(RetrieverUnavailable):
            play(game, agent, users, split="train")
    finally:
        game.world.retriever = retriever
    assert generator._pending
    generator.weights_changed()  # the script from its beginning
    again = play(game, agent, users[3:], split="train")
    assert [episode.num_searches for episode in again] == [1, 1, 1]
    assert not generator._pending


class _Down:
    def retrieve(self, queries: object) -> object:
        raise RetrieverUnavailable("no answer in 3 attempts")


def test_an_engine_without_streaming_waits_for_all(policy: Policy) -> None:
    plain = ScriptedGenerator(policy.tokenizer, SCRIPT)
    generator = streaming(plain)
    assert isinstance(generator, Barrier)
    assert isinstance(generator, StreamingGenerator)
    params = SamplingParams(100, frozenset({1}))
    generator.submit([GenerationRequest(2, [5], 0)], params)
    generator.submit([GenerationRequest(1, [5], 0)], params)
    with pytest.raises(ValueError, match="wait"):
        generator.submit([GenerationRequest(3, [5], 0)], SamplingParams(50, frozenset({1})))
    assert [key for key, _ in generator.collect()] == [1, 2]
    assert generator.collect() == []
    generator.submit([GenerationRequest(1, [5], 0)], params)
    generator.abandon()
    assert generator.collect() == []


def test_an_answer_to_nobody_is_an_error(game: Game) -> None:
    class Confused(ShuffledHeuristic):
        def collect(self) -> list[tuple[int, str]]:
            return [(99, "")]

    with pytest.raises(AgentError, match="under way"):
        play(game, Confused(), [0], split="test")
