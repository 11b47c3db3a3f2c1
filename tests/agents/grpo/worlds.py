"""What the tests of the LLM agent share: a fake game, a tiny policy, an engine that reads a script."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, SamplingParams
from agents.grpo.policy import Policy, PolicyConfig, build_policy
from agents.grpo.tokenizer import encode, train_tokenizer
from agents.heuristic_agent import HeuristicAgent
from agents.play import play
from deeprec_env.config import GameConfig
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from tests.fakes import build_fake_world

TINY = PolicyConfig(hidden_size=32, num_layers=2, num_heads=2, max_tokens=512, vocab_size=600)


def build_game(stage: str = "cold") -> Game:
    return Game(build_fake_world(), GameConfig(stage=stage, prompt_style="compact", max_history=4, k=6, top_k=3))


def teacher_episodes(game: Game, *, num_samples: int = 4) -> list[Episode]:
    users = list(range(game.world.splits.num_users))
    return play(game, HeuristicAgent(num_searches="1-3"), users, split="train", num_samples=num_samples)


def build_tiny_policy(game: Game, *, seed: int = 0, config: PolicyConfig = TINY) -> Policy:
    catalog = game.world.catalog
    titles = [game.world.display(item_id).title for item_id in range(1, catalog.num_items + 1)]
    texts = [episode.transcript for episode in teacher_episodes(game, num_samples=1)]
    return build_policy(config, train_tokenizer(texts, titles=titles, vocab_size=config.vocab_size), seed=seed)


class ScriptedGenerator:
    """Answers the n-th turn of every episode with the n-th text; counts what it was asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
        self._turns = [encode(tokenizer, text) for text in texts]
        self._next: dict[int, int] = {}
        self.contexts: list[tuple[int, list[int]]] = []
        self.seeds: list[int] = []

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        completions = []
        for request in requests:
            turn = self._next.get(request.key, 0)
            self._next[request.key] = turn + 1
            self.contexts.append((request.key, list(request.ids)))
            self.seeds.append(request.seed)
            ids = self._turns[turn][: params.max_tokens]
            finish = FinishReason.STOP if ids[-1] in params.stop_ids else FinishReason.LENGTH
            completions.append(Completion(tuple(ids), tuple(-0.5 for _ in ids), finish))
        return completions

    def weights_changed(self) -> None:
        self._next = {}
