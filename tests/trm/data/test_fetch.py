"""Downloads from a real HTTP server that knows ranges, ignores them, or breaks off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from trm.data.fetch import download
from trm.errors import DatasetNotPrepared

BODY = np.random.default_rng(0).bytes(3_000_000)


class Handler(BaseHTTPRequestHandler):
    """Sends BODY, or the part of it that is asked for; may break off once."""

    breaks_after: int | None = None
    knows_ranges = True
    asked: list[str | None] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        if self.path != "/file.gz":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.knows_ranges else 0
        if start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        rest = BODY[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.breaks_after is not None:
            rest, type(self).breaks_after = rest[: self.breaks_after], None
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Handler.breaks_after, Handler.knows_ranges, Handler.asked = None, True, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/file.gz"
        server.shutdown()
        thread.join()


def test_a_file_comes_whole_and_in_one_go(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download(url, tmp_path / "deep" / "file.gz", progress=True)
    assert (tmp_path / "deep" / "file.gz").read_bytes() == BODY
    assert Handler.asked == [None]
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "file.gz"]
    assert "file.gz.part: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_that_broke_off_goes_on_where_it_was(url: str, tmp_path: Path, knows_ranges: bool) -> None:
    Handler.breaks_after, Handler.knows_ranges = 1_200_000, knows_ranges
    target = tmp_path / "file.gz"
    with pytest.raises(DatasetNotPrepared, match="the same command goes on where it was"):
        download(url, target)
    assert not target.exists()
    have = (tmp_path / "file.gz.part").stat().st_size
    assert 0 < have <= 1_200_000
    download(url, target)
    assert target.read_bytes() == BODY
    assert Handler.asked == [None, f"bytes={have}-"]


def test_a_partial_file_that_is_whole_already_is_taken(url: str, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(BODY)
    download(url, tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == BODY


def test_a_partial_file_of_something_longer_is_dropped(url: str, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(BODY + b"more")
    with pytest.raises(DatasetNotPrepared, match="has changed since"):
        download(url, tmp_path / "file.gz")
    download(url, tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == BODY


def test_what_cannot_be_had_is_one_sentence(url: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotPrepared, match=r"could not fetch .*404"):
        download(url.replace("file", "other"), tmp_path / "file.gz")
    with pytest.raises(DatasetNotPrepared, match=r"could not fetch http://127\.0\.0\.1:9"):
        download("http://127.0.0.1:9/file.gz", tmp_path / "file.gz")
    assert not (tmp_path / "file.gz").exists()
