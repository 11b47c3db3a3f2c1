"""The services as people start them: by the command, by the scripts, killed and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from agents.play import play
from agents.registry import make_agent
from agents.shards import play_shard
from deeprec_env.game import Game
from deeprec_env.world import World
from tests.services.processes import ROOT, Service, free_port
from tests.services.worlds import recall_request, sample_world
from trm.client import HttpRetriever, RetryConfig
from trm.types import RankingRetriever, RetrievalQuery


def world_over(retriever: HttpRetriever) -> World:
    """Return the sample world with its candidates from a service."""
    here = sample_world()
    return World(
        here.name,
        here.catalog,
        here.splits,
        retriever=retriever,
        encoder=here.encoder,
        item_text_vectors=here.item_text_vectors,
        item_id_vectors=here.item_id_vectors,
    )


def test_a_service_gives_the_same_candidates_and_ranks_as_this_process() -> None:
    world = sample_world()
    assert isinstance(world.retriever, RankingRetriever)
    queries = [
        RetrievalQuery(world.splits.example("test", user).history, text, k, exclude)
        for user in range(40)
        for text, k, exclude in (("", 20, True), ("slow mysteries", 7, False), ("a\ud800 x", 300, True))
    ]
    with Service("recall", "--dataset", "sample") as service:
        retriever = HttpRetriever(service.url).checked(world.fingerprint)
        for served, own in zip(retriever.retrieve(queries), world.retriever.retrieve(queries), strict=True):
            assert served.item_ids[:20] == own.item_ids[:20]
            # The last bits of a score depend on what else is in its batch.
            assert served.scores == pytest.approx(own.scores, abs=1e-6)
        targets = [world.splits.example("test", user).target for user in range(40)]
        assert retriever.ranks(queries[::3], targets).tolist() == world.retriever.ranks(queries[::3], targets).tolist()
        retriever.close()


def test_a_client_of_the_contract_plays_an_episode_and_gets_its_reward() -> None:
    """By the scripts, with the client that knows nothing but the contract."""
    ports = [str(free_port()), str(free_port())]
    environment = {**os.environ, "DATASET": "sample", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = (["recall.sh", "--port", ports[0]], ["reward.sh", ports[1], "rec"])
    processes = [
        subprocess.Popen(
            ["bash", str(ROOT / "scripts" / name), *args], cwd="/", env=environment, stdout=subprocess.DEVNULL
        )
        for name, *args in commands
    ]
    try:
        for port in ports:
            wait_for(f"http://127.0.0.1:{port}/health")
        command = [sys.executable, str(ROOT / "examples" / "contract_client.py"), "--idx", "3"]
        command += ["--recall", f"http://127.0.0.1:{ports[0]}", "--reward", f"http://127.0.0.1:{ports[1]}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n<|begin_of_item_list|>\n1. ") == 3
        assert done.stdout.count("  - categories: ") == 60
        rewards = re.search(r"outcome (\S+), format (\S+), similarity (\S+), invocation (\S+), diversity", done.stdout)
        assert rewards is not None
        assert float(rewards[2]) == 0.0, "the episode is well-formed"
        assert float(rewards[3]) > 0.5, "what was retrieved is like the target"
        wrong = subprocess.run([*command, "--k", "0"], capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert "refused: k: Input should be greater than or equal to 1, got 0" in wrong.stderr
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=30)


def wait_for(url: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} did not answer"
            time.sleep(0.05)


@pytest.mark.slow
def test_five_kills_during_an_evaluation_change_nothing(tmp_path: Path) -> None:
    users = range(200)
    agent = make_agent("heuristic")
    undisturbed = play_shard(Game(sample_world()), agent, users, out=tmp_path / "a").read_bytes()
    service = Service("recall", "--dataset", "sample")
    with service:
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            time.sleep(seconds)

        retriever = HttpRetriever(service.url, sleep=sleep, seed=0)
        kills = iter(range(20, 200, 36))
        next_kill, num_kills, num_acts = next(kills), 0, 0

        class Disturbed:
            """The same agent; at five moments the server dies under it, sometimes in the middle of an answer."""

            name = agent.name
            fingerprint = agent.fingerprint  # type: ignore[attr-defined]

            def act(self, episodes: Any) -> list[str]:
                nonlocal next_kill, num_kills, num_acts
                num_acts += 1
                if num_acts >= next_kill and num_kills < 5:
                    num_kills += 1
                    next_kill = next(kills, 10**9)
                    threading.Timer(0.0005 * num_kills, lambda: (service.end(), service.start())).start()
                return agent.act(episodes)

        path = play_shard(
            Game(world_over(retriever)), Disturbed(), users, out=tmp_path / "b", batch_size=4
        )  # in about 250 rounds
        retriever.close()
    assert num_kills == 5
    assert len(waits) >= 5
    assert path.read_bytes() == undisturbed


@pytest.mark.slow
def test_a_restart_during_training_rollouts_costs_no_rollout() -> None:
    agent = make_agent("heuristic")
    expected = play(Game(sample_world()), agent, range(60), split="train", num_samples=4, seed=3)
    with Service("recall", "--dataset", "sample") as service:
        retriever = HttpRetriever(service.url, seed=0)
        threading.Timer(0.05, lambda: (service.end(), service.start())).start()
        game = Game(world_over(retriever))
        found = play(game, agent, range(60), split="train", num_samples=4, seed=3, batch_size=8)
        retriever.close()
    assert [episode.transcript for episode in found] == [episode.transcript for episode in expected]
    assert [episode.reward for episode in found] == [episode.reward for episode in expected]


def test_a_clean_shutdown_finishes_what_is_in_flight() -> None:
    with Service("recall", "--dataset", "sample", "--max-wait-ms", "700") as service:
        answers: list[dict[str, Any]] = []

        def ask() -> None:
            answers.append(post(f"{service.url}/recall", recall_request()))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)  # all are waiting for their batch
        service.end(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
    assert len(answers) == 8
    assert all(len(answer["item_list"]) == 2 for answer in answers)


def test_a_server_keeps_what_it_answers_and_another_answers_from_that_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    asked = recall_request()
    with Service("recall", "--dataset", "sample", "--record", str(file)) as service:
        answer = post(f"{service.url}/recall", asked)
    with Service("recall", "--dataset", "sample", "--replay", str(file)) as service:
        assert post(f"{service.url}/recall", asked) == answer
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(f"{service.url}/recall", {**asked, "k": 6})
        assert caught.value.code == 404
        assert "holds no retrieval for preference 'slow mysteries', k=6" in json.load(caught.value)["detail"]
    assert len(file.read_text().splitlines()) == 3


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def test_servers_and_clients_share_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from deeprec_env.world import load_world
    from trm.errors import RetrieverRefused

    with Service("recall", "--dataset", "sample", environment={"DEEPREC_TOKEN": "s3cret"}) as service:
        monkeypatch.delenv("DEEPREC_TOKEN", raising=False)
        stranger = HttpRetriever(service.url, retry=RetryConfig(max_attempts=1))
        with pytest.raises(RetrieverRefused, match="status 401"):
            stranger.retrieve([RetrievalQuery((1,), "")])
        stranger.close()
        monkeypatch.setenv("DEEPREC_TOKEN", "s3cret")
        world = load_world("sample", retriever=service.url)
        query = RetrievalQuery((1, 2), "slow mysteries", 5)
        assert world.retriever.retrieve([query]) == sample_world().retriever.retrieve([query])
        assert isinstance(world.retriever, HttpRetriever)
        world.retriever.close()


def test_a_wrong_data_set_is_one_sentence() -> None:
    for args in (("recall", "--dataset", "smple"), ("reward", "--dataset", "sample", "--category", "Books")):
        done = subprocess.run(
            [sys.executable, "-m", "agents.cli", "serve", *args],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("deeprec: ")
