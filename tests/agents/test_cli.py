from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from agents.cli import main

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
    assert "the episode was left" in left.stdout


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
        (("play", *SAMPLE, "--agent", "trm", "--user-index", "99999"), "user_index"),
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
