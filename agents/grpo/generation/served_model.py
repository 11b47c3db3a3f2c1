"""The model that a vLLM server has loaded: whether it is of the policy's kind, and the way of new weights into it.

Weights pass through a folder that this machine and the server's both see. A file is named after the weights, appears
under its name when it is whole, and is removed once the server has read it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedModel

from agents.grpo.generation.vllm_client import RequestLost, ServerError, VllmClient
from agents.grpo.generation.vllm_weights import WeightReceiver, model_shape, named_weights
from agents.grpo.policy import Policy

_EXTENSION = f"{WeightReceiver.__module__}.{WeightReceiver.__qualname__}"
_PREFIX, _SUFFIX = "weights_", ".safetensors"
_AGAIN = "then start the same command again"
_RAW = "raw_logprobs"
"""Log-probabilities of temperature 1."""
_LOOKS = 3
"""How often the server looks for a file; network folders show new ones a moment later."""
_RESETS = 20
"""How often the prefix cache is tried to be dropped, while the server still gives up requests that were abandoned."""
_WAIT_S = 1.0
"""Between two of them."""


class ServedModel:
    """One server's model."""

    def __init__(self, client: VllmClient, folder: Path, *, folder_there: str = "", dtype: str = "float32") -> None:
        """Bind the server; nothing is sent yet.

        Args:
            client: the server.
            folder: belongs to this run alone, and the server's machine sees it.
            folder_there: the same folder in the server's words; empty if it is called the same there.
            dtype: what the server computes in; weights are written in it.

        Raises:
            ValueError: if there is no such dtype.
        """
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"expected a dtype such as float32 or bfloat16, got {dtype!r}")
        self._client, self._dtype = client, dtype
        self._folder = folder.absolute()
        self._folder_there = folder_there.rstrip("/") or str(self._folder)
        self.name = ""
        """What the server calls the model, once it was checked."""

    def check(self, policy: Policy) -> None:
        """Make sure that the server is there, and samples from a model of the policy's kind as it must.

        Raises:
            ServerError: if not; it names the command that starts it.
        """
        start = f"start it there with: {self._command(policy)} (see docs/training.md), {_AGAIN}"
        try:
            self.name = self._client.model()
            answers = self._client.call_workers("describe_engine")
        except ServerError as error:
            raise ServerError(error.what, start) from error
        except RequestLost as error:
            raise ServerError(_lacking(self._client.url, error), start) from error
        for found in answers:
            problem = self._mismatch(found, policy)
            if problem:
                raise ServerError(f"the vLLM server at {self._client.url} {problem}", start)

    def _command(self, policy: Policy) -> str:
        folder = policy.model.name_or_path or "POLICY_FOLDER"
        folder = str(Path(folder).absolute()) if Path(folder).is_dir() else folder
        return (
            f"VLLM_SERVER_DEV_MODE=1 vllm serve {folder} --dtype {self._dtype} "
            f"--max-model-len {policy.max_length} --generation-config vllm --worker-extension-cls {_EXTENSION}"
        )

    def _mismatch(self, found: Mapping[str, Any], policy: Policy) -> str:
        """Return what is wrong with an engine, as the end of a sentence; "" if nothing is."""
        shape = model_shape(policy.model.config)
        if found["shape"] != shape:
            return f"has another model loaded ({self.name}): expected {_pairs(shape)}, got {_pairs(found['shape'])}"
        if found["dtype"] != self._dtype:
            return f"computes in {found['dtype']}, expected engine_dtype {self._dtype}"
        if found["logprobs_mode"] != _RAW:
            return f"reports {found['logprobs_mode']}, expected --logprobs-mode {_RAW}"
        if found["max_model_len"] < policy.max_length:
            return f"takes {found['max_model_len']} tokens, expected the policy's {policy.max_length}"
        return ""

    def check_weights(self, name: str) -> None:
        """Make sure that what was sampled came from the weights of this name.

        Raises:
            ServerError: if the server has others.
        """
        try:
            answers = self._client.call_workers("describe_engine")
        except RequestLost as error:
            raise ServerError(_lacking(self._client.url, error), f"start it anew there, {_AGAIN}") from error
        for found in answers:
            if found["weights"] != f"{_PREFIX}{name}":
                raise ServerError(
                    f"the vLLM server at {self._client.url} has other weights than it was given: it was started anew, "
                    "or another run uses it as well",
                    f"let it serve this run alone, {_AGAIN}",
                )

    def push(self, model: PreTrainedModel, name: str) -> None:
        """Give the server a model's weights under this name and have it drop what it computed with the old ones.

        Raises:
            ServerError: if it does not take them.
        """
        path = self._write(model, name)
        try:
            self._load(path)
            self._drop_prefixes()
        except RequestLost as error:
            raise ServerError(
                f"the vLLM server at {self._client.url} did not take the new weights ({error})",
                f"look at its log and start it anew, {_AGAIN}",
            ) from error
        finally:
            _remove(path)

    def _write(self, model: PreTrainedModel, name: str) -> Path:
        """Write the weights, and remove what a run that was killed has left."""
        path = self._folder / f"{_PREFIX}{name}{_SUFFIX}"
        partial = path.with_suffix(".partial")
        dtype = getattr(torch, self._dtype)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for old in self._folder.glob(f"{_PREFIX}{'[0-9a-f]' * 32}.*"):
                old.unlink(missing_ok=True)
            tensors = {
                key: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
                for key, tensor in named_weights(model)
            }
            save_file(tensors, partial, metadata={"format": "pt"})
            partial.replace(path)
        # safetensors has an error of its own for a full disk.
        except (OSError, SafetensorError) as error:
            _remove(partial)
            raise ServerError(
                f"cannot write the weights for the vLLM server into {self._folder} ({error})",
                f"make room there or set server.weights to another folder that both machines see, {_AGAIN}",
            ) from error
        return path

    def _load(self, path: Path) -> None:
        """Have all workers load a file."""
        there = f"{self._folder_there}/{path.name}"
        for look in range(_LOOKS):
            answers = self._client.call_workers("read_weights", there)
            problems = [answer["problem"] for answer in answers if "problem" in answer]
            if problems:
                raise ServerError(
                    f"the vLLM server at {self._client.url} cannot read {there} ({problems[0]})",
                    f"see to that there, {_AGAIN}",
                )
            if not any("missing" in answer for answer in answers):
                return
            if look + 1 < _LOOKS:
                time.sleep(_WAIT_S)
        raise ServerError(
            f"the vLLM server at {self._client.url} finds no {there}: the folder is not shared",
            "set server.weights to a folder that both machines see, and server.weights_there to its path on the "
            f"server's machine if that is another one, {_AGAIN}",
        )

    def _drop_prefixes(self) -> None:
        for attempt in range(_RESETS):
            if self._client.reset_prefix_cache():
                return
            if attempt + 1 < _RESETS:
                time.sleep(_WAIT_S)
        raise ServerError(
            f"the vLLM server at {self._client.url} keeps its prefix cache of the old weights, for it answers requests "
            "that are not this run's",
            f"let it serve this run alone, {_AGAIN}",
        )


def _remove(path: Path) -> None:
    """Remove a file, or leave it to the next push."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _lacking(url: str, error: RequestLost) -> str:
    """Return what a server that refuses to say what it runs was started without."""
    if error.status == 404:
        return f"the vLLM server at {url} was started without VLLM_SERVER_DEV_MODE=1 ({error})"
    if "not implemented" in str(error):
        return f"the vLLM server at {url} was started without --worker-extension-cls {_EXTENSION}"
    return f"the server at {url} does not say which model it runs ({error})"


def _pairs(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())
