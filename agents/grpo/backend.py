"""What holds the policy's weights while it is trained: forward, backward, the optimizer's step, and what is saved.

Two of them behind one class: plain torch here, DeepSpeed in agents.grpo.deepspeed_backend. What they save has one form,
whole tensors under the model's own names, so that a checkpoint of either resumes under the other, on any number of
processes.
"""

from __future__ import annotations

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from agents.base import AgentError
from agents.grpo.attention import choose_attention, packs
from agents.grpo.config import BackendConfig
from agents.grpo.forward import Scorer
from agents.grpo.lora import add_adapters, merged_name, plain_weight
from agents.grpo.ranks import Ranks, local_device

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW's settings but for the learning rate, which each step brings."""

    weight_decay: float
    max_grad_norm: float
    """Gradients of all weights together are clipped to it."""
    betas: tuple[float, float]


class Backend(ABC):
    """A model under training. All ranks call the same methods the same number of times.

    One update is any number of `score` and `accumulate`, then `step`. The gradient is the sum over ranks and calls.
    """

    def __init__(self, model: PreTrainedModel, config: BackendConfig, optimizer: OptimizerConfig) -> None:
        """Take the model over: it is moved to this process's device and changed in place from now on."""
        self.config, self.optimizer_config = config, optimizer
        self.device = local_device()
        torch.nn.Module.to(model, self.device)
        choose_attention(model, config.attention, precision=config.precision)
        self.sampling_model = model
        """What an engine samples from and follows: the trained model, or a copy where that is split or adapted."""
        if self._wants_copy(config):
            self.sampling_model = copy.deepcopy(model).eval()
            if config.precision == "bf16":
                self.sampling_model.bfloat16()
        if config.lora_rank:
            add_adapters(model, rank=config.lora_rank, alpha=config.lora_alpha, num_layers=config.lora_layers)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model = model

    @staticmethod
    def _wants_copy(config: BackendConfig) -> bool:
        return config.lora_rank > 0

    @property
    def packs(self) -> bool:
        """Whether `score` puts sequences into one row without padding."""
        return packs(self.model)

    def trained(self) -> dict[str, Parameter]:
        """Return the parameters that are trained, by their names in the model."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @abstractmethod
    def score(self, ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities, with gradient unless in no_grad, and entropies: see `forward.sampled_logps`."""

    @abstractmethod
    def accumulate(self, loss: Tensor) -> None:
        """Add a loss's gradient to those since the last step."""

    @abstractmethod
    def step(self, learning_rate: float) -> float:
        """Take a step and return the gradient's norm before clipping; if that is not finite, nothing is changed."""

    @abstractmethod
    def whole(self, parameter: Parameter) -> Tensor:
        """Return the parameter, put together from all ranks, float32, detached."""

    @abstractmethod
    def moment(self, parameter: Parameter, key: str) -> Tensor:
        """Return one of MOMENTS of a trained parameter, put together from all ranks, float32."""

    @abstractmethod
    def restore(self, values: Mapping[str, Mapping[str, Tensor]], *, num_updates: int) -> None:
        """Set the optimizer's state from MOMENTS by parameter name, as after so many updates."""

    @property
    @abstractmethod
    def num_updates(self) -> int:
        """Steps that the optimizer has taken, those of the run that was resumed included."""

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Switch dropout and gradient checkpointing on, which sampling must not meet."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the policy's whole weights, float32, adapters merged, under the plain model's names; on all ranks."""
        for name, parameter in self.model.named_parameters():
            if ".lora_" not in name:
                yield merged_name(name), plain_weight(self.model, name, self.whole(parameter), whole=self.whole)

    @torch.no_grad()
    def follow(self) -> None:
        """Bring the sampling model up to the trained one, where it is another; to be called after the steps."""
        if self.sampling_model is not self.model:
            targets = dict(self.sampling_model.named_parameters())
            for name, tensor in self.weights():
                targets[name].copy_(tensor)

    @torch.no_grad()
    def plain_model(self) -> PreTrainedModel:
        """Return the whole model in float32 without adapters: the sampling model, or a copy if that is rounded."""
        if self.sampling_model.dtype == torch.float32:
            return self.sampling_model
        exact = copy.deepcopy(self.sampling_model)
        torch.nn.Module.to(exact, "cpu", torch.float32)
        targets = dict(exact.named_parameters())
        for name, tensor in self.weights():
            targets[name].copy_(tensor)
        return exact

    @torch.no_grad()
    def policy_weights(self) -> dict[str, Tensor] | None:
        """Return the `weights` in main memory on the first rank, None on the others; on all ranks."""
        return _collected(self.weights())

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        """Return what resuming needs besides the policy; whole on the first rank, empty tensors on the others."""
        trained = self.trained()
        moments: dict[str, dict[str, Tensor]] = {}
        if self.num_updates:
            for key in MOMENTS:
                found = _collected((name, self.moment(parameter, key)) for name, parameter in trained.items())
                for name, tensor in (found or {}).items():
                    moments.setdefault(name, {})[key] = tensor
        adapters = _collected((name, self.whole(parameter)) for name, parameter in trained.items() if "lora_" in name)
        return {"num_updates": self.num_updates, "moments": moments, "adapters": adapters or {}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; the model is the one that was saved beside it (with adapters: the one that they adapt).

        Raises:
            AgentError: if it is of another model.
        """
        trained = self.trained()
        named = state["moments"].keys() if state["num_updates"] else trained.keys()
        if named != trained.keys() or state["adapters"].keys() != {name for name in trained if "lora_" in name}:
            raise AgentError(
                f"expected the optimizer's state of {len(trained)} weights, got one of {len(state['moments'])}; "
                "was the checkpoint trained with another lora_rank?"
            )
        if state["adapters"]:
            self.set_whole(state["adapters"])
        if state["num_updates"]:
            self.restore(state["moments"], num_updates=int(state["num_updates"]))
        self.follow()

    @abstractmethod
    def set_whole(self, values: Mapping[str, Tensor]) -> None:
        """Set trained parameters by name from whole tensors."""


class TorchBackend(Backend):
    """Plain torch. Several processes hold a replica each and add up their gradients."""

    def __init__(self, model: PreTrainedModel, config: BackendConfig, optimizer: OptimizerConfig) -> None:
        """See Backend."""
        super().__init__(model, config, optimizer)
        self._scorer = Scorer(model)
        self._optimizer = torch.optim.AdamW(
            self.trained().values(), lr=0.0, weight_decay=optimizer.weight_decay, betas=optimizer.betas
        )

    def score(self, ids_NT: Tensor, mask_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropies."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            scores: tuple[Tensor, Tensor] = self._scorer(ids_NT.to(self.device), mask_NT.to(self.device))
        return scores

    def accumulate(self, loss: Tensor) -> None:
        """Add a loss's gradient."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Take a step and return the gradient's norm."""
        parameters = self.trained().values()
        if Ranks.current().size > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.optimizer_config.max_grad_norm))
        if norm - norm == 0:  # finite
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def whole(self, parameter: Parameter) -> Tensor:
        """Return the parameter itself."""
        return parameter.detach().float()

    def moment(self, parameter: Parameter, key: str) -> Tensor:
        """Return one of MOMENTS."""
        state = self._optimizer.state.get(parameter)
        # A weight that never had a gradient has no state.
        return torch.zeros_like(parameter) if state is None else state[key]

    def restore(self, values: Mapping[str, Mapping[str, Tensor]], *, num_updates: int) -> None:
        """Set the optimizer's state."""
        for name, parameter in self.trained().items():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(num_updates)),
                **{key: values[name][key].to(parameter.device, copy=True) for key in MOMENTS},
            }

    @property
    def num_updates(self) -> int:
        """Steps so far."""
        return max((int(state["step"]) for state in self._optimizer.state.values()), default=0)

    @torch.no_grad()
    def set_whole(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters."""
        trained = self.trained()
        for name, tensor in values.items():
            trained[name].copy_(tensor)


def build_backend(model: PreTrainedModel, config: BackendConfig, optimizer: OptimizerConfig) -> Backend:
    """Return the backend that the configuration names, with the model in it.

    Raises:
        AgentError: if what it needs is not installed.
    """
    if config.name == "torch":
        return TorchBackend(model, config, optimizer)
    from agents.grpo.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend(model, config, optimizer)


def _collected(named: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor] | None:
    """Return copies in main memory on the first rank; the others go through them too, for it takes all ranks."""
    first, kept = Ranks.current().first, {}
    for name, tensor in named:
        if first:
            kept[name] = tensor.detach().to("cpu", copy=True)
    return kept if first else None
