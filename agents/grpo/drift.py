"""The drift meter: what would become of sampled tokens if their text were encoded again.

Nothing here does that to what is trained: a rollout keeps the ids that were sampled. The meter says what a loop that
keeps text instead would train on tokens that the policy never chose, and with which probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from transformers import PreTrainedTokenizerBase

from agents.grpo.tokenizer import decode, encode
from agents.grpo.types import TokenTrace


def count_drift(tokenizer: PreTrainedTokenizerBase, trace: TokenTrace) -> int:
    """Return how many of a rollout's sampled tokens do not come back when each turn's text is encoded again."""
    return sum(num_changed(ids, encode(tokenizer, decode(tokenizer, ids))) for ids in sampled_turns(trace))


def sampled_turns(trace: TokenTrace) -> list[list[int]]:
    """Return the sampled ids of each turn; a turn without any is []."""
    turns: list[list[int]] = [[] for _ in range(trace.num_turns)]
    for token, sampled, turn in zip(trace.ids, trace.loss_mask, trace.turn_of, strict=True):
        if sampled:
            turns[turn].append(token)
    return turns


def num_changed(ids: Sequence[int], again: Sequence[int]) -> int:
    """Return how many of `ids` have no counterpart in `again`, the two aligned: 2 for [1, 2, 3, 4] and [1, 9, 4]."""
    first = 0
    while first < min(len(ids), len(again)) and ids[first] == again[first]:
        first += 1
    # Most texts come back unchanged, or changed in few places: only what lies between is aligned, which costs more.
    last, last_again = len(ids), len(again)
    while last > first and last_again > first and ids[last - 1] == again[last_again - 1]:
        last, last_again = last - 1, last_again - 1
    matcher = SequenceMatcher(None, ids[first:last], again[first:last_again], autojunk=False)
    return last - first - sum(block.size for block in matcher.get_matching_blocks())
