"""Where a turn ends: by token id where a closing tag is one token, by text where it is several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from agents.grpo.tokenizer import decode, encode
from deeprec_env.protocol import STOP_STRINGS


@dataclass(frozen=True, slots=True)
class TurnStops:
    """What ends a turn, in the two forms that `SamplingParams` takes."""

    ids: frozenset[int]
    """Exact and without cost; the end of text is among them."""
    strings: tuple[str, ...]
    """The closing tags that this tokenizer writes as several tokens."""


def turn_stops(tokenizer: PreTrainedTokenizerBase) -> TurnStops:
    """Return what ends a turn: the two closing tags, and the end of text.

    Encoding never gives a token that holds a tag beside other text, but a byte-level BPE learns such tokens from
    dialogues, and a policy can sample them: they end a turn as the tag does.
    """
    strings = [tag for tag in STOP_STRINGS if len(encode(tokenizer, tag)) > 1]
    ids = {number for token, number in tokenizer.get_vocab().items() if any(tag in token for tag in STOP_STRINGS)}
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    return TurnStops(frozenset(ids), tuple(strings))


class StopWatch:
    """Says of growing sequences whether the newest token completed a stop string.

    The string may end anywhere inside that token, and begin anywhere inside an older one. Only as many of the last
    tokens are decoded as the longest string can span, a token being at least one byte of text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        """Watch for these strings; none of them is empty."""
        self._tokenizer, self._strings = tokenizer, tuple(strings)
        # The window may begin within a character; then its first bytes decode to something else, which is no part of a
        # string that the newest token completes.
        self._window = max((len(text.encode()) for text in self._strings), default=0) + 1

    def completed(self, ids: Sequence[int]) -> bool:
        """Return whether one of the strings stands in the text of the last tokens; to be asked after each token."""
        if not self._strings:
            return False
        text = decode(self._tokenizer, ids[-self._window :])
        return any(stop in text for stop in self._strings)
