"""What stands in the page; tests/agents/test_report_in_browser.py looks at it in Chromium."""

import json
import logging
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("bokeh", reason="the page needs the extra report")

from agents.breakdown import end_of
from agents.browser_data import build_browser_data
from agents.cli import main
from agents.evaluate import evaluate
from agents.random_agent import RandomAgent
from agents.report_page import write_page
from agents.training_log import load_run_logs
from agents.trm_agent import TRMAgent
from deeprec_env.env import build_game
from tests.agents.pages import HOSTILE, build_page, transcripts_of


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes, and the texts of its table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_it_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = build_page(tmp_path, monkeypatch)[0].read_text(encoding="utf-8")
    found = Elements(page).found
    assert not [tag for tag, attributes in found if "src" in attributes]
    assert all(attributes["href"].startswith("#") for _, attributes in found if attributes.get("href"))  # type: ignore[union-attr]
    assert "link" not in {tag for tag, _ in found}
    assert "default-src 'none'" in page
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_texts_of_models_and_titles_make_no_elements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = build_page(tmp_path, monkeypatch)[0].read_text(encoding="utf-8")
    assert HOSTILE not in page
    found = Elements(page).found
    assert "img" not in {tag for tag, _ in found}
    assert [attributes.get("id") for tag, attributes in found if tag == "script"] == [
        "settings",
        "plots",
        "transcripts",
        None,
        None,
    ]
    items = transcripts_of(page)[0]["items"]
    assert any(title.startswith(HOSTILE) for title, _ in items.values())  # the title itself is kept as it is


def test_every_scrap_of_data_is_valid_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = build_page(tmp_path, monkeypatch)[0].read_text(encoding="utf-8")
    elements = {attributes["id"] for tag, attributes in Elements(page).found if tag == "div" and "id" in attributes}
    plots = json.loads(re.findall(r'id="plots">(.*?)</script>', page, re.DOTALL)[0])
    assert set(plots) == {name for name in elements if str(name).startswith("plot-")}
    assert len(plots) == 1 + 2 * 3 + 1 + 2 + 1  # ends; two metrics by three dimensions; curve; terms a run; loss


def test_transcripts_are_what_was_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, results = build_page(tmp_path, monkeypatch)
    (data,) = transcripts_of(path.read_text(encoding="utf-8"))
    assert [agent["name"] for agent in data["agents"]] == [result.header.agent for result in results]
    for agent, result in zip(data["agents"], results, strict=True):
        for row in result.rows:
            end, rank, reward, failure, turns = agent["rows"][str(row.user_index)]
            user = data["users"][str(row.user_index)]
            assert (end, rank, failure) == (end_of(row), row.rank, row.failure)
            assert reward == pytest.approx(row.reward, abs=1e-5)
            assert sum(paid for turn in turns for paid in turn[3].values()) == pytest.approx(row.reward, abs=1e-5)
            assert [(turn[1], tuple(turn[2])) for turn in turns] == list(row.turns)
            for _, _, candidates, _, place, _, flags in turns:
                assert place == (candidates.index(user["target"]) + 1 if user["target"] in candidates else 0)
                assert not flags or (flags.find("t") + 1) == row.rank
    (_, by_user) = data["agents"]
    assert {turn[6][-1] for row in by_user["rows"].values() for turn in row[4] if len(turn[6]) == 10} == {"u"}
    assert {row[0] for row in by_user["rows"].values()} == {
        "hit",
        "ranking_failure",
        "retrieval_failure",
        "malformed",
    }


def test_many_users_are_sampled_those_first_whom_all_have_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, results = build_page(tmp_path, monkeypatch, max_users=7)
    (data,) = transcripts_of(path.read_text(encoding="utf-8"))
    assert (len(data["users"]), data["num_users"]) == (7, 24)
    few = type(results[0])(results[1].header, results[1].rows[:5])
    again = build_browser_data([results[0], few], max_users=5)
    assert set(again["users"]) == {row.user_index for row in few.rows}


def test_without_users_there_is_no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = build_page(tmp_path, monkeypatch, max_users=0)[0].read_text(encoding="utf-8")
    assert 'id="browser"' not in page
    assert transcripts_of(page) == []


def test_data_that_are_not_at_hand_leave_the_rest_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, results = build_page(tmp_path, monkeypatch)
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING):
        write_page(results, [], tmp_path / "again.html")
    page = (tmp_path / "again.html").read_text(encoding="utf-8")
    (data,) = transcripts_of(page)
    assert data["agents"] == []
    assert "expected a data set in" in data["note"]
    assert "no transcripts of trm" in caplog.text
    assert "<h3>Where they lose</h3>" in page


def test_the_page_is_the_same_for_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_page(tmp_path, monkeypatch)[0].read_text(encoding="utf-8")
    second = build_page(tmp_path, monkeypatch)[0].read_text(encoding="utf-8")
    assert transcripts_of(first) == transcripts_of(second)


def test_run_logs_come_from_events_and_else_from_metrics_files(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "llm" / "cold" / "tensorboard")) as writer:
        for step in (0, 1, 1):
            writer.add_scalar("reward/format", step / 4, step)
        writer.add_text("transcript", "no scalar", 0)
    (tmp_path / "llm" / "cold" / "metrics.jsonl").write_text('{"step": 0, "reward/format": 9.0}\n')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text(
        '{"step": 3, "stage": "rec", "reward_mean": 1.0, "rollout/reward_mean": 1.0}\n{"step": 4, "rollo'
    )
    cold, other = load_run_logs(tmp_path)
    assert (cold.name, dict(cold.scalars)) == ("llm/cold", {"reward/format": ((0.0, 1.0), (0.0, 0.25))})
    assert (other.name, dict(other.scalars)) == ("other", {"rollout/reward_mean": ((3.0,), (1.0,))})
    with pytest.raises(FileNotFoundError, match="no run"):
        load_run_logs(tmp_path / "none")


def test_the_command_writes_the_page_or_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(build_game("sample", {}), [TRMAgent(), RandomAgent()], range(6), out=tmp_path)
    main(["report", str(tmp_path), "--baseline", "trm", "--users", "4"])
    (data,) = transcripts_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (len(data["users"]), data["num_users"], data["note"]) == (4, 6, "")
    assert "<h3>Less trm, user by user</h3>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").unlink()
    main(["report", str(tmp_path), "--no-page"])
    monkeypatch.setitem(sys.modules, "agents.report_page", None)
    main(["report", str(tmp_path)])
    assert "pip install 'deeprec-env[report]'" in caplog.text
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "strata.csv").exists()
