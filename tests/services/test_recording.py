from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.services.worlds import history, sample_world
from trm.errors import DataFormatError, ReplayMiss, RetrieverError
from trm.recording import RecordingRetriever, ReplayRetriever
from trm.retrievers import build_retriever, source_of
from trm.types import RankingRetriever, RetrievalQuery

WORLD = sample_world()
QUERIES = [RetrievalQuery(history(WORLD, user), text, 5) for user in range(4) for text in ("", "bright comedies")]


def local() -> RankingRetriever:
    assert isinstance(WORLD.retriever, RankingRetriever)
    return WORLD.retriever


def recorded(path: Path, queries: list[RetrievalQuery] = QUERIES) -> None:
    recorder = RecordingRetriever(local(), path)
    recorder.retrieve(queries)
    recorder.ranks(queries[:2], [7, 8])
    recorder.close()


def test_a_replay_answers_exactly_what_was_recorded(tmp_path: Path) -> None:
    recorded(tmp_path / "a.jsonl")
    replay = ReplayRetriever(tmp_path / "a.jsonl")
    assert isinstance(replay, RankingRetriever)
    assert replay.retrieve(QUERIES[::-1]) == local().retrieve(QUERIES)[::-1]
    assert replay.ranks(QUERIES[:2], [7, 8]).tolist() == local().ranks(QUERIES[:2], [7, 8]).tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preference": "bright comedy"}, "nearest is 'bright comedies'"),
        ({"k": 6}, "k=6"),
        ({"exclude_history": False}, "exclude_history=False"),
        ({"history": (1,)}, "nothing was recorded for this history"),
    ],
)
def test_a_query_that_is_not_there_fails_loudly(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    recorded(tmp_path / "a.jsonl")
    fields = {name: getattr(QUERIES[1], name) for name in ("history", "preference", "k", "exclude_history")}
    missing = RetrievalQuery(**{**fields, **changes})  # type: ignore[arg-type]
    with pytest.raises(ReplayMiss, match="record the run again") as error:
        ReplayRetriever(tmp_path / "a.jsonl").retrieve([QUERIES[0], missing])
    assert said in str(error.value)


def test_a_rank_that_is_not_there_fails_loudly(tmp_path: Path) -> None:
    recorded(tmp_path / "a.jsonl")
    with pytest.raises(ReplayMiss, match="no rank of item 9"):
        ReplayRetriever(tmp_path / "a.jsonl").ranks(QUERIES[:1], [9])


def test_each_query_is_kept_once_and_a_second_run_adds_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    recorded(path, QUERIES[:4])
    recorded(path, QUERIES)
    recorded(path, QUERIES)
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {"format": 1, "recommender": ""}
    assert len(lines) == 1 + len(QUERIES) + 2


def test_a_line_that_a_crash_cut_short_is_recorded_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    recorded(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    recorded(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b'{"format": 2}\n',
        b"rubbish\n",
        b'{"format": 1}\n',
        b'{"format": 1, "recommender": ""}\nrubbish\n{"a": 1}\n',
    ],
)
def test_a_file_that_is_no_recording_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataFormatError, match=r"a.jsonl, line \d"):
        ReplayRetriever(path)
    with pytest.raises(DataFormatError):
        RecordingRetriever(local(), path)
    assert path.read_bytes() == content


def test_a_recording_is_of_one_recommender_and_written_by_one_process(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = RecordingRetriever(local(), path, recommender="1c")
    with pytest.raises(RetrieverError, match="being recorded by another process"):
        RecordingRetriever(local(), path, recommender="1c")
    first.close()
    with pytest.raises(DataFormatError, match="expected a recording of the recommender '2d', got one of '1c'"):
        RecordingRetriever(local(), path, recommender="2d")
    RecordingRetriever(local(), path, recommender="1c").close()
    assert ReplayRetriever(path).recommender == "1c"


def test_sources_are_named_by_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert build_retriever(None, local, recommender="") is WORLD.retriever
    recording = build_retriever(f"record:{path}", local, recommender="")
    expected = recording.retrieve(QUERIES)
    assert build_retriever(f"replay:{path}", lambda: pytest.fail("asked"), recommender="").retrieve(QUERIES) == expected
    for wrong in ("localhost:6001", "replay:", "tape:a"):
        with pytest.raises(ValueError, match="http://HOST:PORT, record:FILE or replay:FILE"):
            build_retriever(wrong, local, recommender="")


def test_options_become_a_source() -> None:
    url, a = "http://127.0.0.1:6001", Path("a.jsonl")
    assert source_of(retriever=None, record=None, replay=None) is None
    assert source_of(retriever=url, record=None, replay=None) == url
    assert source_of(retriever=None, record=a, replay=None) == "record:a.jsonl"
    assert source_of(retriever=url, record=a, replay=None) == f"record:a.jsonl@{url}"
    assert source_of(retriever=None, record=None, replay=a) == "replay:a.jsonl"
    with pytest.raises(ValueError, match="--replay answers alone"):
        source_of(retriever=url, record=None, replay=a)
