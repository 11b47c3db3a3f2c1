import dataclasses
from pathlib import Path

import pytest
import torch

from agents.grpo.config import SftConfig
from agents.grpo.policy import Policy, save_policy
from agents.grpo.sft import Phase, encode_episode, train_sft
from tests.agents.grpo.worlds import TINY, build_game, build_tiny_policy, teacher_episodes

pytest.register_assert_rewrite("tests.agents.grpo.engine_contract")


@pytest.fixture(scope="session")
def warm_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy that has seen the teacher long enough to search now and then."""
    torch.set_num_threads(1)
    folder, game = tmp_path_factory.mktemp("warm_policy"), build_game()
    policy = build_tiny_policy(game)
    traces = [encode_episode(episode, policy.tokenizer) for episode in teacher_episodes(game)]
    config = SftConfig(num_epochs=1, batch_size=8, learning_rate=1e-2, checkpoint_every=1000)
    policy = train_sft(policy, [Phase(traces, 20, 8)], config, folder=folder, seed=0, progress=False)
    save_policy(policy, folder / "policy")
    return folder / "policy"


@pytest.fixture(scope="module")
def wide_policy() -> Policy:
    """One that vLLM can run: its attention on CPUs wants heads of 32 at least."""
    return build_tiny_policy(build_game(), config=dataclasses.replace(TINY, hidden_size=64))
