"""A byte-level BPE tokenizer trained on the spot, for micro policies that need no download.

Text is split where a line of a list begins and where its attributes do, never at spaces. Every tag is one token, and so
is each of the titles that are given: dialogues are short, and a policy copies a title by copying one token. What is
written stays plain text, and any text can be written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deeprec_env.protocol import PREFERENCE_END, RECOMMENDATION_END, SPECIAL_TOKENS

PAD_TOKEN, EOS_TOKEN = "<|pad|>", "<|end_of_text|>"
_MIN_VOCAB = 300
# The beginning of a list's line; other line breaks; the attributes behind a title, as in "Fargo (1996) | Crime"; what
# separates wishes.
_PIECES = r"\n\d{1,3}\. |\n+| \| [^\n]*|; "


def train_tokenizer(
    texts: Iterable[str], *, titles: Sequence[str] = (), vocab_size: int = 4096
) -> PreTrainedTokenizerFast:
    """Return a tokenizer fitted to the texts; deterministic, and lossless on any text.

    Args:
        texts: what the policy will read and write.
        titles: each becomes one token where it stands alone on a line of a list; the first ones, if there are more than
            two thirds of the vocabulary. The others are several tokens.
        vocab_size: upper bound, tags, padding and titles included; at least 300.

    Raises:
        ValueError: if vocab_size leaves no room beside bytes and tags.
    """
    if vocab_size < _MIN_VOCAB:
        raise ValueError(f"expected vocab_size >= {_MIN_VOCAB} (256 bytes, the tags, some merges), got {vocab_size}")
    chosen = list(dict.fromkeys(titles))[: max(0, min(vocab_size * 2 // 3, vocab_size - _MIN_VOCAB))]
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(chosen),
        special_tokens=[PAD_TOKEN, EOS_TOKEN, *SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = [byte_level.pre_tokenize_str(title) for title in chosen]
    tokenizer = _with_words(tokenizer, [found[0][0] for found in pieces if len(found) == 1])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        extra_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )


def _with_words(tokenizer: Tokenizer, words: Sequence[str]) -> Tokenizer:
    """Return the tokenizer with these byte-level words in its vocabulary, each taken whole before any merge."""
    content = json.loads(tokenizer.to_str())
    vocab: dict[str, int] = content["model"]["vocab"]
    for word in words:
        vocab.setdefault(word, len(vocab))
    content["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(content))


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
