"""`deeprec rewards explain` and `deeprec rewards rescore`, from files that the other commands write."""

import subprocess
import sys
from pathlib import Path

import pytest

from agents.cli import main
from agents.evaluate import sample_users

SAMPLE = ("--env", "DeepRec-Sample-v0")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    main(["evaluate", *SAMPLE, "--agents", "trm,heuristic", "--users", "6", "--out", str(out), "--quiet"])
    return out


def _said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    main(["rewards", *args])
    return capsys.readouterr().out


def test_rescore_by_preset_and_by_file(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "| heuristic | 6 |" in _said(capsys, "rescore", str(rows), "--reward", "paper", "--stage", "cold")
    (tmp_path / "mine.yaml").write_text("preset: strict\nhit_weight: 0\nsimilarity_weight: 0\n")
    table = _said(capsys, "rescore", str(rows), "--reward", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out"))
    assert "| 0.000 (0.000–0.000) | +0.000 | +0.000 | +0.000 |" in table
    assert len(list((tmp_path / "out" / "rows").glob("*.jsonl"))) == 2


def test_explain_rows_and_what_play_printed(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    user = sample_users(400, 6)[1]  # one whose further searches find something new
    said = _said(capsys, "explain", str(rows), "--agent", "heuristic", "--user", str(user), "--stage", "cold")
    assert f"user user-{user} (test), stage cold, strict rules" in said
    assert "asks for something new" in said
    capsys.readouterr()
    main(["play", *SAMPLE, "--agent", "heuristic", "--user-index", str(user)])
    (tmp_path / "played.txt").write_text(capsys.readouterr().out)
    assert _said(capsys, "explain", str(tmp_path / "played.txt"), *SAMPLE, "--stage", "cold") == said


def test_the_tree_names_every_term_with_its_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("preset: strict\nhit_weight: 2.5\nprogress_weight: 0\n")
    said = _said(capsys, "tree", "--reward", str(tmp_path / "mine.yaml"))
    cold, rec = said.partition("  stage rec\n")[::2]
    assert "outcome    hit_weight 2.5\n" in rec
    assert "outcome" not in cold
    assert "invocation invocation_weight 0.5\n" in cold
    assert "invocation_weight" not in rec
    assert said.count("progress   progress_weight 0 (off)\n") == 2
    assert "min_new_share 0.15" in said
    assert "similarity_weight 10\n" in _said(capsys, "tree", "--reward", "paper")


def test_rescoring_needs_no_torch(rows: Path) -> None:
    code = f"import sys; from agents.cli import main; main(['rewards', 'rescore', {str(rows)!r}])"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("explain", "no-such-file"), "no transcript"),
        (("explain", "{rows}", "--agent", "heuristc"), "did you mean 'heuristic'"),
        (("explain", "{empty}/bytes", *SAMPLE, "--user", "1"), "to hold text"),
        (("explain", "{rows}", "--user", "400"), "no row"),
        (("rescore", "{rows}", "--reward", "stric"), "did you mean 'strict'"),
        (("rescore", "{empty}"), "expected rows"),
        (("rescore", "{rows}", "--reward", "{empty}/list.yaml"), "to map fields"),
    ],
)
def test_mistakes(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xd0")
    with pytest.raises(SystemExit) as exit_info:
        main(["rewards", *(arg.format(rows=rows, empty=tmp_path) for arg in args)])
    assert exit_info.value.code == 2
    assert said in capsys.readouterr().err
