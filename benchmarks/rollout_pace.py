"""What the rollouts of `benchmarks/rollout.py` are made of: how long each turn is, the same for every loop.

The tokens are sampled by the model; how many there are, and which action follows them, is drawn beforehand. So all
loops sample equally much, whatever else differs, and a model that has not been trained to play can be measured.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from transformers import PreTrainedTokenizerBase

from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, SamplingParams
from agents.grpo.generation.vllm import VllmGenerator
from agents.grpo.policy import Policy
from agents.grpo.tokenizer import decode, encode
from deeprec_env.protocol import render_recommend, render_search
from deeprec_env.world import World


@dataclass(frozen=True)
class Pace:
    """How uneven turns are."""

    min_searches: int = 1
    max_searches: int = 6
    """The number of searches is uniform between the two."""
    median_tokens: float = 48.0
    """Of the tokens sampled in a turn, which are lognormal: most turns are short, a few several times longer."""
    sigma: float = 0.9
    """Of their logarithm; 0 makes all turns equally long. At 0.9 one turn in ten has over three times the median."""
    min_tokens: int = 8
    max_tokens: int = 256


@dataclass(frozen=True)
class PlannedTurn:
    """A turn as it was drawn."""

    num_tokens: int
    """To be sampled."""
    closing: str
    """The action that is appended to them."""


class Script:
    """The turns of every rollout, drawn from a seed."""

    def __init__(self, world: World, pace: Pace, *, num_rollouts: int, top_k: int, seed: int) -> None:
        """Draw them.

        Args:
            world: searches are for attributes of its items, recommendations name its titles.
            pace: how uneven.
            num_rollouts: keys 0 to num_rollouts - 1.
            top_k: titles of a recommendation.
            seed: of the draw.
        """
        rng = np.random.default_rng(seed)
        self._rollouts = [_draw(world, pace, rng, top_k=top_k) for _ in range(num_rollouts)]

    def turn(self, key: int, number: int) -> PlannedTurn:
        """Return a rollout's turn, 0-based."""
        return self._rollouts[key][number]

    @property
    def num_searches(self) -> list[int]:
        """The searches of every rollout."""
        return [len(turns) - 1 for turns in self._rollouts]

    @property
    def lengths(self) -> list[int]:
        """The tokens of every turn."""
        return [turn.num_tokens for turns in self._rollouts for turn in turns]


def _draw(world: World, pace: Pace, rng: np.random.Generator, *, top_k: int) -> list[PlannedTurn]:
    num_searches = int(rng.integers(pace.min_searches, pace.max_searches + 1))
    sampled = np.exp(np.log(pace.median_tokens) + pace.sigma * rng.standard_normal(num_searches + 1))
    lengths = sampled.round().astype(int).clip(pace.min_tokens, pace.max_tokens).tolist()
    # Two items' attributes together: nearly every search is a new text for the recommender's encoder.
    picked = rng.integers(1, world.catalog.num_items + 1, size=(num_searches, 2)).tolist()
    wishes = ["; ".join(world.display(item_id).attributes for item_id in pair) for pair in picked]
    items = rng.choice(world.catalog.num_items, size=top_k, replace=False) + 1
    ranking = render_recommend([world.display(int(item_id)).title for item_id in items], reasoning="")
    closings = [*(render_search(wish) for wish in wishes), ranking]
    return [PlannedTurn(length, "\n" + closing) for length, closing in zip(lengths, closings, strict=True)]


class PacedEngine(VllmGenerator):
    """Samples as many tokens as the script says, and appends the action; tags and the end of text are not sampled."""

    script: Script
    num_sampled = 0
    """Tokens, of all passes; the appended actions do not count."""
    _bias: Mapping[int, float] = MappingProxyType({})

    def play_by(self, script: Script, policy: Policy) -> None:
        """Begin a pass."""
        self.script, self._policy_tokenizer = script, policy.tokenizer
        self._turns: dict[int, int] = {}
        self._bias = dict.fromkeys(_banned_ids(policy.tokenizer), -100.0)

    def submit(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> None:
        """Hand requests to the engine, each with its own length."""
        for request in requests:
            number = self._turns.get(request.key, -1) + 1
            self._turns[request.key] = number
            length = self.script.turn(request.key, number).num_tokens
            super().submit([request], SamplingParams(length, frozenset(), params.temperature))

    def collect(self) -> list[tuple[int, Completion]]:
        """Return what has ended, actions included."""
        return [(key, self._closed(key, completion)) for key, completion in super().collect()]

    def _closed(self, key: int, completion: Completion) -> Completion:
        self.num_sampled += len(completion.ids)
        closing = encode(self._policy_tokenizer, self.script.turn(key, self._turns[key]).closing)
        logps = completion.logps + (0.0,) * len(closing)
        return Completion((*completion.ids, *closing), logps, FinishReason.STOP)

    def _translated(self, request: GenerationRequest, params: SamplingParams):  # type: ignore[no-untyped-def]
        translated = super()._translated(request, params)
        translated.logit_bias = dict(self._bias)
        return translated


@functools.cache
def _banned_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the end of text and all tokens in which a tag can begin, so that none is ever sampled."""
    written = [token for token in range(len(tokenizer)) if "<" in decode(tokenizer, [token])]
    return sorted({*written, *map(int, tokenizer.all_special_ids)})
