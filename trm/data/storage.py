"""Folders that appear whole or not at all, and checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_REPLACE_ATTEMPTS = 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when the block ends; on an error nothing changes.

    Several processes may do this at once: the last one wins. Where `folder` exists already, a reader may find it
    missing between two renames, never half written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o777 & ~_umask())
        for path in sorted(draft.rglob("*")):
            if path.is_file():
                _sync(path)
        _move_into_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move_into_place(draft: Path, folder: Path) -> None:
    for _ in range(_REPLACE_ATTEMPTS):
        try:
            draft.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _move_aside(folder)
    raise FileExistsError(errno.EEXIST, "other processes keep writing the folder; run it again", str(folder))


def _move_aside(folder: Path) -> None:
    """Remove folder under another name, so that it vanishes at once; another process may have been faster."""
    bin_folder = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    try:
        folder.rename(bin_folder / folder.name)
    except FileNotFoundError:
        pass
    finally:
        shutil.rmtree(bin_folder, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
