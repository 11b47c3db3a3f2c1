from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from agents.base import EpisodeView
from agents.compare import paired_difference
from agents.evaluate import (
    METRICS,
    AgentResult,
    Header,
    UserRow,
    evaluate,
    load_results,
    sample_users,
    summarize,
)
from agents.heuristic_agent import HeuristicAgent
from agents.random_agent import RandomAgent
from agents.trm_agent import TRMAgent
from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from deeprec_env.protocol import render_recommend, render_search
from tests.fakes import build_fake_world

HEADER = Header("a", "", "fake", "0", "test", 0, "rules")


@pytest.fixture
def game() -> Game:
    return Game(build_fake_world(), GameConfig())


class Oracle:
    """Knows each target (by its history) and puts it at place 1 + key % 4, or writes nonsense where that is 4."""

    name = "oracle"

    def __init__(self, game: Game) -> None:
        splits = game.world.splits
        self.targets = {}
        for user in range(splits.num_users):
            example = splits.example("test", user)
            self.targets[tuple(i for i in example.history if i != example.target)] = (user, example.target)
        self.num_acts = 0

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        self.num_acts += len(episodes)
        return [self._act(view) for view in episodes]

    def _act(self, view: EpisodeView) -> str:
        if view.num_turns == 0:
            return render_search("")
        user, target = self.targets[view.history]
        if user % 4 == 3:
            return "nonsense"
        others = [i for i in range(30, 60) if i != target][:9]
        ranked = [*others[: user % 4], target, *others[user % 4 :]]
        return render_recommend([view.catalog.title(i) for i in ranked], reasoning="I know.")


def test_rows_hold_the_targets_place_by_id(game: Game) -> None:
    (result,) = evaluate(game, [Oracle(game)], list(range(8))).agents
    assert [row.user_index for row in result.rows] == list(range(8))
    assert [row.rank for row in result.rows] == [1, 2, 3, 0, 1, 2, 3, 0]
    assert [row.well_formed for row in result.rows] == [True, True, True, False] * 2
    assert all(row.num_searches == 1 and row.seconds > 0 for row in result.rows)


def test_a_summary_is_the_mean_over_users() -> None:
    rows = [
        UserRow(user, f"u{user}", rank, searches, rank != 0, in_pool, reward, 0.5)
        for user, (rank, searches, in_pool, reward) in enumerate(
            [(1, 1, True, 3.0), (3, 2, True, 2.0), (6, 3, False, 1.0), (0, 2, False, -1.0)]
        )
    ]
    metrics = summarize(AgentResult(HEADER, tuple(rows))).metrics
    assert tuple(metrics) == METRICS
    expected = {
        "Recall@1": 1 / 4,
        "Recall@5": 2 / 4,
        "Recall@10": 3 / 4,
        "NDCG@5": (1 + 1 / math.log2(4)) / 4,
        "NDCG@10": (1 + 1 / math.log2(4) + 1 / math.log2(7)) / 4,
        "MRR": (1 + 1 / 3 + 1 / 6) / 4,
        "Searches": 2.0,
        "Well-formed": 3 / 4,
        "Pool recall": 2 / 4,
        "Reward": 5 / 4,
        "Seconds/user": 0.5,
    }
    assert {name: estimate.mean for name, estimate in metrics.items()} == pytest.approx(expected)
    assert all(estimate.low <= estimate.mean <= estimate.high for estimate in metrics.values())
    assert metrics["Recall@5"].low < 0.5 < metrics["Recall@5"].high
    assert metrics["Seconds/user"].low == metrics["Seconds/user"].high == 0.5


def test_a_second_run_plays_only_who_is_missing(game: Game, tmp_path: Path) -> None:
    agent = Oracle(game)
    first = evaluate(game, [agent], [0, 1, 2], out=tmp_path)
    assert agent.num_acts == 6
    second = evaluate(game, [agent], [4, 2, 1, 0], out=tmp_path)
    assert agent.num_acts == 8
    assert [row.user_index for row in second.agents[0].rows] == [4, 2, 1, 0]
    assert second.agents[0].rows[1:] == first.agents[0].rows[::-1]


def test_a_row_that_was_cut_short_is_played_again(game: Game, tmp_path: Path) -> None:
    whole = evaluate(game, [TRMAgent()], [0, 1, 2], out=tmp_path).agents[0]
    (path,) = (tmp_path / "rows").glob("*.jsonl")
    path.write_text(path.read_text()[:-20])
    again = evaluate(game, [TRMAgent()], [0, 1, 2], out=tmp_path).agents[0]
    assert [_without_seconds(row) for row in again.rows] == [_without_seconds(row) for row in whole.rows]
    assert again.rows[:2] == whole.rows[:2]
    lines = path.read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 4


