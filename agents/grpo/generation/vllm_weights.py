"""Weights on their way into vLLM: what is sent, and what vLLM's workers do with it.

Workers import this module, on a server's machine too: `--worker-extension-cls` names `WeightReceiver`. It wants nothing
that is not there beside vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPE_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Of a model's config: what must be alike for one model to take another one's weights."""


def named_weights(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """Return a model's tensors under the names of its checkpoint, tied ones once."""
    tied = model.config.tie_word_embeddings
    return [
        (name, tensor.detach())
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    ]


def model_shape(config: Any) -> dict[str, Any]:
    """Return the `SHAPE_FIELDS` of a model's config, None for those that it lacks."""
    return {name: getattr(config, name, None) for name in SHAPE_FIELDS}


class WeightReceiver:
    """What an engine's worker can do besides; vLLM mixes it into its own class, so no name may be one of that."""

    model_runner: Any
    reload_weights: Callable[..., None]

    pushed_weights: str = ""
    """The name of the weights that came last; empty for those that the engine was started with."""

    def receive_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load a checkpoint's tensors into the running model."""
        from vllm.platforms import current_platform

        self.reload_weights(weights_iterator=iter(named))
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if head is not None and current_platform.is_cpu():
            # On CPUs linear weights are packed; a head that is tied to the embedding is not packed anew by a reload and
            # would go on with the old weights. (Packing twice does no harm.)
            from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

            dispatch_cpu_unquantized_gemm(head, remove_weight=False)

    def read_weights(self, path: str) -> dict[str, str]:
        """Load a safetensors file and return {"weights": its name without suffix}.

        Troubles are answers too, for an error would reach the client as no more than a status: {"missing": path} if
        there is no such file here, {"problem": text} if it cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                self.receive_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        except FileNotFoundError:
            return {"missing": path}
        except (OSError, SafetensorError) as error:
            return {"problem": f"{type(error).__name__}: {error}"}
        self.pushed_weights = Path(path).stem
        return {"weights": self.pushed_weights}

    def describe_engine(self) -> dict[str, Any]:
        """Return which model runs here and how, and which weights it was given last."""
        config = self.model_runner.model_config
        return {
            "weights": self.pushed_weights,
            "shape": model_shape(config.hf_text_config),
            "dtype": str(config.dtype).removeprefix("torch."),
            "logprobs_mode": str(config.logprobs_mode),
            "max_model_len": int(config.max_model_len),
        }
