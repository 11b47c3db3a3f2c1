"""Tiny models on disk that know nothing of the game, as a hub would hand them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

TEXTS = [
    "User: rank the titles of the list by preference, begin and end of item and recommendation, think. 1. 1990"
] * 3
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer without tags, and with a special token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )


def save_pretrained_model(folder: Path, *, kind: str = "llama", tied: bool = True, spare_rows: int = 0) -> Path:
    """Write a random model with its tokenizer and return the folder; embeddings may have more rows than tokens."""
    tokenizer = plain_tokenizer()
    cls: type[PretrainedConfig] = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind]
    config = cls(vocab_size=len(tokenizer) + spare_rows, tie_word_embeddings=tied, eos_token_id=0, **SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
