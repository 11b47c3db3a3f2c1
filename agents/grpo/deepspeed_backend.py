"""The backend DeepSpeed: ZeRO 1, 2 and 3 with offloading. The one module that imports it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from agents.base import AgentError
from agents.grpo.backend import MOMENTS, Backend, OptimizerConfig
from agents.grpo.config import BackendConfig
from agents.grpo.forward import Scorer
from agents.grpo.ranks import Ranks

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
try:
    import deepspeed
    from deepspeed.utils import (
        safe_get_full_fp32_param,
        safe_get_full_optimizer_state,
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
    )
except ImportError as error:
    raise AgentError(
        f"the backend deepspeed wants DeepSpeed ({error}): DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed, "
        "after torch"
    ) from error


# It calls torch's collectives by names that torch 2.13 has renamed.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


class DeepSpeedBackend(Backend):
    """A DeepSpeed engine. Works on one process as well; several share what `zero_stage` says."""

    def __init__(self, model: PreTrainedModel, config: BackendConfig, optimizer: OptimizerConfig) -> None:
        """See Backend. Without a process group one of this process alone is made."""
        super().__init__(model, config, optimizer)
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            meeting = Path(tempfile.mkdtemp()) / "ranks"
            dist.init_process_group(backend, init_method=meeting.as_uri(), rank=0, world_size=1)
            os.environ.setdefault("LOCAL_RANK", "0")
        if self.device.type == "cpu":
            # An operation that DeepSpeed would compile for a minute; gloo does without.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        bf16 = config.precision == "bf16"
        exact = {name: value.detach().cpu().clone() for name, value in self.trained().items()} if bf16 else {}
        # DeepSpeed's own AdamW would be compiled first.
        adamw = torch.optim.AdamW(
            self.trained().values(), lr=0.0, weight_decay=optimizer.weight_decay, betas=optimizer.betas
        )
        self._engine, *_ = deepspeed.initialize(
            model=Scorer(model), optimizer=adamw, config=engine_config(config, optimizer)
        )
        if exact:
            # The engine's own copies were made from the rounded weights.
            self.set_whole(exact)

    @staticmethod
    def _wants_copy(config: BackendConfig) -> bool:
        return config.lora_rank > 0 or config.zero_stage == 3

    def score(self, ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies."""
        scores: tuple[Tensor, Tensor] = self._engine(ids_NT.to(self.device), mask_NT.to(self.device))
        return scores

    def accumulate(self, loss: Tensor) -> None:
        """Add a loss's gradient."""
        # DeepSpeed takes the mean over ranks.
        self._engine.backward(loss * Ranks.current().size)

    def step(self, learning_rate: float) -> float:
        """Take a step and return the gradient's norm."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def whole(self, parameter: Parameter) -> Tensor:
        """Return the parameter, put together from all ranks."""
        if parameter.requires_grad:
            return safe_get_full_fp32_param(parameter).detach()
        split = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter]) if split else contextlib.nullcontext():
            return parameter.detach().float().clone()

    def set_whole(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters, in the engine's precision and in float32."""
        trained = self.trained()
        for name, tensor in values.items():
            value = tensor.to(self.device)
            safe_set_full_fp32_param(trained[name], value)
            self._set_low(trained[name], value)

    @torch.no_grad()
    def _set_low(self, parameter: Parameter, value: Tensor) -> None:
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if Ranks.current().first:
                    parameter.copy_(value)
        else:
            parameter.copy_(value)

    def moment(self, parameter: Parameter, key: str) -> Tensor:
        """Return one of MOMENTS, put together from all ranks."""
        return safe_get_full_optimizer_state(parameter, key)

    def restore(self, values: Mapping[str, Mapping[str, Tensor]], *, num_updates: int) -> None:
        """Set the optimizer's state."""
        self._make_state()
        trained = self.trained()
        for name, parameter in trained.items():
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, values[name][key].to(self.device), key)
        for state in self._base_states():
            state["step"] = torch.as_tensor(float(num_updates)).to(state["step"])

    def _make_state(self) -> None:
        """Let the optimizer allocate its state: a step of nothing, with learning rate 0."""
        ids_NT = torch.zeros((1, 2), dtype=torch.int64)
        logps, _ = self.score(ids_NT, torch.tensor([[False, True]]))
        self.accumulate(logps.sum() * 0.0)
        self.step(0.0)

    def _base_states(self) -> list[dict[str, Any]]:
        return [state for state in self._engine.optimizer.optimizer.state.values() if "step" in state]

    @property
    def num_updates(self) -> int:
        """Steps so far."""
        return max((int(state["step"]) for state in self._base_states()), default=0)


def engine_config(config: BackendConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """Return DeepSpeed's configuration for ours."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload in ("optimizer", "all"):
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        # Any number of backward passes, then one step.
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 2**60,
    }