class Scribbler:
    """Writes what files and terminals trip over: line ends of every kind, half a surrogate pair, control characters."""

    name = "scribbler"
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\ud800h\x00i\x1b[31m"

    def act(self, episodes: Sequence[EpisodeView]) -> list[str]:
        return [self.text if view.num_turns else render_search("", reasoning=self.text) for view in episodes]


def test_any_text_of_an_agent_is_kept_and_read_again(game: Game, tmp_path: Path) -> None:
    kept = evaluate(game, [Scribbler()], [0, 1, 2], out=tmp_path).agents[0]
    assert [row.failure for row in kept.rows] == ["no_action"] * 3
    assert kept.rows[0].turns[1][0] == Scribbler.text.replace("\ud800", "\ufffd")
    assert load_results(tmp_path)[0].rows == kept.rows
    (path,) = (tmp_path / "rows").glob("*.jsonl")
    path.write_text("".join(f"{line}\n" for line in map(_unescaped, path.read_text().splitlines())))
    assert load_results(tmp_path)[0].rows == kept.rows, "as files were written before"


def _unescaped(line: str) -> str:
    return json.dumps(json.loads(line), ensure_ascii=False)


def _without_seconds(row: UserRow) -> UserRow:
    return dataclasses.replace(row, seconds=0.0)


def test_other_rules_options_worlds_and_seeds_have_files_of_their_own(game: Game, tmp_path: Path) -> None:
    other_rules = Game(game.world, GameConfig(k=5))
    other_world = Game(build_fake_world(seed=1), GameConfig())
    evaluate(game, [RandomAgent(), HeuristicAgent(), HeuristicAgent(empty_weight=1.0)], [0], out=tmp_path)
    for played in (other_rules, other_world):
        evaluate(played, [RandomAgent()], [0], out=tmp_path)
    evaluate(game, [RandomAgent()], [0], out=tmp_path, seed=1)
    evaluate(game, [RandomAgent()], [0], out=tmp_path, split="valid")
    assert len(list((tmp_path / "rows").glob("*.jsonl"))) == 7


def test_results_load_in_the_order_of_evaluation_and_newest_win(game: Game, tmp_path: Path) -> None:
    evaluate(game, [TRMAgent(), RandomAgent()], [0, 1], out=tmp_path)
    evaluate(game, [HeuristicAgent(empty_weight=1.0)], [0, 1], out=tmp_path)
    newest = evaluate(game, [HeuristicAgent()], [0, 1], out=tmp_path).agents[0]
    evaluate(game, [TRMAgent()], [0, 1, 2], out=tmp_path)
    found = load_results(tmp_path)
    assert [result.header.agent for result in found] == ["trm", "random", "heuristic"]
    assert [len(result.rows) for result in found] == [3, 2, 2]
    assert found[-1] == newest
    assert load_results(tmp_path / "nothing") == []


def test_files_of_another_format_are_left_out(game: Game, tmp_path: Path) -> None:
    evaluate(game, [TRMAgent()], [0], out=tmp_path)
    (tmp_path / "rows" / "old.jsonl").write_text('{"format": 0, "agent": "old"}\n')
    (tmp_path / "rows" / "torn.jsonl").write_text('{"format": 1, "ag')
    assert [result.header.agent for result in load_results(tmp_path)] == ["trm"]


def test_a_sample_of_users_is_fixed_and_all_means_all() -> None:
    assert sample_users(5, None) == sample_users(5, 9) == [0, 1, 2, 3, 4]
    sample = sample_users(943, 200)
    assert sample == sample_users(943, 200) == sorted(set(sample))
    assert len(sample) == 200
    assert sample != list(range(200))
    with pytest.raises(ValueError, match="at least 1"):
        sample_users(5, 0)


@pytest.mark.parametrize("users", [[], [1, 1]])
def test_users_are_some_and_distinct(game: Game, users: list[int]) -> None:
    with pytest.raises(ValueError, match="users"):
        evaluate(game, [TRMAgent()], users)


def test_intervals_do_not_hang_on_the_order_of_the_rows(game: Game) -> None:
    (result,) = evaluate(game, [HeuristicAgent()], list(range(12))).agents
    turned = AgentResult(result.header, result.rows[::-1])
    assert summarize(turned) == summarize(result)
    assert paired_difference(turned, result).metrics["Reward"].mean == 0.0
