"""A server of the original /recall contract under load: who asks, what is asked, and what was seen of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PREFERENCES = 16
"""Users and preferences a request."""
K = 20
NUM_CACHED_TEXTS = 2000


@dataclass
class Load:
    """What a time of load has shown."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    num_queries: float = 0.0
    num_calls: float = 0.0
    others: list[float] = field(default_factory=list)
    """The share of the machine's CPU time that other processes took, by turn."""

    def add(self, other: Load) -> None:
        """Take in what another time has shown."""
        self.seconds += other.seconds
        self.latencies_s += other.latencies_s
        self.failures += other.failures
        self.num_queries += other.num_queries
        self.num_calls += other.num_calls
        self.others += other.others

    def row(self, name: str) -> str:
        """Return a line of the Markdown table."""
        p50, p95, p99 = (1000 * np.quantile(self.latencies_s, q) for q in (0.5, 0.95, 0.99))
        rate = len(self.latencies_s) / self.seconds
        return (
            f"| {name} | {len(self.latencies_s)} | {len(self.failures)} | {rate:.1f} | {rate * PREFERENCES:.0f} | "
            f"{p50:.0f} | {p95:.0f} | {p99:.0f} | {self.num_queries / max(1.0, self.num_calls):.0f} | "
            f"{np.mean(self.others):.0%} |"
        )

    @property
    def retrievals_per_s(self) -> float:
        """Answered preferences a second."""
        return len(self.latencies_s) * PREFERENCES / self.seconds


class Texts:
    """Preferences made of the catalogue's attributes: a fixed pool, and ones that nobody has asked for."""

    def __init__(self, words: list[str], seed: int) -> None:
        self._rng = random.Random(seed)
        self._words = words
        self._fresh = itertools.count()
        self.pool = [self._text() for _ in range(NUM_CACHED_TEXTS)]

    def _text(self) -> str:
        return "; ".join(self._rng.sample(self._words, 3))

    def fresh(self) -> str:
        """Return a text that differs from all before."""
        return f"{self._text()}; like number {next(self._fresh)}"


def request_bytes(users: list[int], texts: list[str]) -> bytes:
    """Return a whole HTTP request of the original contract."""
    body = json.dumps(
        {
            "idx_list": users,
            "preference_list": texts,
            "current_step": 0,
            "recall_num_list": [0] * len(users),
            "k": K,
        }
    ).encode()
    head = (
        f"POST /recall HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def one_client(port: int, requests: Iterator[bytes], deadline: float, load: Load) -> None:
    """Ask without pause until the deadline."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        while time.perf_counter() < deadline:
            started = time.perf_counter()
            writer.write(next(requests))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            load.latencies_s.append(time.perf_counter() - started)
            problem = check(head, body, thorough=len(load.latencies_s) % 20 == 0)
            if problem:
                load.failures.append(problem)
    except (OSError, asyncio.IncompleteReadError, IndexError) as error:
        load.failures.append(repr(error))
    finally:
        writer.close()


def check(head: bytes, body: bytes, *, thorough: bool) -> str:
    """Return what is wrong with an answer, "" if nothing is."""
    if not head.startswith(b"HTTP/1.1 200"):
        return repr(head[:40] + body[:200])
    if thorough and [len(found) for found in json.loads(body)["item_list"]] != [K] * PREFERENCES:
        return "another number of items"
    return ""


def put_load(server: Server, requests: Iterator[bytes], *, clients: int, seconds: float) -> Load:
    """Return what the clients have seen in that time."""
    load, port = Load(), server.port
    before, cpu_before = batches(port), cpu_seconds(server)

    async def run() -> None:
        deadline = time.perf_counter() + seconds
        await asyncio.gather(*(one_client(port, requests, deadline, load) for _ in range(clients)))

    started = time.perf_counter()
    asyncio.run(run())
    load.seconds = time.perf_counter() - started
    after, cpu_after = batches(port), cpu_seconds(server)
    load.num_queries, load.num_calls = after[0] - before[0], after[1] - before[1]
    others = (cpu_after[0] - cpu_before[0]) - (cpu_after[1] - cpu_before[1])
    load.others.append(max(0.0, others) / (load.seconds * (os.cpu_count() or 1)))
    return load


def cpu_seconds(server: Server) -> tuple[float, float]:
    """Return the CPU time of the whole machine and that of this process and the server, so far (Linux)."""
    ticks = os.sysconf("SC_CLK_TCK")
    whole = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    busy = sum(whole[:8]) - whole[3] - whole[4]
    own = 0
    for pid in (os.getpid(), server.process.pid):
        parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own += int(parts[11]) + int(parts[12])
    return busy / ticks, own / ticks


def batches(port: int) -> tuple[float, float]:
    """Return queries and calls of the recommender so far; (0, 0) of a server without metrics."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return 0.0, 0.0
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("deeprec_batch_size_"))
    return float(values.get("deeprec_batch_size_sum", 0)), float(values.get("deeprec_batch_size_count", 0))


class Server:
    """A server process."""

    def __init__(self, arguments: list[str], port: int) -> None:
        self._command = [sys.executable, "-m", *arguments, "--port", str(port)]
        self.port = port
        self.start()

    def start(self) -> None:
        """Start the process; it is not ready yet."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def wait(self) -> None:
        """Wait until it answers."""
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"the server ended with {self.process.returncode}") from None
                time.sleep(0.1)

    def kill(self) -> None:
        """End it by kill -9."""
        self.process.kill()
        self.process.wait()


def post(port: int, body: dict[str, Any]) -> None:
    """Ask /recall once."""
    whole = {"current_step": 0, "recall_num_list": [0] * len(body["idx_list"]), "k": K, **body}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/recall", json.dumps(whole).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()
