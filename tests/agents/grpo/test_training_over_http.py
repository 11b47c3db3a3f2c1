"""A training run whose candidates come from a service: the same run, whatever becomes of the server meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from agents.grpo.config import GrpoConfig
from agents.grpo.policy import load_policy
from agents.grpo.progress import METRICS_FILE, read_metrics
from agents.grpo.trainer import GrpoTrainer, StageSetup
from agents.llm_agent import PolicyCard
from tests.agents.grpo.worlds import build_game
from tests.services.processes import Service
from trm.client import HttpRetriever
from trm.types import Candidates, RankingRetriever, RetrievalQuery

GRPO = GrpoConfig(num_steps=4, users_per_step=3, group_size=4, learning_rate=1e-3, max_tokens=40, checkpoint_every=10)


class Observed:
    """Another retriever; notes what was asked and answered, and does something before some of the calls."""

    def __init__(self, inner: RankingRetriever, *, before: Callable[[int], None] = lambda number: None) -> None:
        self._inner, self._before = inner, before
        self.num_calls = 0
        self.seen: list[tuple[RetrievalQuery, Candidates]] = []

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        self.num_calls += 1
        self._before(self.num_calls)
        answers = self._inner.retrieve(queries)
        self.seen.extend(zip(queries, answers, strict=True))
        return answers


def train(policy: Path, folder: Path, *, over: Callable[[RankingRetriever], Observed]) -> tuple[Observed, object]:
    """Return what was retrieved in a run, and its weights and numbers."""
    game = build_game()
    game.world.retriever = observed = over(game.world.retriever)  # type: ignore[arg-type]
    setup = StageSetup("cold", game, list(range(12)), folder, seed=0, card=PolicyCard())
    trainer = GrpoTrainer(load_policy(policy), GRPO, setup)
    trainer.run(progress=False)
    numbers = [
        {name: value for name, value in record.items() if not name.startswith("time")}
        for record in read_metrics(folder / METRICS_FILE)
    ]
    weights = {name: tensor.tolist() for name, tensor in trainer.policy.model.state_dict().items()}
    return observed, (numbers, weights)


def test_a_server_that_is_killed_in_the_middle_of_a_run_costs_no_rollout(warm_policy: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    here, expected = train(warm_policy, tmp_path / "a", over=Observed)
    waits: list[float] = []
    with Service(program=("tests.services.fake_service",)) as service:

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            service.wait_until_ready()

        def kill_now_and_then(number: int) -> None:
            if number in (2, 5):
                service.end()
                service.start()

        client = HttpRetriever(service.url, sleep=sleep)
        there, found = train(warm_policy, tmp_path / "b", over=lambda _: Observed(client, before=kill_now_and_then))
        client.close()
    assert here.num_calls >= 5, "the policy searches, or this test says nothing"
    assert there.seen == here.seen
    assert len(waits) >= 2
    assert found == expected
    assert all(record.get("data/failed_rollouts", 0) == 0 for record in read_metrics(tmp_path / "b" / METRICS_FILE))
