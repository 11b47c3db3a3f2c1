"""Saved rows under other rules: the rewards are those that playing by these rules would have paid."""

import dataclasses
import json
from pathlib import Path

import pytest

from agents.evaluate import AgentResult, evaluate, load_results
from agents.heuristic_agent import HeuristicAgent
from agents.random_agent import RandomAgent
from agents.rescore import config_of, dataset_named, load_rows, render_table, rescore, world_of, write_rows
from deeprec_env.config import GameConfig, build_game_config
from deeprec_env.game import Game
from deeprec_env.transcripts import NotThisEpisode
from deeprec_env.world import World, load_world
from trm.data.refs import DatasetRef

USERS = list(range(12))


@pytest.fixture(scope="module")
def world() -> World:
    return load_world("sample")


def _played(world: World, config: GameConfig, out: Path | None = None) -> AgentResult:
    return evaluate(Game(world, config), [HeuristicAgent()], USERS, out=out).agents[0]


@pytest.mark.parametrize("reward", ["strict", "paper", {"preset": "strict", "progress_weight": 0.3, "hit_weight": 2.0}])
@pytest.mark.parametrize("stage", ["cold", "rec"])
def test_rescoring_pays_what_playing_by_these_rules_pays(
    world: World, tmp_path: Path, stage: str, reward: object
) -> None:
    _played(world, GameConfig(k=15, max_history=5), tmp_path)
    (kept,) = load_rows(tmp_path)
    config = config_of(kept, reward=reward, stage=stage)
    assert (config.k, config.max_history) == (15, 5)
    rescored = rescore(kept, world_of(kept), config)
    played = _played(world, config)
    assert [row.reward for row in rescored.result.rows] == [row.reward for row in played.rows]
    assert [row.rank for row in rescored.result.rows] == [row.rank for row in played.rows]
    assert sum(rescored.terms.values()) == pytest.approx(sum(row.reward for row in played.rows) / len(USERS))
    assert rescored.old_rewards == tuple(row.reward for row in kept.rows)
    assert rescored.result.header.key == played.header.key


def test_the_recommender_is_not_asked(world: World) -> None:
    played = _played(world, GameConfig())

    class Broken:
        def retrieve(self, queries: object) -> None:
            raise AssertionError("asked")

    broken = World(
        world.name,
        world.catalog,
        world.splits,
        retriever=Broken(),  # type: ignore[arg-type]
        encoder=world.encoder,
        item_text_vectors=world.item_text_vectors,
        item_id_vectors=world.item_id_vectors,
    )
    assert rescore(played, broken, GameConfig()).result.rows == played.rows


def test_written_rows_are_read_again_and_the_table_names_terms(world: World, tmp_path: Path) -> None:
    played = _played(world, GameConfig(), tmp_path / "played")
    rescored = rescore(played, world, build_game_config({"stage": "cold"}))
    write_rows(rescored, tmp_path / "again")
    (found,) = load_results(tmp_path / "again")
    assert found == rescored.result
    table = render_table([rescored])
    assert "| format | invocation | diversity |" in table
    assert "| heuristic | 12 |" in table


def test_older_rows_are_left_out_and_said(world: World, tmp_path: Path) -> None:
    played = _played(world, GameConfig(), tmp_path)
    (path,) = (tmp_path / "rows").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for record in lines[1:5]:
        del record["turns"]
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    (kept,) = load_rows(path)
    assert rescore(kept, world, GameConfig()).num_left_out == 4
    for record in lines[1:]:
        record.pop("turns", None)
    del lines[0]["options"]
    path.write_text("".join(json.dumps(record) + "\n" for record in lines))
    (kept,) = load_rows(path)
    with pytest.raises(ValueError, match="older file"):
        config_of(kept)
    with pytest.raises(ValueError, match="older file"):
        rescore(kept, world, GameConfig())
    reused = evaluate(Game(world, GameConfig()), [HeuristicAgent()], USERS, out=tmp_path).agents[0]
    assert [row.reward for row in reused.rows] == [row.reward for row in played.rows]


def test_rows_that_do_not_fit_are_refused(world: World, tmp_path: Path) -> None:
    played = evaluate(Game(world, GameConfig()), [RandomAgent()], [0], out=tmp_path).agents[0]
    (row,) = played.rows
    doubled = dataclasses.replace(played, rows=(dataclasses.replace(row, turns=row.turns * 2),))
    with pytest.raises(NotThisEpisode, match="to end after turn 2"):
        rescore(doubled, world, GameConfig())
    unasked = dataclasses.replace(played, rows=(dataclasses.replace(row, turns=(("junk", (1, 2)),)),))
    with pytest.raises(NotThisEpisode, match="candidates for a search only"):
        rescore(unasked, world, GameConfig())
    other = dataclasses.replace(played, header=dataclasses.replace(played.header, world="00000000"))
    with pytest.raises(ValueError, match="evaluate again"):
        world_of(other)
    with pytest.raises(ValueError, match="expected rows"):
        load_rows(tmp_path / "rows")


@pytest.mark.parametrize(
    "ref",
    [
        DatasetRef("ml-100k"),
        DatasetRef("sample"),
        DatasetRef("amazon", "Video_Games"),
        DatasetRef("amazon-2018", "Books"),
        DatasetRef("csv:shop"),
        DatasetRef("deeprec:../data/Games"),
    ],
)
def test_a_data_set_is_found_again_by_what_rows_call_it(ref: DatasetRef) -> None:
    assert DatasetRef(*dataset_named(ref.key)).key == ref.key
