"""A byte-level BPE tokenizer trained on the spot, for micro policies that need no download.

Text is split at line breaks and after the number of a list line, never at spaces, so that frequent titles become one
token: dialogues are short, and a policy copies a title by copying a token. Every tag is one token.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deeprec_env.protocol import PREFERENCE_END, RECOMMENDATION_END, SPECIAL_TOKENS

PAD_TOKEN, EOS_TOKEN = "<|pad|>", "<|end_of_text|>"
_PIECES = (
    r"\n+",
    # "12. " apart from the title: a title must be the same tokens at every place of a list.
    r"^\d{1,3}\. ",
    # What follows the year of a title, as in "Fargo (1996) | Crime".
    r" \| .*$",
    r"; ",
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Return a tokenizer fitted to the texts; deterministic, and lossless on any text.

    Args:
        texts: what the policy will read and write; how often a title stands in it decides whether it gets a token.
        vocab_size: upper bound, tags and padding included; at least 300.

    Raises:
        ValueError: if vocab_size leaves no room beside bytes and tags.
    """
    if vocab_size < 300:
        raise ValueError(f"expected vocab_size >= 300 (256 bytes, the tags, some merges), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _PIECES]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD_TOKEN, EOS_TOKEN, *SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        extra_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the text's token ids, tags as single tokens, nothing added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return ids


def decode(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """Return the text of sampled ids, tags included, nothing cleaned up."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a turn: the two closing tags, and the end of text.

    Raises:
        ValueError: if a closing tag is not a single token.
    """
    stops = set()
    for tag in (PREFERENCE_END, RECOMMENDATION_END):
        ids = encode(tokenizer, tag)
        if len(ids) != 1:
            raise ValueError(f"expected {tag!r} to be one token, got {len(ids)}; add the tags to the tokenizer")
        stops.update(ids)
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    return frozenset(stops)
