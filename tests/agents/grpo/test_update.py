"""One step of the learner: what is corrected, and what changes nothing."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from agents.grpo.backend import OptimizerConfig, TorchBackend
from agents.grpo.config import BackendConfig, GrpoConfig
from agents.grpo.policy import load_policy
from agents.grpo.rollout import collect_groups
from agents.grpo.types import Rollout, RolloutGroup
from agents.grpo.update import Learner
from agents.llm_agent import LlmAgent, PolicyCard
from tests.agents.grpo.worlds import build_game

CONFIG = GrpoConfig(users_per_step=4, group_size=4, max_tokens=40, max_logp_difference=0.0)
# Nothing is clipped, so that the gradient's norm speaks of the loss.
ADAMW = OptimizerConfig(weight_decay=0.0, max_grad_norm=1e9, betas=(0.9, 0.99))


@pytest.fixture(scope="module")
def groups(warm_policy: Path) -> list[RolloutGroup]:
    policy = load_policy(warm_policy)
    agent = LlmAgent.of_policy(policy, PolicyCard(max_tokens=40), temperature=1.0, name="llm")
    found = collect_groups(build_game(), agent, list(range(4)), group_size=4, seed=0)
    return [group for group in found if group.has_signal]


def _learn(
    policy: Path, groups: list[RolloutGroup], config: GrpoConfig = CONFIG, *, num_steps: int = 1, rate: float = 0.0
) -> dict[str, float]:
    loaded = load_policy(policy)
    learner = Learner(TorchBackend(loaded.model, BackendConfig(), ADAMW), config, pad_id=loaded.pad_id)
    return learner.learn([groups] * num_steps, learning_rate=rate)


def _shifted(groups: list[RolloutGroup], shift: float) -> list[RolloutGroup]:
    """Return the groups as an engine would have reported them that gives every token exp(shift) times its share."""

    def moved(rollout: Rollout) -> Rollout:
        trace = dataclasses.replace(rollout.trace, logps=[logp + shift for logp in rollout.trace.logps])
        return dataclasses.replace(rollout, trace=trace)

    return [dataclasses.replace(group, rollouts=tuple(map(moved, group.rollouts))) for group in groups]


@pytest.mark.parametrize("normalization", ["token", "sequence", "constant"])
def test_one_times_eight_is_eight_times_one(warm_policy: Path, groups: list[RolloutGroup], normalization: str) -> None:
    config = dataclasses.replace(CONFIG, normalization=normalization)
    whole = _learn(warm_policy, groups, config)
    pieces = _learn(warm_policy, groups, dataclasses.replace(config, micro_batch_tokens=1))
    assert whole.keys() == pieces.keys()
    for name, value in whole.items():
        assert pieces[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name
    assert whole["loss/grad_norm"] > 0


def test_an_engine_of_other_arithmetic_is_corrected_up_to_the_limit(
    warm_policy: Path, groups: list[RolloutGroup]
) -> None:
    exact = _learn(warm_policy, groups)
    assert exact["loss/is_ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    # The trainer gives tokens 1.5 times the engine's probability: each counts 1.5 times.
    less = _learn(warm_policy, _shifted(groups, -math.log(1.5)))
    assert less["loss/is_ratio_mean"] == pytest.approx(1.5, rel=1e-4)
    assert less["loss/grad_norm"] == pytest.approx(1.5 * exact["loss/grad_norm"], rel=1e-3)
    # Three times: the raw ratio is reported, the weight ends at the limit of 2.
    far = _learn(warm_policy, _shifted(groups, -math.log(3.0)))
    assert far["loss/is_ratio_mean"] == pytest.approx(3.0, rel=1e-4)
    assert far["loss/is_ratio_max"] == pytest.approx(3.0, rel=1e-3)
    assert far["loss/grad_norm"] == pytest.approx(2.0 * exact["loss/grad_norm"], rel=1e-3)
    assert far["loss/logp_difference_max"] == pytest.approx(math.log(3.0), abs=1e-3)
    # Without correction the engine's numbers do not matter.
    off = _learn(warm_policy, _shifted(groups, -math.log(3.0)), dataclasses.replace(CONFIG, correction_limit=0.0))
    assert off["loss/grad_norm"] == pytest.approx(exact["loss/grad_norm"], rel=1e-5)


def test_later_steps_clip_against_the_policy_that_sampled(warm_policy: Path, groups: list[RolloutGroup]) -> None:
    first = _learn(warm_policy, groups, rate=3e-2)
    assert first["loss/clip_fraction"] == 0.0
    later = _learn(warm_policy, groups, num_steps=4, rate=3e-2)
    assert later["loss/clip_fraction"] > 0.05
    # What engine and trainer say of the same weights is not a matter of the steps since.
    assert later["loss/is_ratio_mean"] == pytest.approx(1.0, abs=1e-4)


def test_the_kl_pulls_towards_the_reference(warm_policy: Path, groups: list[RolloutGroup]) -> None:
    loaded, reference = load_policy(warm_policy), load_policy(warm_policy).model
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.02 * torch.ones_like(parameter))
    config = dataclasses.replace(CONFIG, kl_coef=5.0, correction_limit=0.0)
    backend = TorchBackend(loaded.model, BackendConfig(), ADAMW)
    learner = Learner(backend, config, pad_id=loaded.pad_id, reference=reference)
    kls = [learner.learn([groups], learning_rate=2e-3)["loss/kl"] for _ in range(8)]
    assert kls[0] > 0.01
    assert kls[-1] < 0.5 * kls[0]
