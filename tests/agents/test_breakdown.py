import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from agents.base import EpisodeView
from agents.breakdown import EpisodeEnd, coverage_of, end_of, novelty_of, share_by_fault
from agents.evaluate import AgentResult, Header, UserRow, evaluate, load_results, summarize
from agents.popularity_agent import PopularityAgent
from agents.trm_agent import TRMAgent
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from tests.fakes import build_fake_world
from trm.types import RetrievalQuery

HEADER = Header("a", "", "fake", "0", "test", 0, "rules", num_items=10)


def row(user: int, rank: int, *, well_formed: bool = True, in_pool: bool = False, **more: object) -> UserRow:
    return UserRow(user, f"u{user}", rank, 1, well_formed, in_pool, 0.0, 0.0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rank", "well_formed", "in_pool", "end"),
    [
        (3, True, True, EpisodeEnd.HIT),
        (3, True, False, EpisodeEnd.HIT),
        (0, True, True, EpisodeEnd.RANKING_FAILURE),
        (0, True, False, EpisodeEnd.RETRIEVAL_FAILURE),
        (0, False, True, EpisodeEnd.MALFORMED),
        (0, False, False, EpisodeEnd.MALFORMED),
    ],
)
def test_every_episode_has_one_end(rank: int, well_formed: bool, in_pool: bool, end: EpisodeEnd) -> None:
    assert end_of(row(0, rank, well_formed=well_formed, in_pool=in_pool)) is end


def test_failures_and_hits_sum_to_one() -> None:
    rows = [
        row(0, 1, in_pool=True, recommended_ids=(1, 2), novelty=2.0, tokens=10),
        row(1, 0, in_pool=True, recommended_ids=(2, 0), novelty=4.0, tokens=30),
        row(2, 0, recommended_ids=(3, 3), novelty=3.0),
        row(3, 0, well_formed=False, failure="no_action", recommended_ids=()),
    ]
    summary = summarize(AgentResult(HEADER, tuple(rows)))
    means = {name: estimate.mean for name, estimate in summary.details.items()}
    assert means == {
        "NDCG@1": 1 / 4,
        "Retrieval failure": 1 / 4,
        "Ranking failure": 1 / 4,
        "Format failure": 1 / 4,
        "Novelty": (2 + 4 + 3) / 3,
        "Tokens/user": (10 + 30) / 2,
    }
    assert summary.metrics["Recall@10"].mean + sum(means[f"{kind} failure"] for kind in _KINDS) == 1.0
    assert summary.coverage == 3 / 10  # the items 1, 2 and 3; an unknown title is no item
    assert summary.share_by_fault == {"no_action": 1 / 4}


_KINDS = ("Retrieval", "Ranking", "Format")


def test_faults_are_counted_by_kind_the_commonest_first() -> None:
    faults = ["no_search", "num_titles", "num_titles", None]
    rows = [row(user, 0, well_formed=False, failure=fault) for user, fault in enumerate(faults)]
    shares = share_by_fault([*rows, row(9, 1)])
    assert list(shares.items()) == [("num_titles", 2 / 5), ("no_search", 1 / 5), ("unknown", 1 / 5)]
    with pytest.raises(ValueError, match="at least one row"):
        share_by_fault([])


def test_novelty_is_self_information_in_bits() -> None:
    popularity = np.array([0, 7, 3, 0, 99])
    assert novelty_of([1], popularity, 7) == 0.0  # everybody chose it: -log2(8 / 8)
    assert novelty_of([2, 3, 0], popularity, 7) == pytest.approx((math.log2(8 / 4) + math.log2(8 / 1)) / 2)
    assert novelty_of([4], popularity, 7) == 0.0  # chosen again and again, but by no more than all
    assert novelty_of([0, 0], popularity, 7) is None
    assert novelty_of([], popularity, 7) is None


def test_coverage_wants_all_lists() -> None:
    assert coverage_of([row(0, 0)], 10) is None
    assert coverage_of([row(0, 0, recommended_ids=())], 10) == 0.0
    assert coverage_of([row(0, 0, recommended_ids=())], 0) is None


