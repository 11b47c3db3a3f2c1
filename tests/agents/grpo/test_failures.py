"""What ends a run leaves a saved state and a sentence; with its cause gone the run ends as if nothing had been."""

import dataclasses
import errno
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.base import AgentError
from agents.grpo.backend import TorchBackend
from agents.grpo.checkpoint import list_checkpoints
from agents.grpo.config import GrpoConfig, SftConfig
from agents.grpo.engines import Engine
from agents.grpo.failures import describe
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.loss import LossTerms, grpo_loss
from agents.grpo.policy import Policy, load_policy
from agents.grpo.progress import METRICS_FILE, RunLog, read_metrics
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.trainer import GrpoTrainer, StageSetup
from agents.llm_agent import PolicyCard
from deeprec_env.game import Game
from tests.agents.grpo.worlds import build_game, build_tiny_policy, teacher_episodes
from trm.errors import RetrieverUnavailable
from trm.types import Candidates, RetrievalQuery

GRPO = GrpoConfig(num_steps=4, users_per_step=3, group_size=4, learning_rate=1e-3, max_tokens=40, checkpoint_every=10)


@pytest.fixture
def game() -> Game:
    return build_game()


def _trainer(game: Game, policy: Path, folder: Path, config: GrpoConfig = GRPO, **parts: Any) -> GrpoTrainer:
    setup = StageSetup("cold", game, list(range(12)), folder, seed=0, card=PolicyCard(), **parts)
    return GrpoTrainer(load_policy(policy), config, setup)


def _straight(game: Game, policy: Path, folder: Path) -> dict[str, torch.Tensor]:
    trainer = _trainer(game, policy, folder)
    trainer.run(progress=False)
    return trainer.policy.model.state_dict()


def _assert_resumes_to(straight: dict[str, torch.Tensor], game: Game, policy: Path, folder: Path, *, at: int) -> None:
    trainer = _trainer(game, policy, folder)
    assert trainer.resume() is not None
    assert trainer.next_step == at
    trainer.run(progress=False)
    resumed = trainer.policy.model.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    assert [record["step"] for record in read_metrics(folder / METRICS_FILE)][-4 + at :] == list(range(at, 4))


class _Retriever:
    """Works until it is told that it is down."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.num_left = inner, 10**9

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        self.num_left -= 1
        if self.num_left < 0:
            raise RetrieverUnavailable("expected an answer of http://127.0.0.1:6001/retrieve, got none in 3 attempts")
        return self.inner.retrieve(queries)  # type: ignore[no-any-return]


def test_a_dead_retriever(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    straight = _straight(game, warm_policy, tmp_path / "a")
    game.world.retriever = retriever = _Retriever(game.world.retriever)  # type: ignore[assignment]
    trainer = _trainer(game, warm_policy, tmp_path / "b")
    trainer.step()
    trainer.step()
    retriever.num_left = 0
    # A rollout that ends without a search does not notice, so the step of a dead retriever may pass with few rollouts.
    with pytest.raises(AgentError) as caught:
        _always_searching(trainer)
    message = str(caught.value)
    assert "stage cold, step 2: the retriever failed" in message
    assert f"the state after 2 steps is saved in {tmp_path / 'b' / 'checkpoints'}" in message
    assert "start the same command again" in message
    retriever.num_left = 10**9
    trainer = _trainer(game, warm_policy, tmp_path / "b")
    trainer.resume()
    trainer.run(progress=False)
    resumed = trainer.policy.model.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def _always_searching(trainer: GrpoTrainer) -> None:
    """Run with an engine whose every turn is a search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.llm_agent.decode", lambda tokenizer, ids: _SEARCH)
        trainer.run(progress=False)


_SEARCH = "<|begin_of_preference|>noir<|end_of_preference|>"


