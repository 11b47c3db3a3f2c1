"""The retrieval service under load and under fire, on MovieLens-100K; prints Markdown.

    python -m benchmarks.services                         the whole of it, four to five minutes
    python -m benchmarks.services --seconds 10            shorter
    python -m benchmarks.services --write FILE            also into a file

Load: CLIENTS connections ask without pause, each request 16 users with 16 preferences; once with texts that were asked
before, once with texts that never were, and the same against a server that encodes and scores each request by itself;
the three take turns, so that whatever else the machine does falls on all of them.
Faults: the server is killed and started again five times while an agent plays 200 users over it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

PREFERENCES = 16
K = 20
NUM_CACHED_TEXTS = 2000
NUM_KILLS = 5
NUM_PLAYED = 200


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


def serve_plainly(dataset: str, port: int) -> None:
    """Serve /recall with the same model: each request encodes its texts and histories and scores all items."""
    import uvicorn
    from fastapi import FastAPI

    from agents.cli.serve import recall_world
    from deeprec_env.world import load_world
    from trm.server import RecallRequest
    from trm.text_encoder import load_encoder

    globals()["RecallRequest"] = RecallRequest  # FastAPI looks annotations up there
    world = load_world(dataset)
    served = recall_world(world, "train")
    frozen = world.retriever.frozen  # type: ignore[attr-defined]
    encoder = load_encoder(frozen.encoder_name)
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/recall")
    async def recall(request: RecallRequest) -> dict[str, list[list[str]]]:
        histories = [served.history_of(idx) or () for idx in request.idx_list]
        queries = frozen.queries(frozen.encode_histories(histories), encoder.encode(request.preference_list))
        found = []
        for query, history in zip(queries, histories, strict=True):
            scores = frozen.item_vectors @ query
            scores[[0, *history]] = -np.inf
            found.append([served.item_texts[i] for i in np.argsort(-scores, kind="stable")[: request.k]])
        return {"item_list": found}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def measure_load(dataset: str, *, clients: int, seconds: float, turns: int, port: int) -> list[str]:
    """Return the lines of the load's part."""
    from deeprec_env.world import load_world
    from trm.data.user_numbers import user_numbers

    world = load_world(dataset)
    users = user_numbers(world.splits.user_ids)
    words = [value for values in world.catalog.attribute_values.values() for value in values]
    texts, rng = Texts(words, seed=0), random.Random(0)

    def cached() -> Iterator[bytes]:
        prepared = [
            request_bytes(rng.sample(users, PREFERENCES), rng.sample(texts.pool, PREFERENCES)) for _ in range(2000)
        ]
        return itertools.cycle(prepared)

    def fresh() -> Iterator[bytes]:
        while True:
            yield request_bytes(rng.sample(users, PREFERENCES), [texts.fresh() for _ in range(PREFERENCES)])

    ours = Server(["agents.cli", "serve", "recall", "--dataset", dataset], port)
    ours.wait()
    everyone = itertools.cycle(users)
    for start in range(0, NUM_CACHED_TEXTS, PREFERENCES):  # every text and every user has been there once
        part = texts.pool[start : start + PREFERENCES]
        post(port, {"idx_list": [next(everyone) for _ in part], "preference_list": part})
    plain = Server(["benchmarks.services", "--dataset", dataset, "--in-child"], port + 1)
    plain.wait()
    warm, cold, slow = Load(), Load(), Load()
    for _ in range(turns):
        for load, server, requests in ((warm, ours, cached()), (slow, plain, cached()), (cold, ours, fresh())):
            load.add(put_load(server, requests, clients=clients, seconds=seconds / turns))
    ours.kill()
    plain.kill()
    return [
        f"{clients} clients, {seconds:.0f} s each in {turns} turns, {PREFERENCES} preferences a request, k = {K}; "
        "latencies in ms; *others*: the share of the machine that other processes took meanwhile.",
        "",
        "| server | requests | failed | requests/s | retrievals/s | p50 | p95 | p99 | queries a call | others |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        warm.row("ours, cached texts"),
        cold.row("ours, fresh texts"),
        slow.row("each request by itself"),
        "",
        f"Cached texts against each request by itself: {warm.retrievals_per_s / slow.retrievals_per_s:.1f} times the "
        f"retrievals a second; fresh texts: {cold.retrievals_per_s / slow.retrievals_per_s:.1f} times.",
        *(f"FAILED: {problem}" for load in (warm, cold, slow) for problem in load.failures[:3]),
    ]


