from __future__ import annotations

import csv
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from agents.cli import main
from agents.cli.tables import draw_markdown

SAMPLE = ("--env", "DeepRec-Sample-v0")


def _run(*args: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agents.cli", *args]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", ["prepare", "train-trm", "export-deeprec", "evaluate", "report", "play", "agents"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    assert f"usage: deeprec {command}" in capsys.readouterr().out


def test_evaluate_prints_and_writes_one_table_and_reuses_it(tmp_path: Path) -> None:
    args = ("evaluate", *SAMPLE, "--agents", "random,trm", "--users", "12", "--out", str(tmp_path), "--quiet")
    first = _run(*args)
    assert first.returncode == 0, first.stderr
    assert "| random | 12 |" in first.stdout
    assert "| trm | 12 |" in first.stdout
    rows = sorted((tmp_path / "rows").glob("*.jsonl"))
    kept = [path.read_text() for path in rows]
    second = _run(*args)
    assert second.stdout == first.stdout
    assert "reusing 12 of 12 users" in second.stderr
    assert [path.read_text() for path in rows] == kept
    with (tmp_path / "table.csv").open(newline="") as stream:
        assert [row["agent"] for row in csv.DictReader(stream)] == ["random", "trm"]
    report = _run("report", str(tmp_path))
    assert report.returncode == 0, report.stderr
    assert report.stdout == first.stdout


def test_play_prints_an_annotated_transcript() -> None:
    result = _run("play", "--agent", "heuristic", *SAMPLE, "--user-index", "3")
    assert result.returncode == 0, result.stderr
    assert "--- turn 1: search | reward" in result.stdout
    assert "--- end: " in result.stdout
    assert "--- the target was: " in result.stdout
    assert "\x1b[" not in result.stdout
    assert _run("play", "--agent", "heuristic", *SAMPLE, "--user-index", "3").stdout == result.stdout


def test_play_by_hand_takes_actions_from_the_keyboard() -> None:
    typed = "Something light.\n<|begin_of_preference|> comedy <|end_of_preference|>\nI have seen enough.\n\n"
    result = _run("play", *SAMPLE, text=typed)
    assert result.returncode == 0, result.stderr
    assert "--- turn 1: search" in result.stdout
    assert "--- end: malformed: no_action" in result.stdout
    left = _run("play", *SAMPLE, text="")
    assert left.returncode == 0, left.stderr
    assert "the episode was left" in left.stderr


def test_play_by_hand_knows_short_forms(tmp_path: Path) -> None:
    typed = "=1\n/slow noir; 1990s\n= 21\n=3 1\n"
    result = _run("play", *SAMPLE, "--user-index", "3", text=typed)
    assert result.returncode == 0, result.stderr
    assert "expected a search before the recommendation, got '=1'" in result.stderr
    assert "expected places of the last list, 1 to 20, got '= 21'" in result.stderr
    found, _, ranked = result.stdout.partition("--- turn 2: recommend")
    assert "<|begin_of_preference|> slow noir; 1990s <|end_of_preference|>" in found
    candidates = found.rpartition("<|begin_of_item_list|>\n")[2].split("\n")
    titles = [line.partition(" ")[2] for line in candidates[:20]]
    expected = [titles[2], titles[0], titles[1], *titles[3:10]]
    listed = ranked.partition("<recommendation_list>\n")[2].split("\n")[:10]
    assert [line.partition(" ")[2] for line in listed] == expected
    assert "--- the target was: " in ranked
    (tmp_path / "played.txt").write_text(result.stdout)
    explained = _run("rewards", "explain", str(tmp_path / "played.txt"), *SAMPLE)
    assert "turn 1: search 'slow noir; 1990s'" in explained.stdout, explained.stderr


def test_the_baseline_may_be_named_without_its_mark(tmp_path: Path) -> None:
    args = ("--agents", "trm,oracle", "--users", "5", "--baseline", "oracle", "--out", str(tmp_path), "--quiet")
    result = _run("evaluate", *SAMPLE, *args)
    assert result.returncode == 0, result.stderr
    assert "| trm | oracle (sees the target) | 5 |" in result.stdout


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_table_in_the_terminal_shows_every_cell_whole(width: int) -> None:
    values = [[f"{agent}.{metric}00 (0.100–0.900)" for metric in range(6)] for agent in range(4)]
    head = ["Agent", *(f"Metric@{metric}" for metric in range(6))]
    rows = [head, ["---"] * 7, *([f"one\\|{agent} (sees [it])", *values[agent]] for agent in range(4))]
    text = "Above.\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\nBelow."
    console = Console(width=width, file=StringIO(), color_system=None)
    draw_markdown(text, console)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line.rstrip()) <= width for line in drawn.split("\n"))
    for agent in range(4):
        assert f"one|{agent}" in drawn
        assert all(f"{agent}.{metric}00" in drawn for metric in range(6))
    assert all(name in drawn for name in head)
    assert drawn.count("(0.100–0.900)") == 24
    assert "---" not in drawn
    assert drawn.startswith("Above.")
    assert drawn.rstrip().endswith("Below.")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "agents.cli", "rewards", "tree"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_agents_lists_names_and_what_they_do() -> None:
    result = _run("agents")
    assert result.returncode == 0, result.stderr
    for name in ("random", "popularity", "trm", "heuristic", "llm"):
        assert f"\n{name} " in f"\n{result.stdout}"


