"""The engine vllm-server against a fake server: what is sent, what comes back, and every way in which it can fail."""

import copy
import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("httpx", reason="the engine vllm-server needs the extra chat")

from agents.base import AgentError, EngineError
from agents.grpo.checkpoint import list_checkpoints
from agents.grpo.config import GrpoConfig, ServerConfig
from agents.grpo.engines import Engine
from agents.grpo.generation import served_model, vllm_client
from agents.grpo.generation.base import FinishReason, GenerationRequest, SamplingParams, StreamingGenerator
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.generation.vllm_client import ServerError, VllmClient
from agents.grpo.generation.vllm_server import VllmServerGenerator
from agents.grpo.policy import Policy, load_policy
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.ranks import Ranks
from agents.grpo.tokenizer import stop_token_ids
from agents.grpo.trainer import GrpoTrainer, StageSetup
from agents.llm_agent import PolicyCard
from deeprec_env.game import Game
from tests.agents.grpo.fake_vllm import Died, FakeVllm
from tests.agents.grpo.worlds import TINY, build_game, build_tiny_policy
from tests.services.processes import ROOT, free_port
from trm.client import RetryConfig

NEVER: frozenset[int] = frozenset()
GRPO = GrpoConfig(num_steps=3, users_per_step=2, group_size=3, learning_rate=1e-3, max_tokens=24, checkpoint_every=10)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_client, "RETRY", RetryConfig(connect_timeout_s=2.0, max_attempts=3, backoff_s=0.01))
    monkeypatch.setattr(served_model, "_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def game() -> Game:
    return build_game()


@pytest.fixture(scope="module")
def policy(game: Game) -> Policy:
    return build_tiny_policy(game)


@pytest.fixture
def fake(policy: Policy) -> Iterator[FakeVllm]:
    fake = FakeVllm(policy)
    yield fake
    fake.close()


@pytest.fixture
def generator(fake: FakeVllm, policy: Policy, tmp_path: Path) -> Iterator[VllmServerGenerator]:
    generator = VllmServerGenerator(fake.url, weights=tmp_path / "weights")
    generator.follow(policy)
    yield generator
    generator.close()


def _requests(policy: Policy, count: int = 5) -> list[GenerationRequest]:
    rng = np.random.default_rng(1)
    return [
        GenerationRequest(key, rng.integers(20, len(policy.tokenizer), size=10 + key).tolist(), 100 + key)
        for key in range(count)
    ]


def _alone(policy: Policy, requests: list[GenerationRequest], params: SamplingParams) -> list[Any]:
    return [HFGenerator(policy.model, policy.tokenizer).generate([request], params)[0] for request in requests]


def _moved(policy: Policy, scale: float = 0.3) -> Policy:
    moved = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=noise))
    return moved


def test_completions_are_the_servers(generator: VllmServerGenerator, policy: Policy) -> None:
    assert isinstance(generator, StreamingGenerator)
    requests = _requests(policy)
    params = SamplingParams(12, stop_token_ids(policy.tokenizer), 0.7)
    assert generator.generate(requests, params) == _alone(policy, requests, params)
    assert generator.num_pending == 0
    assert generator.collect() == []


def test_what_is_asked_leaves_nothing_to_the_servers_defaults(generator: VllmServerGenerator, fake: FakeVllm) -> None:
    """A model's generation_config.json would otherwise cut the distribution that is trained on."""
    generator.generate([GenerationRequest(3, [30, 31], 7)], SamplingParams(4, frozenset({9, 5}), 1.0, ("ab",)))
    (body,) = fake.bodies
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert neutral.items() <= body.items()
    assert (body["prompt"], body["seed"], body["temperature"]) == ([30, 31], 7, 1.0)
    assert (body["stop_token_ids"], body["stop"], body["include_stop_str_in_output"]) == ([5, 9], ["ab"], True)
    assert body["return_token_ids"]
    assert body["ignore_eos"]
    assert not body["skip_special_tokens"]
    assert body["model"] == "fake"


def test_a_completion_ends_with_the_policys_context(generator: VllmServerGenerator) -> None:
    ids = [30] * (TINY.max_tokens - 3)
    (completion,) = generator.generate([GenerationRequest(0, ids, 0)], SamplingParams(8, NEVER))
    assert len(completion.ids) == 3
    assert completion.finish is FinishReason.LENGTH
    for wrong in ([], [30] * TINY.max_tokens):
        with pytest.raises(ValueError, match="context of 1 to 511 tokens"):
            generator.submit([GenerationRequest(0, wrong, 0)], SamplingParams(8, NEVER))


