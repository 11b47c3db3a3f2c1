from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from agents.play import play
from agents.registry import make_agent
from deeprec_env.config import GameConfig
from deeprec_env.episode import Episode
from deeprec_env.game import Game
from deeprec_env.protocol import render_items, render_recommend, render_search
from deeprec_env.response_scores import SCORE_NAMES, ResponseScorer, ScoredText, response_of
from deeprec_env.reward_server import build_reward_app
from deeprec_env.world import World
from tests.fakes import FakeRetriever, build_fake_world
from tests.services.worlds import sample_world
from trm.data.catalog import Catalog, Item
from trm.data.interactions import Interactions
from trm.data.splits import LeaveOneOut

WORLD = sample_world()
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rewards_paper.json").read_text(encoding="utf-8"))


@cache
def episodes(stage: str, reward: str, *, attributes: bool = False) -> tuple[Episode, ...]:
    game = Game(WORLD, GameConfig(stage=stage, reward=reward, show_attributes=attributes))
    return tuple(play(game, make_agent("heuristic"), range(30), split="train"))


def scored(episode: Episode) -> ScoredText:
    response = response_of(episode.transcript)
    assert response is not None
    return ScoredText(response, episode.user_index, episode.num_searches)


def app_client(stage: str = "rec", reward: str = "paper", **options: Any) -> TestClient:
    scorer = ResponseScorer(WORLD, stage=stage, reward=reward)
    app = build_reward_app(scorer.score, user_of=lambda number: number if number < 400 else None, **options)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with app_client() as client:
        yield client


@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("reward", ["paper", "strict"])
@pytest.mark.parametrize("stage", ["cold", "rec"])
def test_a_played_episode_is_worth_as_text_what_it_was_worth_in_the_game(
    stage: str, reward: str, attributes: bool
) -> None:
    scorer = ResponseScorer(WORLD, stage=stage, reward=reward)
    played = episodes(stage, reward, attributes=attributes)
    rows = scorer.score([scored(episode) for episode in played])
    for episode, row in zip(played, rows, strict=True):
        assert row == pytest.approx([episode.paid.get(name, 0.0) for name in SCORE_NAMES], abs=1e-3)
        assert sum(row) == pytest.approx(episode.reward, abs=1e-3)
    assert len({tuple(row) for row in rows}) > 1 or stage == "cold"


def golden_world() -> World:
    items, config = GOLDEN["items"], GOLDEN["preference_embeddings"]
    targets = {case["target_title"] for case in GOLDEN["cases"]}
    catalog = Catalog([Item(item["id"], str(item["id"]), item["title"], {}) for item in items])
    ids = {item["title"]: item["id"] for item in items}
    other = [item["id"] for item in items]
    # user u's third last item, the target of split train, is the u-th target
    rows = [[next(i for i in other if i != ids[t]), ids[t], other[0], other[1]] for t in sorted(targets)]

    class Embeddings:
        name, dim = "golden", len(next(iter(config.values())))

        def encode(self, texts: list[str]) -> np.ndarray:
            return np.array([config[text] for text in texts]).reshape(-1, self.dim)

    def vectors(field: str) -> np.ndarray:
        return np.array([np.zeros(len(items[0][field])), *(item[field] for item in items)])

    fake = build_fake_world()
    assert isinstance(fake.retriever, FakeRetriever)
    return World(
        "golden",
        catalog,
        LeaveOneOut(
            Interactions(
                user_ids=tuple(sorted(targets)),
                offsets=np.arange(len(rows) + 1, dtype=np.int64) * 4,
                item_ids=np.concatenate(rows).astype(np.int64),
                timestamps=np.tile(np.arange(4), len(rows)),
            ),
            num_items=len(items),
        ),
        retriever=fake.retriever,
        encoder=Embeddings(),  # type: ignore[arg-type]
        item_text_vectors=vectors("text_embedding"),
        item_id_vectors=vectors("item_embedding"),
    )