def test_csv_files_are_prepared_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPREC_HOME", str(tmp_path / "home"))
    log, items, out = tmp_path / "log.csv", tmp_path / "items.csv", tmp_path / "out"
    log.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user in "ab" for item in "1231"))
    items.write_text("item_id,title,kind\n1,Tea,hot|drink\n2,Ice,cold\n3,Milk,drink\n")
    prepared = _run("prepare", "csv", "--interactions", str(log), "--items", str(items), "--name", "shop")
    assert prepared.returncode == 0, prepared.stderr
    assert "repeated interactions kept  2\n" in prepared.stdout
    assert "csv-shop: 2 users, 3 items; in " in prepared.stdout
    exported = _run("export-deeprec", "csv:shop", str(out))
    assert exported.returncode == 0, exported.stderr
    assert "no TRM is trained on it" in exported.stdout
    again = _run("prepare", f"deeprec:{out}")
    assert again.returncode == 0, again.stderr
    assert "deeprec-out: 2 users, 3 items; in " in again.stdout
    core = _run("prepare", "csv", "--interactions", str(log), "--items", str(items), "--k-core", "3", "--name", "core")
    assert core.returncode == 2
    assert "the 3-core drops over half" in core.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("evaluate", "--env", "DeepRec-Smple-v0"), "did you mean 'DeepRec-Sample-v0'"),
        (("evaluate", *SAMPLE, "--dataset", "sample"), "either --env or --dataset"),
        (("evaluate",), "either --env or --dataset"),
        (("evaluate", *SAMPLE, "--agents", "heuristics"), "did you mean 'heuristic'"),
        (("evaluate", *SAMPLE, "--agents", " ,"), "names no agent"),
        (("evaluate", *SAMPLE, "--users", "many"), "--users must be"),
        (("evaluate", *SAMPLE, "--agents", "trm", "--baseline", "heuristic"), "expected --baseline to be one of 'trm'"),
        (("evaluate", *SAMPLE, "--seed", "-1"), "--seed must be at least 0"),
        (("evaluate", *SAMPLE, "--batch-size", "0"), "--batch-size must be at least 1"),
        (("evaluate", *SAMPLE, "--out", "/dev/null"), "expected --out to be a folder, got /dev/null"),
        (("generate", "trm", *SAMPLE, "--start", "-3"), "--start must be at least 0"),
        (("play", *SAMPLE, "--agent", "trm", "--user-index", "99999"), "expected --user-index to be in 0..399"),
        (("play", *SAMPLE, "--user-index", "-1"), "expected --user-index to be in 0..399, got -1"),
        (("play", *SAMPLE, "--seed", "-1"), "--seed must be at least 0"),
        (("spread", ".", "."), "got none in ."),
        (("serve", "recall", "--dataset", "sample", "--port", "99999"), "--port must be within 0 and 65535"),
        (("prepare", "ml-100k", "--interactions", "log.csv"), "expected --interactions with the data set csv only"),
        (("prepare", "csv", "--interactions", "none.csv", "--items", "none.csv"), "none.csv: no such file"),
        (("prepare", "amazon"), "a category such as"),
        (("prepare", "ml-100k", "--category", "Books"), "expected no category"),
        (("prepare", "ml100k"), "did you mean 'ml-100k'"),
        (("prepare", "csv", "--interactions", "log.csv"), "both --interactions FILE and --items FILE"),
        (("export-deeprec", "csv:none", "out"), "is not prepared"),
        (("report", "no/such/folder"), "no folder no/such/folder"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_status_2(
    args: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(list(args))
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("deeprec: ")
    assert error.count("\n") == 1


def test_the_help_needs_neither_torch_nor_the_environment() -> None:
    heavy = ("torch", "transformers", "matplotlib", "gymnasium")
    code = f"import sys, agents.cli; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_train_llm_is_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of:
        main(["train", "llm", "quickstrat"])
    assert exit_of.value.code == 1
    assert "quickstart" in capsys.readouterr().err
