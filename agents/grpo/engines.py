"""The engine by name: what a run samples with, whichever policy it trains at the moment."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from agents.grpo.generation.base import Generator
from agents.grpo.generation.hf import HFGenerator

if TYPE_CHECKING:
    from agents.grpo.config import ServerConfig
    from agents.grpo.generation.vllm import VllmGenerator
    from agents.grpo.generation.vllm_server import VllmServerGenerator
    from agents.grpo.policy import Policy

ENGINES = ("hf", "vllm", "vllm-server")


class Engine:
    """Makes Generators that follow a policy. vLLM is started once a run and then handed from policy to policy."""

    def __init__(
        self,
        name: str = "hf",
        *,
        dtype: str = "float32",
        memory_share: float = 0.4,
        server: ServerConfig | None = None,
    ) -> None:
        """Choose the engine; nothing is started yet.

        Args:
            name: hf (transformers, in the trainer's own model), vllm (in this process) or vllm-server.
            dtype: of vLLM's copy of the weights.
            memory_share: of a GPU's memory that vLLM may take, in this process.
            server: where the server of vllm-server is; its folder must be set.

        Raises:
            ValueError: if there is no such engine, or vllm-server is not told where its server is.
        """
        if name not in ENGINES:
            close = difflib.get_close_matches(name, ENGINES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"expected engine to be one of {', '.join(ENGINES)}, got {name!r}{hint}")
        if name == "vllm-server" and (server is None or not server.url or not server.weights):
            raise ValueError(
                f"expected the address of a server for the engine vllm-server, got {server}; training takes it by "
                "--server.url http://HOST:8000"
            )
        self.name = name
        self._config = server
        self._dtype, self._memory_share = dtype, memory_share
        self._vllm: VllmGenerator | None = None
        self._server: VllmServerGenerator | None = None

    def follow(self, policy: Policy) -> Generator:
        """Return a generator that samples from this policy, and from what becomes of it after `weights_changed`.

        All ranks call it.

        Raises:
            AgentError: if vLLM is not installed or does not start, or its server is not as it must be.
        """
        if self.name == "hf":
            return HFGenerator(policy.model, policy.tokenizer)
        if self.name == "vllm-server":
            self._server = self._server or self._connected()
            self._server.follow(policy)
            return self._server
        if self._vllm is None:
            from agents.grpo.generation.vllm import VllmGenerator

            self._vllm = VllmGenerator.of_policy(policy, dtype=self._dtype, memory_share=self._memory_share)
        else:
            self._vllm.follow(policy.model)
        return self._vllm

    def follow_here(self, policy: Policy) -> Generator:
        """Return a generator for a policy that a server elsewhere need not know of, on one rank alone."""
        return HFGenerator(policy.model, policy.tokenizer) if self.name == "vllm-server" else self.follow(policy)

    def close(self) -> None:
        """Close the connections to a server; `follow` opens them again."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _connected(self) -> VllmServerGenerator:
        from agents.grpo.generation.vllm_server import VllmServerGenerator

        assert self._config is not None
        return VllmServerGenerator(
            self._config.url,
            weights=Path(self._config.weights),
            weights_there=self._config.weights_there,
            dtype=self._dtype,
            timeout_s=self._config.timeout_s,
        )