class Faulty:
    """Ends user u's episode by the fault u % 2, and counts tokens."""

    name = "faulty"

    def __init__(self) -> None:
        self.acted: list[int] = []

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        self.acted += [view.key for view in episodes]
        return [
            "nothing" if view.key % 2 else "</think> <recommendation_list></recommendation_list>" for view in episodes
        ]

    def num_tokens(self, key: int) -> int:
        return 100 + key


def test_rows_hold_faults_lists_tokens_and_what_is_known_of_the_user(tmp_path: Path) -> None:
    game = Game(build_fake_world(), GameConfig())
    faulty, popular = evaluate(game, [Faulty(), PopularityAgent()], [4, 5], out=tmp_path).agents
    assert [row.failure for row in faulty.rows] == ["no_search", "no_action"]
    assert [row.tokens for row in faulty.rows] == [100, 101]
    assert [row.recommended_ids for row in faulty.rows] == [(), ()]
    counts = game.world.splits.train_counts()
    for found in popular.rows:
        example = game.world.splits.example("test", found.user_index)
        assert found.history_length == len(example.history) == 7
        assert found.target_count == counts[example.target]
        assert found.recommended_ids is not None
        assert found.novelty == novelty_of(found.recommended_ids, counts, game.world.splits.num_users)
        assert (found.failure, found.tokens) == (None, None)
    assert load_results(tmp_path) == [faulty, popular]
    assert popular.header.num_items == 60


def test_the_rank_of_the_recommender_alone_is_the_place_in_its_own_order() -> None:
    game = Game(build_fake_world(), GameConfig(exclude_history=False))
    (result,) = evaluate(game, [TRMAgent()], range(12)).agents
    for found in result.rows:
        example = game.world.splits.example("test", found.user_index)
        (order,) = game.world.retriever.retrieve([RetrievalQuery(example.history, "", k=60, exclude_history=False)])
        score = order.scores[order.item_ids.index(example.target)]
        assert found.trm_rank == 1 + sum(other > score for other in order.scores)
    assert len({found.trm_rank for found in result.rows}) > 3


def test_a_recommender_that_cannot_rank_leaves_the_rank_open() -> None:
    world = build_fake_world()

    class Plain:
        retrieve = world.retriever.retrieve

    world.retriever = Plain()  # type: ignore[assignment]
    (result,) = evaluate(Game(world, GameConfig()), [TRMAgent()], [0]).agents
    assert result.rows[0].trm_rank is None


def test_rows_of_older_files_are_read_and_say_what_they_do_not_know(tmp_path: Path) -> None:
    game = Game(build_fake_world(), GameConfig())
    evaluate(game, [PopularityAgent()], [0, 1], out=tmp_path)
    (path,) = (tmp_path / "rows").iterdir()
    header, *rows = map(json.loads, path.read_text().splitlines())
    added = ("failure", "recommended_ids", "novelty", "tokens", "history_length", "target_count", "trm_rank")
    del header["num_items"]
    for record in rows:
        for name in added:
            del record[name]
    path.write_text("".join(json.dumps(record) + "\n" for record in (header, *rows)))
    (old,) = load_results(tmp_path)
    assert [getattr(old.rows[0], name) for name in added] == [None] * 7
    summary = summarize(old)
    assert summary.coverage is None
    assert "Novelty" not in summary.details
    again = evaluate(game, [PopularityAgent()], [0, 1, 2], out=tmp_path).agents[0]
    assert again.rows[:2] == old.rows
    assert again.rows[2].novelty is not None
    assert dataclasses.replace(again.header, num_items=0) == old.header


def test_a_language_model_counts_what_it_samples() -> None:
    pytest.importorskip("torch")
    from agents.llm_agent import LlmAgent
    from tests.agents.grpo.worlds import ScriptedGenerator, build_game, build_tiny_policy

    game = build_game()
    policy = build_tiny_policy(game)
    texts = ["I look.\n<|begin_of_preference|> noir <|end_of_preference|>", "nothing"]
    generator = ScriptedGenerator(policy.tokenizer, texts)
    agent = LlmAgent(generator, policy.tokenizer, max_context=512)
    (result,) = evaluate(game, [agent], [3, 5]).agents
    expected = sum(len(policy.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert [row.tokens for row in result.rows] == [expected, expected]
    assert agent.num_tokens(99) is None
