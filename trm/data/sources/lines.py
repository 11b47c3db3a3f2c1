"""Text lines of raw files, gzipped or not, with errors that name file and line."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from tqdm import tqdm

from trm.errors import DataFormatError

_LINES_PER_UPDATE = 10_000
_FIRST_MILLISECONDS = 1e11


def read_lines(path: Path, *, encoding: str = "utf-8", progress: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a text file, gzipped if its name ends in .gz.

    Args:
        path: the file.
        encoding: of the text.
        progress: show a bar of the bytes read on stderr.

    Raises:
        DataFormatError: if the file is cut short, damaged or of another encoding.
        FileNotFoundError: if there is no such file.
    """
    with path.open("rb") as raw:
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
        lines = decode_lines(file, source=str(path), encoding=encoding)
        yield from _with_bar(lines, raw, path) if progress else lines


def _with_bar(lines: Iterator[tuple[int, str]], raw: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    with tqdm(desc=path.name, total=path.stat().st_size, unit="B", unit_scale=True) as bar:
        for number, line in lines:
            if number % _LINES_PER_UPDATE == 0:
                bar.update(raw.tell() - bar.n)
            yield number, line
        bar.update(raw.tell() - bar.n)


def decode_lines(file: Iterable[bytes], *, source: str, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of an open binary file.

    Args:
        file: opened for reading.
        source: how errors name it.
        encoding: of the text.

    Raises:
        DataFormatError: if the file is cut short, damaged or of another encoding.
    """
    number = 0
    try:
        for number, raw in enumerate(file, start=1):
            yield number, raw.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{source}:{number}: expected {encoding} text, got {error}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataFormatError(
            f"{source}:{number + 1}: expected a whole gzip file, got one cut short or damaged ({error}); fetch it again"
        ) from error


def split_fields(line: str, *, separator: str, num_fields: int, where: str) -> list[str]:
    """Return the fields of a line.

    Raises:
        DataFormatError: if there are fewer than num_fields.
    """
    fields = line.split(separator)
    if len(fields) < num_fields:
        raise DataFormatError(
            f"{where}: expected {num_fields} fields separated by {separator!r}, got {len(fields)} in {line[:80]!r}"
        )
    return fields


def parse_json_object(line: str, *, where: str) -> dict[str, Any]:
    """Return the JSON object that a line holds.

    Raises:
        DataFormatError: if it holds anything else.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataFormatError(f"{where}: expected a JSON object, got {line[:80]!r} ({error})") from error
    if not isinstance(record, dict):
        raise DataFormatError(f"{where}: expected a JSON object, got {line[:80]!r}")
    return record


def parse_int(text: str, *, what: str, where: str) -> int:
    """Return the whole number in text; "881250949.0" is one too.

    Raises:
        DataFormatError: if text is no whole number.
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
        if number != int(number):
            raise ValueError(text)
    except (ValueError, OverflowError) as error:
        raise DataFormatError(f"{where}: expected a whole number as {what}, got {text[:80]!r}") from error
    return int(number)


def parse_time(text: str, *, where: str) -> int:
    """Return milliseconds since 1970 of a number of seconds or milliseconds, or of an ISO 8601 date.

    Numbers from 1e11 on are milliseconds (as seconds they would lie past the year 5000). Dates without a zone are UTC.

    >>> parse_time("1970-01-02", where="x:1"), parse_time("86400.5", where="x:1")
    (86400000, 86400500)

    Raises:
        DataFormatError: if text is neither.
    """
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError as error:
            raise DataFormatError(f"{where}: expected a Unix time or an ISO date, got {text[:80]!r}") from error
        number = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(number):
        raise DataFormatError(f"{where}: expected a Unix time or an ISO date, got {text[:80]!r}")
    return round(number if abs(number) >= _FIRST_MILLISECONDS else number * 1000)
