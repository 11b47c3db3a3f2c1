"""As much of a vLLM server as training wants, in this process: HTTP in front of transformers and a model of its own."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import torch

from agents.grpo.generation.base import GenerationRequest, SamplingParams
from agents.grpo.generation.hf import HFGenerator
from agents.grpo.generation.vllm_weights import WeightReceiver
from agents.grpo.policy import Policy


class Died(Exception):
    """The connection ends without an answer."""


class _Receiver(WeightReceiver):
    """The worker's side of pushing weights, with a model of transformers behind it."""

    def __init__(self, policy: Policy) -> None:
        self.model = policy.model
        self.config = SimpleNamespace(
            hf_text_config=policy.model.config,
            dtype=torch.float32,
            logprobs_mode="raw_logprobs",
            max_model_len=policy.max_length,
        )
        self.model_runner = SimpleNamespace(model_config=self.config)

    def receive_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        missing, unexpected = self.model.load_state_dict(dict(named), strict=False)
        assert set(missing) <= {"lm_head.weight"}
        assert not unexpected


class FakeVllm:
    """Answers until told otherwise; every request is sampled alone, so that nothing depends on who else is asking."""

    def __init__(self, policy: Policy, *, port: int = 0) -> None:
        self._policy = Policy(copy.deepcopy(policy.model), policy.tokenizer)
        self.receiver = _Receiver(self._policy)
        self.bodies: list[dict[str, Any]] = []
        """Of completions."""
        self.calls: list[str] = []
        """All other paths, with the method that was called of workers."""
        self.before: Callable[[dict[str, Any]], tuple[int, Any] | None] = lambda body: None
        """Called with each completion's body: raises Died, waits, or returns a status and an answer."""
        self.is_dead = False
        self.has_dev_mode, self.has_extension, self.drops_prefixes = True, True, True
        self.on_call: Callable[[str], None] = lambda name: None
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        self.port = int(self._http.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.is_dead:
            raise Died
        if path == "/v1/completions":
            return self._complete(body)
        name = body.get("method", path)
        self.calls.append(name)
        self.on_call(name)
        if path == "/health":
            return 200, None
        if path == "/v1/models":
            return 200, {"data": [{"id": "fake"}]}
        if not self.has_dev_mode:
            return 404, {"detail": "Not Found"}
        if path == "/reset_prefix_cache":
            return 200, {"success": self.drops_prefixes}
        if not self.has_extension:
            return 500, {"error": {"message": f"Call to collective_rpc failed: Method {name!r} is not implemented."}}
        with self._lock:
            return 200, {"results": [getattr(self.receiver, name)(*body["args"])]}

    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.bodies.append(body)
        early = self.before(body)
        if early is not None:
            return early
        params = SamplingParams(
            body["max_tokens"], frozenset(body["stop_token_ids"]), body["temperature"], tuple(body["stop"])
        )
        with self._lock:
            engine = HFGenerator(self._policy.model, self._policy.tokenizer)
            (completion,) = engine.generate([GenerationRequest(0, body["prompt"], body["seed"])], params)
        choice = {
            "token_ids": list(completion.ids),
            "logprobs": {"token_logprobs": list(completion.logps)},
            "finish_reason": str(completion.finish),
        }
        return 200, {"choices": [choice]}


def _handler(fake: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

        def _reply(self, body: dict[str, Any]) -> None:
            try:
                status, answer = fake.answer(self.path, body)
                content = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except (Died, ConnectionError):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