def test_an_outage_leaves_rollouts_out_of_their_groups(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    """The retriever answers one round only: whoever searches again fails, and is in nobody's baseline."""
    game.world.retriever = retriever = _Retriever(game.world.retriever)  # type: ignore[assignment]
    retriever.num_left = 1
    trainer = _trainer(game, warm_policy, tmp_path, dataclasses.replace(GRPO, num_steps=1))
    groups, metrics = trainer.step()
    failed = sum(group.num_failed for group in groups)
    assert 0 < failed < 12
    assert metrics["data/failed_rollouts"] == failed
    assert all(len(group.rollouts) + group.num_failed == 4 for group in groups)
    rewards = [rollout.reward for group in groups for rollout in group.rollouts]
    assert metrics["rollout/reward_mean"] == pytest.approx(sum(rewards) / len(rewards))


class _FullEngine(Engine):
    """Runs out of memory in the second step."""

    def follow(self, policy: Policy) -> HFGenerator:
        class Full(HFGenerator):
            num_updates = 0

            def weights_changed(self) -> None:
                self.num_updates += 1
                super().weights_changed()

            def generate(self, *args: Any) -> Any:
                if self.num_updates == 1:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nDetails.")
                return super().generate(*args)

        return Full(policy.model)


def test_an_engine_out_of_memory(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    straight = _straight(game, warm_policy, tmp_path / "a")
    with pytest.raises(AgentError) as caught:
        _trainer(game, warm_policy, tmp_path / "b", engine=_FullEngine()).run(progress=False)
    message = str(caught.value)
    assert (
        "step 1: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB. Details.); the state after 1 steps"
        in message
    )
    assert "lower users_per_step" in message
    _assert_resumes_to(straight, game, warm_policy, tmp_path / "b", at=1)


def test_a_loss_that_is_not_a_number(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    straight = _straight(game, warm_policy, tmp_path / "a")
    trainer = _trainer(game, warm_policy, tmp_path / "b")
    trainer.step()

    def broken(*args: Any, **options: Any) -> LossTerms:
        terms = grpo_loss(*args, **options)
        return dataclasses.replace(terms, loss=terms.loss * float("nan"), policy=terms.policy * float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.grpo.update.grpo_loss", broken)
        with pytest.raises(
            AgentError, match=r"step 1: the loss is not a number; the state after 1 .*lower learning_rate"
        ):
            trainer.run(progress=False)
    _assert_resumes_to(straight, game, warm_policy, tmp_path / "b", at=1)
    # The remedy is one that resuming takes.
    calmer = _trainer(game, warm_policy, tmp_path / "b", dataclasses.replace(GRPO, learning_rate=1e-4))
    assert calmer.resume() is not None


def test_a_gradient_that_is_not_a_number(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    trainer = _trainer(game, warm_policy, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchBackend, "step", lambda self, rate: float("inf"))
        with pytest.raises(AgentError, match=r"step 0: the gradient is not a number; the state after 0 steps"):
            trainer.run(progress=False)


def test_the_second_update_of_a_step_refused_is_not_saved_as_if_the_step_were_whole(
    game: Game, warm_policy: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(GRPO, num_minibatches=2, checkpoint_every=1)
    trainer = _trainer(game, warm_policy, tmp_path, config)
    trainer.step()
    trainer.save()
    real, calls = TorchBackend.step, []

    def second_fails(self: TorchBackend, rate: float) -> float:
        calls.append(rate)
        return real(self, rate) if len(calls) == 1 else float("nan")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchBackend, "step", second_fails)
        with pytest.raises(AgentError, match=r"step 1: .*the state after 1 steps is saved"):
            trainer.run(progress=False)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [1]


def test_a_full_disk_keeps_the_checkpoint_before(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    straight = _straight(game, warm_policy, tmp_path / "a")
    config = dataclasses.replace(GRPO, checkpoint_every=1)
    trainer = _trainer(game, warm_policy, tmp_path / "b", config)
    trainer.step()
    trainer.save()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(AgentError) as caught:
            trainer.run(progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "cannot write the checkpoint of step 2" in message
    assert "the state after 1 steps is saved" in message
    assert message.endswith("make room there, then start the same command again")
    assert not list((tmp_path / "b" / "checkpoints").glob(".partial_*"))
    _assert_resumes_from_first(straight, game, warm_policy, tmp_path / "b")


def _assert_resumes_from_first(straight: dict[str, torch.Tensor], game: Game, policy: Path, folder: Path) -> None:
    trainer = _trainer(game, policy, folder)
    assert trainer.resume() is not None
    assert trainer.next_step == 1
    trainer.run(progress=False)
    resumed = trainer.policy.model.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def test_a_log_that_cannot_be_written(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    straight = _straight(game, warm_policy, tmp_path / "a")

    def full(self: RunLog, step: int, metrics: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write", full)
        with pytest.raises(AgentError, match=r"the disk is full .*the state after 1 steps is saved in .*make room"):
            _trainer(game, warm_policy, tmp_path / "b").run(progress=False)
    trainer = _trainer(game, warm_policy, tmp_path / "b")
    trainer.resume()
    trainer.run(progress=False)
    resumed = trainer.policy.model.state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())


def test_a_disk_that_fills_up_under_the_log(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    """A write to /dev/full fails as on a full disk; so does closing the file, which must not hide the sentence."""
    straight = _straight(game, warm_policy, tmp_path / "a")
    real = RunLog.__init__

    def on_a_full_disk(self: RunLog, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        self._stream.close()
        self._stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "__init__", on_a_full_disk)
        with pytest.raises(AgentError, match=r"the disk is full .*the state after 1 steps is saved in .*make room"):
            _trainer(game, warm_policy, tmp_path / "b").run(progress=False)
    _assert_resumes_from_first(straight, game, warm_policy, tmp_path / "b")


def test_an_unknown_error_is_raised_as_it_is_once_the_state_is_saved(
    game: Game, warm_policy: Path, tmp_path: Path
) -> None:
    trainer = _trainer(game, warm_policy, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.grpo.trainer.collect_groups", _raise_runtime_error)
        with pytest.raises(RuntimeError, match="size mismatch"):
            trainer.run(progress=False)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [0]


def _raise_runtime_error(*args: object, **options: object) -> None:
    raise RuntimeError("size mismatch")


def test_sft_stops_with_a_saved_state_too(game: Game, tmp_path: Path) -> None:
    config = SftConfig(batch_size=8, learning_rate=1e-2, checkpoint_every=100)
    policy = build_tiny_policy(game)
    traces = [encode_episode(episode, policy.tokenizer) for episode in teacher_episodes(game, num_samples=1)]
    phases = [Phase(traces, 2, 4)]
    straight = train_sft(policy, phases, config, folder=tmp_path / "a", seed=0, progress=False)
    real, calls = TorchBackend.step, []

    def third_fails(self: TorchBackend, rate: float) -> float:
        calls.append(rate)
        return real(self, rate) if len(calls) < 3 else float("nan")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchBackend, "step", third_fails)
        with pytest.raises(AgentError, match=r"sft, update 2: .*not a number; the state after 2 steps is saved"):
            train_sft(build_tiny_policy(game), phases, config, folder=tmp_path / "b", seed=0, progress=False)
    resumed = train_sft(build_tiny_policy(game), phases, config, folder=tmp_path / "b", seed=0, progress=False)
    found = resumed.model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in straight.model.state_dict().items())


def test_a_checkpoint_of_an_older_format_says_so(game: Game, warm_policy: Path, tmp_path: Path) -> None:
    trainer = _trainer(game, warm_policy, tmp_path)
    state = trainer.save().folder / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 1}))
    with pytest.raises(AgentError, match="format 2, got 1"):
        _trainer(game, warm_policy, tmp_path).resume()


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (MemoryError(), "out of memory (MemoryError)"),
        (ValueError("Free memory (1/80 GiB) is less than desired GPU memory utilization (0.4)"), "out of memory"),
        (RuntimeError("No available memory for the cache blocks. Try increasing it"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "[Errno 13] Permission denied"),
        (RetrieverUnavailable("no answer"), "the retriever failed (no answer)"),
    ],
)
def test_known_troubles_are_named(error: Exception, what: str) -> None:
    found = describe(error)
    assert found is not None
    assert found[0].startswith(what)
    assert describe(RuntimeError("size mismatch")) is None
