"""The engine by name: what a run samples with, whichever policy it trains at the moment."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from agents.grpo.generation.base import Generator
from agents.grpo.generation.hf import HFGenerator

if TYPE_CHECKING:
    from agents.grpo.generation.vllm import VllmGenerator
    from agents.grpo.policy import Policy

ENGINES = ("hf", "vllm")


class Engine:
    """Makes Generators that follow a policy. vLLM is started once a run and then handed from policy to policy."""

    def __init__(self, name: str = "hf", *, dtype: str = "float32", memory_share: float = 0.4) -> None:
        """Choose the engine; nothing is started yet.

        Args:
            name: hf (transformers, in the trainer's own model) or vllm.
            dtype: of vLLM's copy of the weights.
            memory_share: of a GPU's memory that vLLM may take.

        Raises:
            ValueError: if there is no such engine.
        """
        if name not in ENGINES:
            close = difflib.get_close_matches(name, ENGINES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"expected engine to be one of {', '.join(ENGINES)}, got {name!r}{hint}")
        self.name = name
        self._dtype, self._memory_share = dtype, memory_share
        self._vllm: VllmGenerator | None = None

    def follow(self, policy: Policy) -> Generator:
        """Return a generator that samples from this policy, and from what becomes of it after `weights_changed`.

        Raises:
            AgentError: if vLLM is not installed or does not start.
        """
        if self.name == "hf":
            return HFGenerator(policy.model, policy.tokenizer)
        if self._vllm is None:
            from agents.grpo.generation.vllm import VllmGenerator

            self._vllm = VllmGenerator.of_policy(policy, dtype=self._dtype, memory_share=self._memory_share)
        else:
            self._vllm.follow(policy.model)
        return self._vllm
