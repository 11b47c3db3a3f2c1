"""Text lines of raw files, gzipped or not, with errors that name file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from trm.errors import DataFormatError


def read_lines(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a text file, gzipped if its name ends in .gz.

    Raises:
        DataFormatError: if the file is cut short, damaged or of another encoding.
        FileNotFoundError: if there is no such file.
    """
    with _open_bytes(path) as file:
        yield from decode_lines(file, source=str(path), encoding=encoding)


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
        number = float(text) if "." in text or "e" in text.lower() else int(text)
        if number != int(number):
            raise ValueError(text)
    except (ValueError, OverflowError) as error:
        raise DataFormatError(f"{where}: expected a whole number as {what}, got {text[:80]!r}") from error
    return int(number)


def _open_bytes(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
