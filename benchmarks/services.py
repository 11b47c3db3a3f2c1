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
import itertools
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.service_load import NUM_CACHED_TEXTS, PREFERENCES, K, Load, Server, Texts, post, put_load, request_bytes

NUM_KILLS = 5
NUM_PLAYED = 200


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
    plain = Server(["benchmarks.service_plain", "--dataset", dataset], port + 1)
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
    options = parser.parse_args()
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