def post(port: int, body: dict[str, Any]) -> None:
    """Ask /recall once."""
    whole = {"current_step": 0, "recall_num_list": [0] * len(body["idx_list"]), "k": K, **body}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/recall", json.dumps(whole).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()


def measure_faults(dataset: str, *, port: int, folder: Path) -> list[str]:
    """Return the lines of the faults' part."""
    from agents.registry import make_agent
    from agents.shards import play_shard
    from deeprec_env.game import Game
    from deeprec_env.world import load_world

    heuristic = make_agent("heuristic")
    undisturbed = play_shard(Game(load_world(dataset)), heuristic, range(NUM_PLAYED), out=folder / "a").read_bytes()
    server = Server(["agents.cli", "serve", "recall", "--dataset", dataset], port)
    server.wait()
    game = Game(load_world(dataset, retriever=f"http://127.0.0.1:{port}"))
    moments = [NUM_PLAYED * (place + 1) // (NUM_KILLS + 1) for place in range(NUM_KILLS)]

    class Disturbed:
        name = heuristic.name
        fingerprint = heuristic.fingerprint  # type: ignore[attr-defined]
        num_acts = 0
        num_kills = 0

        def act(self, episodes: Any) -> list[str]:
            self.num_acts += 1
            if moments and self.num_acts >= moments[0]:
                moments.pop(0)
                self.num_kills += 1
                threading.Timer(0.002 * self.num_kills, lambda: (server.kill(), server.start())).start()
            return heuristic.act(episodes)

    agent = Disturbed()
    started = time.perf_counter()
    path = play_shard(game, agent, range(NUM_PLAYED), out=folder / "b", batch_size=4)
    seconds = time.perf_counter() - started
    server.kill()
    same = "identical to" if path.read_bytes() == undisturbed else "DIFFERENT FROM"
    return [
        f"{NUM_PLAYED} users played by {heuristic.name} over the service, which was ended by kill -9 and started again "
        f"{agent.num_kills} times ({seconds:.0f} s with the restarts): the file is {same} the one that was played in "
        "the process."
    ]


def own_home(folder: Path) -> None:
    """Let what is encoded here go to a folder of its own, over the same data and TRM."""
    from trm.data.prepare import data_home

    home = data_home()
    for name in ("datasets", "trm"):
        (folder / name).symlink_to(home / name)
    os.environ["DEEPREC_HOME"] = str(folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--turns", type=int, default=3, help="into how many parts the seconds are cut")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--port", type=int, default=6071)
    parser.add_argument("--parts", nargs="+", choices=("load", "faults"), default=["load", "faults"])
    parser.add_argument("--write", type=Path, help="also write the Markdown here")
    parser.add_argument("--in-child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_child:
        serve_plainly(options.dataset, options.port)
        return
    with tempfile.TemporaryDirectory() as scratch:
        home, folder = Path(scratch) / "home", Path(scratch) / "played"
        home.mkdir()
        own_home(home)
        lines = [
            "# The retrieval service",
            "",
            f"`{command_line()}` on {os.cpu_count()} CPU cores, {options.dataset}.",
            "",
        ]
        if "load" in options.parts:
            clients, seconds, turns = options.clients, options.seconds, options.turns
            lines += ["## Load", ""]
            lines += measure_load(options.dataset, clients=clients, seconds=seconds, turns=turns, port=options.port)
        if "faults" in options.parts:
            lines += ["", "## Faults", "", *measure_faults(options.dataset, port=options.port + 2, folder=folder)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


def command_line() -> str:
    """Return how this was called, without where the result goes."""
    arguments = sys.argv[1:]
    if "--write" in arguments:
        place = arguments.index("--write")
        del arguments[place : place + 2]
    return " ".join(["python -m benchmarks.services", *arguments])


if __name__ == "__main__":
    main()
