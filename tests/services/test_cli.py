from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.cli import main

SAMPLE = ("--dataset", "sample", "--quiet")


@pytest.mark.parametrize("command", [("serve", "recall"), ("serve", "reward"), ("generate",)])
def test_every_command_explains_itself(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: deeprec {' '.join(command)}" in said
    assert "--dataset" in said


def test_a_run_is_recorded_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    run = ("generate", "heuristic", *SAMPLE, "--end", "20", "--out")
    main([*run, str(tmp_path / "first"), "--record", str(file)])
    main([*run, str(tmp_path / "second"), "--replay", str(file)])
    first, second = (tmp_path / name / "users-000000-000020.jsonl" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert len(file.read_text().splitlines()) > 40
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main(["generate", "trm", *SAMPLE, "--start", "20", "--out", str(tmp_path / "third"), "--replay", str(file)])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert "holds no retrieval for preference ''" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--retriever", "localhost:6001"), "expected http://HOST:PORT"),
        (("--replay", "a.jsonl", "--record", "b.jsonl"), "--replay answers alone"),
        (("--replay", "no/such.jsonl"), "expected the vectors of a recording"),
        (("--start", "400"), "expected users within 0 to 400"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["generate", "trm", *SAMPLE, "--out", str(tmp_path), *options])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_folder_of_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", "trm", *SAMPLE, "--end", "2", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "run.json").read_text())["agent"] == "trm"
    with pytest.raises(SystemExit):
        main(["generate", "random", *SAMPLE, "--end", "2", "--out", str(tmp_path)])
    assert "holds another run" in capsys.readouterr().err
