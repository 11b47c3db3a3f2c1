"""Copy drills: dialogues over random items whose answer is the list itself, for a policy that starts from nothing.

A micro model learns the frequent titles of a rule agent's episodes long before it learns to read the lists. Drills hold
nothing to memorise: the only way to predict them is to copy, and short lists let the circuit for that form early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerBase

from agents.grpo.tokenizer import encode
from agents.grpo.types import TokenTrace
from deeprec_env.prompts import render_prompt
from deeprec_env.protocol import render_items, render_recommend, render_search

if TYPE_CHECKING:
    from deeprec_env.game import Game

_SHORTEST = 2
_MAX_HISTORY = 2


def copy_drills(game: Game, tokenizer: PreTrainedTokenizerBase, *, count: int, seed: int) -> list[TokenTrace]:
    """Return dialogues of one search: n random items come back, the answer names all n in their order.

    Lengths go up to the game's k; n is drawn with a probability of 1 / n, so most lists are short.

    Args:
        game: whose items and prompt style are used; no user takes part.
        tokenizer: of the policy.
        count: how many.
        seed: of the draws.
    """
    rng = np.random.default_rng([seed, count])
    num_items, config = game.world.catalog.num_items, game.config
    lengths = np.arange(_SHORTEST, max(_SHORTEST + 1, min(config.k, num_items) + 1))
    weights = 1.0 / lengths
    traces = []
    for size in rng.choice(lengths, size=count, p=weights / weights.sum()):
        shown = [game.world.display(int(item)) for item in rng.choice(num_items, size=size, replace=False) + 1]
        past = [game.world.display(int(item)) for item in rng.choice(num_items, size=_MAX_HISTORY) + 1]
        prompt = render_prompt(past, top_k=config.top_k, style=config.prompt_style, max_history=config.max_history)
        trace = TokenTrace(tuple(encode(tokenizer, prompt)))
        _append(trace, encode(tokenizer, render_search("", reasoning="Anything.")))
        trace.append_observation(encode(tokenizer, render_items(shown)))
        answer = render_recommend([item.title for item in shown], reasoning="In this order.")
        _append(trace, encode(tokenizer, answer))
        traces.append(trace)
    return traces


def _append(trace: TokenTrace, ids: list[int]) -> None:
    trace.append_turn(ids, [0.0] * len(ids))
