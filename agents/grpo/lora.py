"""Low-rank adapters by peft, in the model itself; engines and checkpoints get the merged weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from agents.base import AgentError

_ADAPTER = "default"
_BASE = ".base_layer."
_SEED = 0


def add_adapters(model: PreTrainedModel, *, rank: int, alpha: float, num_layers: int = 0) -> None:
    """Put adapters beside all linear layers but the head, in place; only they are trained from now on.

    They begin as nothing: the model's outputs are what they were. The same for every process; the global generator is
    left as it was.

    Args:
        model: of transformers, with its blocks in a list.
        rank: of the adapters' products.
        alpha: they are scaled by alpha / rank.
        num_layers: only the last so many blocks get adapters, and no gradient is computed below them; 0 takes all.

    Raises:
        AgentError: if peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise AgentError(f"lora_rank wants peft: pip install peft ({error})") from error
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}
    if num_layers:
        depth = int(model.config.num_hidden_layers)
        options["layers_to_transform"] = list(range(max(0, depth - num_layers), depth))
    config = peft.LoraConfig(target_modules=_linear_names(model), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)


def _linear_names(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )


def merged_name(name: str) -> str:
    """Return a parameter's name in the model without adapters."""
    return name.replace(_BASE, ".")


def plain_weight(model: PreTrainedModel, name: str, tensor: Tensor, *, whole: Callable[[Parameter], Tensor]) -> Tensor:
    """Return a parameter of the model without adapters: the tensor, plus the adapter's product where there is one.

    Args:
        model: with adapters, or without any.
        name: of the parameter in the model.
        tensor: its value.
        whole: puts an adapter's parameters together.
    """
    owner, found, leaf = name.rpartition(_BASE)
    if not found or leaf != "weight":
        return tensor
    layer: Any = model.get_submodule(owner)
    down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    return tensor + float(layer.scaling[_ADAPTER]) * (whole(up) @ whole(down))