def test_it_follows_the_weights(generator: VllmServerGenerator, fake: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    requests, params = _requests(policy), SamplingParams(12, NEVER)
    moved = Policy(copy.deepcopy(policy.model), policy.tokenizer)
    generator.follow(moved)
    before = generator.generate(requests, params)
    assert before == _alone(policy, requests, params)
    moved.model.load_state_dict(_moved(policy).model.state_dict())
    assert generator.generate(requests, params) == before
    fake.calls.clear()
    generator.weights_changed()
    # The cache goes after the weights: what was computed while they came is dropped too.
    assert fake.calls == ["read_weights", "/reset_prefix_cache"]
    after = generator.generate(requests, params)
    assert after == _alone(moved, requests, params)
    assert after != before
    assert list((tmp_path / "weights").iterdir()) == []


def test_weights_go_in_the_servers_precision(fake: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    fake.receiver.config.dtype = torch.bfloat16
    generator = VllmServerGenerator(fake.url, weights=tmp_path, dtype="bfloat16")
    generator.follow(policy)
    for name, tensor in fake.receiver.model.named_parameters():
        assert torch.equal(tensor, policy.model.get_parameter(name).bfloat16().float())
    generator.close()


def test_weights_of_a_killed_run_are_removed_and_nothing_else(generator: VllmServerGenerator, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    (folder / f"weights_{'0a' * 16}.safetensors").touch()
    (folder / f"weights_{'1b' * 16}.partial").touch()
    (folder / "weights_of_mine.safetensors").touch()
    generator.weights_changed()
    assert [path.name for path in folder.iterdir()] == ["weights_of_mine.safetensors"]


def test_a_short_request_does_not_wait_for_a_long_one(generator: VllmServerGenerator, fake: FakeVllm) -> None:
    gate = threading.Event()
    fake.before = lambda body: (gate.wait(20), None)[1] if body["max_tokens"] == 60 else None
    generator.submit([GenerationRequest(7, [30, 31], 0)], SamplingParams(60, NEVER))
    generator.submit([GenerationRequest(8, [30, 31], 0)], SamplingParams(2, NEVER))
    assert [key for key, _ in generator.collect()] == [8]
    generator.submit([GenerationRequest(9, [30, 32], 0)], SamplingParams(2, NEVER))
    assert [key for key, _ in generator.collect()] == [9]
    assert generator.num_pending == 1
    gate.set()
    assert [key for key, _ in generator.collect()] == [7]


def test_all_are_under_way_at_once(generator: VllmServerGenerator, fake: FakeVllm, policy: Policy) -> None:
    """The server answers nobody before everybody has asked."""
    barrier = threading.Barrier(40)
    fake.before = lambda body: (barrier.wait(20), None)[1]
    requests = _requests(policy, 40)
    assert len(generator.generate(requests, SamplingParams(1, NEVER))) == 40


def test_what_was_abandoned_is_never_collected(generator: VllmServerGenerator, fake: FakeVllm) -> None:
    gate = threading.Event()
    fake.before = lambda body: (gate.wait(20), None)[1] if body["seed"] == 1 else None
    generator.submit([GenerationRequest(0, [30, 31], 1)], SamplingParams(2, NEVER))
    with pytest.raises(AgentError, match="no requests under way when weights change, got 1"):
        generator.weights_changed()
    generator.abandon()
    generator.submit([GenerationRequest(0, [30, 31], 2)], SamplingParams(5, NEVER))
    gate.set()
    ((key, completion),) = generator.collect()
    assert key == 0
    assert len(completion.ids) == 5
    assert generator.num_pending == 0


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (500, {"error": {"message": "the engine is at a loss"}}, "at a loss"),
        (
            200,
            {"choices": [{"finish_reason": "abort", "token_ids": [1], "logprobs": {"token_logprobs": [0.0]}}]},
            "abort",
        ),
        (200, {"choices": [{"finish_reason": "stop", "text": "x"}]}, "token_ids"),
        (200, {"choices": [{"finish_reason": "stop", "token_ids": [1], "logprobs": {"token_logprobs": []}}]}, "0 of 1"),
        (200, {"nothing": 1}, "choices"),
    ],
)
def test_requests_that_the_server_gives_up_are_named(
    generator: VllmServerGenerator, fake: FakeVllm, status: int, answer: object, reason: str
) -> None:
    fake.before = lambda body: (status, answer) if body["seed"] == 1 else None
    generator.submit([GenerationRequest(7, [30, 31], 1), GenerationRequest(8, [30, 31], 2)], SamplingParams(2, NEVER))
    found: list[int] = []
    lost: list[int] = []
    said = ""
    while generator.num_pending or not (found and lost):
        try:
            found += [key for key, _ in generator.collect()]
        except EngineError as error:
            said += str(error)
            lost += error.keys
    assert reason in said
    assert (found, lost) == ([8], [7])
    with pytest.raises(EngineError, match="gave up 1 requests") as caught:
        generator.generate([GenerationRequest(5, [30], 2), GenerationRequest(6, [30], 1)], SamplingParams(2, NEVER))
    assert caught.value.keys == (6,)
    assert generator.num_pending == 0


def test_a_busy_server_and_a_lost_connection_are_asked_again(generator: VllmServerGenerator, fake: FakeVllm) -> None:
    troubles: list[int] = [503, 0]

    def trouble(body: dict[str, Any]) -> tuple[int, Any] | None:
        if not troubles:
            return None
        status = troubles.pop()
        if not status:
            raise Died
        return status, {"error": "busy"}

    fake.before = trouble
    (completion,) = generator.generate([GenerationRequest(0, [30, 31], 1)], SamplingParams(2, NEVER))
    assert len(completion.ids) == 2
    assert len(fake.bodies) == 3


def test_a_server_that_dies_is_not_taken_for_lost_requests(generator: VllmServerGenerator, fake: FakeVllm) -> None:
    def die(body: dict[str, Any]) -> None:
        fake.is_dead = True
        raise Died

    fake.before = die
    generator.submit([GenerationRequest(key, [30, 31], key) for key in range(4)], SamplingParams(2, NEVER))
    with pytest.raises(ServerError, match=f"no vLLM server answers at {fake.url} .*start the same command again"):
        generator.collect()
    assert generator.num_pending == 0
    assert generator.collect() == []


def test_an_engine_that_dies_behind_its_server(generator: VllmServerGenerator, fake: FakeVllm) -> None:
    def dead(name: str) -> None:
        raise Died

    fake.before, fake.on_call = lambda body: (500, {"error": {"message": "EngineCore died"}}), dead
    generator.submit([GenerationRequest(0, [30, 31], 0)], SamplingParams(2, NEVER))
    with pytest.raises(ServerError, match=r"has died \(.*EngineCore died\); start it anew there"):
        generator.collect()


def test_a_server_that_was_started_anew_is_found_out(generator: VllmServerGenerator, fake: FakeVllm) -> None:
    """It answers as before, from the weights that lie on its disk; also where the last request is a lost one."""
    fake.receiver.pushed_weights = ""
    fake.before = lambda body: (500, {}) if body["seed"] == 1 else None
    generator.submit([GenerationRequest(0, [30, 31], 1)], SamplingParams(2, NEVER))
    with pytest.raises(ServerError, match="other weights than it was given"):
        generator.collect()
    with pytest.raises(ServerError, match=r"other weights than it was given: .*let it serve this run alone"):
        generator.generate([GenerationRequest(0, [30, 31], 0)], SamplingParams(2, NEVER))


def test_an_answer_that_takes_too_long(fake: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    gate = threading.Event()
    fake.before = lambda body: (gate.wait(20), None)[1]
    generator = VllmServerGenerator(fake.url, weights=tmp_path, timeout_s=1.0)
    generator.follow(policy)
    with pytest.raises(ServerError, match=r"gave no answer in 1 s; look at it, or raise server\.timeout_s"):
        generator.generate([GenerationRequest(0, [30, 31], 0)], SamplingParams(2, NEVER))
    gate.set()
    generator.close()


def _follow(url: str, policy: Policy, folder: Path, **options: str) -> str:
    """Return why the server cannot be used."""
    generator = VllmServerGenerator(url, weights=folder, **options)
    with pytest.raises(ServerError) as caught:
        generator.follow(policy)
    generator.close()
    assert str(caught.value) == f"{caught.value.what}; {caught.value.remedy}"
    assert caught.value.remedy.endswith("then start the same command again")
    return str(caught.value)


def test_no_server_there(policy: Policy, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    message = _follow(url, policy, tmp_path)
    assert message.startswith(f"no vLLM server answers at {url} (ConnectError")
    assert "start it there with: VLLM_SERVER_DEV_MODE=1 vllm serve" in message
    assert "--dtype float32 --max-model-len 512" in message
    assert "--worker-extension-cls agents.grpo.generation.vllm_weights.WeightReceiver" in message


def test_servers_that_do_not_fit_say_why(fake: FakeVllm, game: Game, policy: Policy, tmp_path: Path) -> None:
    config = fake.receiver.config
    config.logprobs_mode = "processed_logprobs"
    assert "reports processed_logprobs, expected --logprobs-mode raw_logprobs" in _follow(fake.url, policy, tmp_path)
    config.max_model_len = 100
    config.logprobs_mode = "raw_logprobs"
    assert "takes 100 tokens, expected the policy's 512" in _follow(fake.url, policy, tmp_path)
    config.dtype = torch.float16
    assert "computes in float16, expected engine_dtype float32" in _follow(fake.url, policy, tmp_path)
    other = build_tiny_policy(game, config=dataclasses.replace(TINY, num_layers=3))
    message = _follow(fake.url, other, tmp_path)
    assert "has another model loaded (fake): expected vocab_size" in message
    assert "num_hidden_layers 3" in message
    assert "num_hidden_layers 2" in message
    fake.has_extension = False
    assert "was started without --worker-extension-cls agents.grpo" in _follow(fake.url, policy, tmp_path)
    fake.has_dev_mode = False
    assert "was started without VLLM_SERVER_DEV_MODE=1" in _follow(fake.url, policy, tmp_path)


def test_a_folder_that_is_not_shared(fake: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    message = _follow(fake.url, policy, tmp_path / "here", weights_there=str(tmp_path / "there"))
    assert f"finds no {tmp_path / 'there'}/weights_" in message
    assert "the folder is not shared; set server.weights to a folder that both machines see" in message
    assert list((tmp_path / "here").iterdir()) == []


def test_a_folder_that_is_mounted_elsewhere_there(fake: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to(tmp_path / "here")
    generator = VllmServerGenerator(fake.url, weights=tmp_path / "here", weights_there=f"{tmp_path / 'there'}/")
    generator.follow(policy)
    assert fake.receiver.pushed_weights
    generator.close()


def test_weights_that_cannot_be_written_or_read(fake: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = _follow(fake.url, policy, tmp_path / "file" / "folder")
    assert f"cannot write the weights for the vLLM server into {tmp_path / 'file' / 'folder'}" in message

    def spoil(name: str) -> None:
        if name == "read_weights":
            for path in (tmp_path / "folder").iterdir():
                path.write_bytes(b"\xff" * 100)

    fake.on_call = spoil
    message = _follow(fake.url, policy, tmp_path / "folder")
    assert "cannot read" in message
    assert "SafetensorError" in message


def test_a_cache_that_is_not_dropped(fake: FakeVllm, policy: Policy, tmp_path: Path) -> None:
    fake.drops_prefixes = False
    assert "keeps its prefix cache of the old weights" in _follow(fake.url, policy, tmp_path)
    assert fake.calls.count("/reset_prefix_cache") == 20


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="address such as http"):
        VllmClient("127.0.0.1:8000")
    with pytest.raises(ValueError, match="dtype such as float32"):
        VllmServerGenerator("http://127.0.0.1:8000", weights=tmp_path, dtype="float31")
    with pytest.raises(ValueError, match=r"--server\.url http://HOST:8000"):
        Engine("vllm-server", server=ServerConfig(weights=str(tmp_path)))
    with pytest.raises(ValueError, match="timeout_s > 0"):
        ServerConfig(timeout_s=0.0)


def test_what_the_servers_machine_imports_is_there_beside_vllm() -> None:
    """A checkout on its path is enough: the extension pulls in no package of this project's extras, nor the game."""
    script = (
        "import sys, agents.grpo.generation.vllm_weights\n"
        "print(sorted({'deeprec_env', 'trm', 'httpx', 'gymnasium', 'tyro', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


class _TwoRanks(Ranks):
    """One of two ranks; what the other one says is made up."""

    others: object = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.others] if self.rank == 0 else [self.others, value]


def test_one_of_two_ranks(
    generator: VllmServerGenerator, fake: FakeVllm, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one pushes, and what fails on either is raised on both."""
    fake.calls.clear()
    monkeypatch.setattr(Ranks, "current", classmethod(lambda cls: _TwoRanks(1, 2)))
    generator.weights_changed()
    assert fake.calls == []
    monkeypatch.setattr(Ranks, "current", classmethod(lambda cls: _TwoRanks(0, 2)))
    generator.weights_changed()
    assert fake.calls == ["read_weights", "/reset_prefix_cache"]
    monkeypatch.setattr(_TwoRanks, "others", ("the other one found nobody", "start it"))
    with pytest.raises(ServerError, match="the other one found nobody; start it"):
        generator.follow(policy)


@pytest.fixture
def engine(fake: FakeVllm, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine("vllm-server", server=ServerConfig(fake.url, weights=str(tmp_path / "weights")))
    yield engine
    engine.close()


@pytest.fixture
def warm_fake(warm_policy: Path) -> Iterator[FakeVllm]:
    fake = FakeVllm(load_policy(warm_policy))
    yield fake
    fake.close()


def _trainer(game: Game, policy: Path, folder: Path, fake: FakeVllm | None) -> GrpoTrainer:
    server = None if fake is None else ServerConfig(fake.url, weights=str(folder / "weights"))
    engine = Engine("hf" if server is None else "vllm-server", server=server)
    setup = StageSetup("cold", game, list(range(12)), folder, seed=0, card=PolicyCard(), engine=engine)
    return GrpoTrainer(load_policy(policy), GRPO, setup)


def _ended(trainer: GrpoTrainer) -> dict[str, torch.Tensor]:
    trainer.run(progress=False)
    trainer._setup.engine.close()
    return trainer.policy.model.state_dict()


@pytest.fixture(scope="module")
def straight(game: Game, warm_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that a run without troubles ends with."""
    fake = FakeVllm(load_policy(warm_policy))
    weights = _ended(_trainer(game, warm_policy, tmp_path_factory.mktemp("straight"), fake))
    fake.close()
    return weights


def test_a_stage_trains_through_it(game: Game, warm_policy: Path, warm_fake: FakeVllm, tmp_path: Path) -> None:
    """As with transformers in this process, to rounding; the server ends with the trained weights."""
    weights = _ended(_trainer(game, warm_policy, tmp_path / "a", warm_fake))
    here = _ended(_trainer(game, warm_policy, tmp_path / "b", None))
    through, plain = (read_metrics(tmp_path / name / METRICS_FILE) for name in ("a", "b"))
    rewards = [record["rollout/reward_mean"] for record in through]
    assert rewards == pytest.approx([record["rollout/reward_mean"] for record in plain])
    assert max(record.get("loss/logp_difference_max", 0.0) for record in through) < 1e-4
    changed = load_policy(warm_policy).model.state_dict()
    assert any(not torch.equal(tensor, changed[name]) for name, tensor in weights.items())
    for name, tensor in warm_fake.receiver.model.state_dict().items():
        assert torch.equal(tensor, weights[name])
        torch.testing.assert_close(tensor, here[name], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(("when", "saved"), [("sampling", 1), ("pushing", 2)])
def test_a_server_that_dies_leaves_a_saved_state(
    game: Game,
    warm_policy: Path,
    warm_fake: FakeVllm,
    straight: dict[str, torch.Tensor],
    tmp_path: Path,
    when: str,
    saved: int,
) -> None:
    """In the second step; with the server back the run ends as if nothing had been."""
    trainer = _trainer(game, warm_policy, tmp_path, warm_fake)
    trainer.step()

    def die(*_: object) -> None:
        warm_fake.is_dead = True
        raise Died

    if when == "sampling":
        warm_fake.before = die
    else:
        warm_fake.on_call = lambda name: die() if name == "read_weights" else None
    with pytest.raises(AgentError) as caught:
        trainer.run(progress=False)
    trainer._setup.engine.close()
    message = str(caught.value)
    assert message.startswith(f"stage cold, step {saved}: no vLLM server answers at {warm_fake.url}")
    assert f"the state after {saved} steps is saved in {tmp_path / 'checkpoints'}" in message
    assert message.endswith("then start the same command again")
    assert [found.step for found in list_checkpoints(tmp_path / "checkpoints")] == [saved]
    warm_fake.close()
    again = FakeVllm(load_policy(warm_policy), port=warm_fake.port)
    trainer = _trainer(game, warm_policy, tmp_path, again)
    trainer.resume()
    assert trainer.next_step == saved
    resumed = _ended(trainer)
    again.close()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def test_a_stage_whose_server_is_not_there(game: Game, warm_policy: Path, warm_fake: FakeVllm, tmp_path: Path) -> None:
    warm_fake.is_dead = True
    trainer = _trainer(game, warm_policy, tmp_path, warm_fake)
    with pytest.raises(AgentError) as caught:
        trainer.run(progress=False)
    trainer._setup.engine.close()
    message = str(caught.value)
    assert "stage cold, step 0: no vLLM server answers" in message
    assert f"vllm serve {warm_policy} --dtype float32" in message


def test_what_no_server_need_know_is_sampled_here(engine: Engine, fake: FakeVllm, policy: Policy) -> None:
    assert isinstance(engine.follow_here(policy), HFGenerator)
    assert fake.calls == []
    assert isinstance(engine.follow(policy), VllmServerGenerator)