@pytest.mark.parametrize("stage", ["cold", "rec"])
def test_the_service_gives_the_golden_figures_in_the_original_order(stage: str) -> None:
    world = golden_world()
    scorer = ResponseScorer(world, stage=stage, reward="paper", top_k=GOLDEN["config"]["top_k"])
    request: dict[str, Any] = {"query_list": [], "idx_list": [], "current_step": 3, "recall_num_list": []}
    for case in GOLDEN["cases"]:
        pads = "<|endoftext|>" * 3
        request["query_list"].append(f"{pads}User: hello\n\nAssistant:\n<think>\n{case['response']}<|im_end|>{pads}")
        request["idx_list"].append(world.splits.user_index(case["target_title"]))
        request["recall_num_list"].append(case["n_calls"])
    app = build_reward_app(scorer.score, user_of=lambda number: number)
    with TestClient(app) as client:
        rows = client.post("/reward", json=request).json()["rewards"]
    for case, row in zip(GOLDEN["cases"], rows, strict=True):
        expected = [case["expected"][stage][name] for name in SCORE_NAMES]
        assert row == pytest.approx(expected, abs=1e-6), case["name"]


def strict_sum(response: str, num_searches: int, stage: str = "rec") -> float:
    (row,) = ResponseScorer(WORLD, stage=stage, reward="strict").score([ScoredText(response, 0, num_searches)])
    return sum(row)


def test_strict_finds_lists_that_the_policy_wrote_itself() -> None:
    items = [WORLD.display(i) for i in range(1, 21)]
    search = render_search("slow mysteries", reasoning="So.") + render_items(items)
    final = render_recommend([item.title for item in items[:10]], reasoning="In this order.")
    assert strict_sum(search + final, 1) > 0.0
    assert strict_sum(search + search + final, 1) == -1.0
    assert strict_sum(search + final, 2) == -1.0


@pytest.mark.parametrize("response", ["", "\n", "no tags", render_search("a"), "<|begin_of_item_list|>"])
@pytest.mark.parametrize("num_searches", [0, 1, 3])
@pytest.mark.parametrize("stage", ["cold", "rec"])
def test_strict_calls_what_does_not_end_malformed(response: str, num_searches: int, stage: str) -> None:
    assert strict_sum(response, num_searches, stage) == -1.0


def test_a_response_begins_after_the_last_opened_thinking_block() -> None:
    text = "<pad></s>x\nAssistant:\n<think>\nfirst\nAssistant:\n<think> second </s><|im_end|></s>"
    assert response_of(text) == " second "
    assert response_of("Assistant:\n<think> at the very start") is None
    assert response_of("x\nAssistant:\n<think>y<mine>", stripped=("<mine>",)) == "y"


def request_of(episode: Episode, **changes: Any) -> dict[str, Any]:
    return {
        "query_list": [episode.transcript],
        "idx_list": [episode.user_index],
        "current_step": 0,
        "recall_num_list": [episode.num_searches],
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"idx_list": [400]}, "idx_list[0]: expected the number of a user, got 400"),
        ({"idx_list": []}, "query_list has 1, idx_list has 0, recall_num_list has 1"),
        ({"idx_list": ["0"]}, "idx_list[0]: "),
        ({"query_list": ["no response"]}, "query_list[0]: expected a response after"),
        ({"query_list": [""]}, "query_list[0]: "),
        ({"query_list": [3]}, "query_list[0]: "),
        ({"query_list": "text"}, "query_list: "),
        ({"recall_num_list": [-1]}, "recall_num_list[0]: "),
        ({"recall_num_list": [1.5]}, "recall_num_list[0]: "),
    ],
)
def test_bad_input_is_a_422_that_names_the_element(client: TestClient, changes: dict[str, Any], said: str) -> None:
    answer = client.post("/reward", json=request_of(episodes("rec", "paper")[0], **changes))
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_no_texts_are_worth_nothing(client: TestClient) -> None:
    empty = {"query_list": [], "idx_list": [], "current_step": 0, "recall_num_list": []}
    assert client.post("/reward", json=empty).json() == {"rewards": []}


def test_health_says_what_is_served() -> None:
    with app_client(health={"stage": "rec", "reward": "paper"}) as client:
        assert client.get("/health").json() == {"status": "ok", "stage": "rec", "reward": "paper"}


@pytest.mark.parametrize("name", ["stage", "reward", "split"])
def test_unknown_names_are_refused_at_the_start(name: str) -> None:
    with pytest.raises(ValueError, match="one of"):
        ResponseScorer(WORLD, **{"stage": "rec", name: "papers"})  # type: ignore[arg-type]
