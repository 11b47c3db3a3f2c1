"""Services as processes of their own, for tests that end them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """A `deeprec serve …` process; it may be killed and started again on its port."""

    def __init__(
        self,
        *args: str,
        port: int | None = None,
        environment: dict[str, str] | None = None,
        program: tuple[str, ...] = ("agents.cli", "serve"),
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", *program, *args, "--port", str(self.port)]
        self._environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Service:
        self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=subprocess.DEVNULL)
        return self

    def wait_until_ready(self, timeout_s: float = 60.0) -> dict[str, object]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"the service ended with {self.process.returncode}"
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    return dict(json.load(answer))
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        raise TimeoutError(f"{self.url} was not ready in {timeout_s} s")

    def end(self, kind: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(kind)
        return self.process.wait(timeout=30)

    def __enter__(self) -> Service:
        self.start().wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end()
