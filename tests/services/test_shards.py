from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from agents.registry import make_agent
from agents.shards import ShardsError, play_shard, read_shard, render_summary, summarize_folder
from deeprec_env.game import Game
from tests.services.worlds import sample_world

ROOT = Path(__file__).parents[2]
GAME = Game(sample_world())
HEURISTIC = make_agent("heuristic")


def shard(out: Path, start: int, stop: int, **options: object) -> Path:
    return play_shard(GAME, HEURISTIC, range(start, stop), out=out, **options)  # type: ignore[arg-type]


def metrics(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "metric_calc_rec.py"), "--test_results_dir", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=out)


def test_a_shard_holds_a_line_a_user_in_their_order(tmp_path: Path) -> None:
    path = shard(tmp_path, 10, 20, batch_size=3)
    lines = read_shard(path)
    assert path.name == "users-000010-000020.jsonl"
    assert [line.user_index for line in lines] == list(range(10, 20))
    for line in lines:
        target = GAME.world.splits.example("test", line.user_index).target
        assert line.failure is None
        assert (line.rank > 0) == (target in line.recommended_ids)
        assert line.response.endswith("</recommendation_list>")
        if line.rank:
            assert line.recommended_ids[line.rank - 1] == target


@pytest.mark.parametrize("cut", [1, 40])
def test_a_shard_that_was_killed_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path, cut: int) -> None:
    whole = shard(tmp_path / "a", 0, 12).read_bytes()
    path = shard(tmp_path / "b", 0, 12)
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([lines[7], lines[2], lines[4][:-cut]]))
    assert shard(tmp_path / "b", 0, 12).read_bytes() == whole


def test_a_second_run_plays_nothing(tmp_path: Path) -> None:
    class Idle:
        name = HEURISTIC.name
        fingerprint = HEURISTIC.fingerprint  # type: ignore[attr-defined]

        def act(self, episodes: object) -> list[str]:
            pytest.fail("was asked to play")

    path = shard(tmp_path, 0, 5)
    whole = path.read_bytes()
    play_shard(GAME, Idle(), range(5), out=tmp_path)
    play_shard(GAME, Idle(), range(2, 4), out=tmp_path)  # of another shard's users none is missing
    assert path.read_bytes() == whole


def test_users_beyond_the_last_are_left_out(tmp_path: Path) -> None:
    assert [line.user_index for line in read_shard(shard(tmp_path, 398, 10**9))] == [398, 399]
    with pytest.raises(ValueError, match="users within 0 to 400"):
        shard(tmp_path, 400, 500)


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2)
    with pytest.raises(ShardsError, match="another run: its seed is 0, not 1"):
        shard(tmp_path, 2, 4, seed=1)
    with pytest.raises(ShardsError, match="its agent is 'heuristic', not 'random'"):
        play_shard(GAME, make_agent("random"), range(2, 4), out=tmp_path)


def test_a_folder_of_an_older_version_goes_on(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2)
    run = json.loads((tmp_path / "run.json").read_text())
    del run["num_items"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert len(read_shard(shard(tmp_path, 2, 4))) == 2


def test_the_same_shard_is_played_by_one_process_only(tmp_path: Path) -> None:
    class Rival:
        name = HEURISTIC.name
        fingerprint = HEURISTIC.fingerprint  # type: ignore[attr-defined]
        refused = False

        def act(self, episodes: list[object]) -> list[str]:
            if not self.refused:
                with pytest.raises(ShardsError, match="another process"):
                    shard(tmp_path, 0, 3)
                self.refused = True
            return HEURISTIC.act(episodes)  # type: ignore[arg-type]

    rival = Rival()
    play_shard(GAME, rival, range(3), out=tmp_path)  # type: ignore[arg-type]
    assert rival.refused


def test_metrics_are_those_of_the_ranks_and_failures_are_misses(tmp_path: Path) -> None:
    path = shard(tmp_path, 0, 4)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record, rank, failure in zip(records, [1, 4, 0, 0], [None, None, None, "no_search"], strict=True):
        record["rank"], record["failure"] = rank, failure
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = summarize_folder(tmp_path, users=range(4))
    means = {name: estimate.mean for name, estimate in found.summary.metrics.items()}
    assert means["Recall@1"] == 1 / 4
    assert means["Recall@5"] == means["Recall@10"] == 2 / 4
    assert means["NDCG@5"] == pytest.approx((1 + 1 / math.log2(5)) / 4)
    assert means["MRR"] == pytest.approx((1 + 1 / 4) / 4)
    assert found.failures == {"no_search": 1}
    assert "failures, counted as misses: 1 (no_search 1)" in render_summary(found)


def test_the_script_sums_up_all_shards_and_refuses_gaps_and_doubles(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = shard(out, 0, 150)
    shard(out, 150, 390)
    refused = metrics(out)
    assert refused.returncode == 2
    assert "10 are (390, 391, 392, 393, 394, …) missing" in refused.stderr
    assert "390 of 400 users" in metrics(out, "--users", "0", "390").stdout
    assert "left out because they are missing: 10" in metrics(out, "--allow_missing").stdout
    shard(out, 390, 400)
    done = metrics(out)
    assert done.returncode == 0, done.stderr
    assert "heuristic on sample, split test: 400 of 400 users" in done.stdout
    for name in ("Recall@1 ", "Recall@5 ", "Recall@10", "NDCG@5 ", "NDCG@10", "MRR"):
        assert name in done.stdout
    (out / "users-000149-000150.jsonl").write_text(first.read_text().splitlines(keepends=True)[-1])
    doubled = metrics(out)
    assert doubled.returncode == 2
    assert "1 is (149) in more than one shard" in doubled.stderr
    assert metrics(out, "--allow_doubled").returncode == 0


def test_a_folder_without_a_run_says_how_to_make_one(tmp_path: Path) -> None:
    done = metrics(tmp_path)
    assert done.returncode == 2
    assert "deeprec generate" in done.stderr
