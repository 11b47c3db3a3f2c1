"""Preference texts that a language model wrote for a data set: their file, and what may stand in it.

A file is JSON lines. The first says what the others belong to; each further one holds the texts of one item, or of the
beginning of one user's training sequence:

    {"format": 1, "dataset": "ml-100k", "fingerprint": "5d0c…", "model": "chat:…", "prompts": 1}
    {"item": 50, "texts": ["space battles with a young hero"], "left_out": {"title": 1}}
    {"user": 3, "length": 9, "texts": ["dark stories of the police"], "left_out": {}}

Reads and checks; who writes them is `agents.preferences`.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trm.data.dataset import Dataset
from trm.errors import DataFormatError

FORMAT = 1

_WORD = re.compile(r"\w+")
_YEAR = re.compile(r"\s*\(\d{4}\)\s*$")
_ARTICLES = ("the", "a", "an")
_TELLING_RUN = 5
"""So many words of a title in a row name it."""


class Prefix(NamedTuple):
    """The beginning of a user's training sequence."""

    user_index: int
    length: int
    """Items; at least 1, and fewer than the sequence has."""


@dataclass(frozen=True)
class WrittenPreferences:
    """Texts by what they were written for. None of them names a title that it stands for."""

    by_item: Mapping[int, tuple[str, ...]]
    """What a person might ask for to whom the item is then sold."""
    by_prefix: Mapping[Prefix, tuple[str, ...]]
    """What the person seems to like, told from these items alone."""
    fingerprint: str
    """A checksum of the texts."""

    @property
    def num_texts(self) -> int:
        """How many texts there are."""
        return sum(map(len, self.by_item.values())) + sum(map(len, self.by_prefix.values()))


def names_title(text: str, title: str) -> bool:
    """Return whether the text gives the title away.

    It does if it holds, word by word, the title without its year and leading article, what stands before a colon in it
    (two words or more), or five of its words in a row.
    """
    said = f" {' '.join(_words(text))} "
    return any(f" {' '.join(core)} " in said for core in _cores(title))


def read_written_preferences(path: Path, dataset: Dataset) -> WrittenPreferences:
    """Return the texts of a file. A last line that was cut short is left out, and so are items without a text.

    Raises:
        DataFormatError: if the file is none, belongs to another state of the data set, or a text names its title; the
            message names the line.
        FileNotFoundError: if there is no file.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    check_header(path, lines[0] if lines else "", dataset)
    by_item: dict[int, tuple[str, ...]] = {}
    by_prefix: dict[Prefix, tuple[str, ...]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            subject, texts = read_subject(record, dataset), tuple(map(str, record["texts"]))
            _check_texts(texts, subject, dataset)
        except (ValueError, KeyError, TypeError) as error:
            raise DataFormatError(f"{path}:{number}: expected written preferences, got {error!r}") from error
        if not texts:
            continue
        if isinstance(subject, Prefix):
            by_prefix[subject] = texts
        else:
            by_item[subject] = texts
    told = json.dumps([sorted(by_item.items()), sorted(by_prefix.items())])
    return WrittenPreferences(by_item, by_prefix, f"{zlib.crc32(told.encode()):08x}")


def check_header(path: Path, line: str, dataset: Dataset) -> Mapping[str, Any]:
    """Return what a file's first line says.

    Raises:
        DataFormatError: if it is not the beginning of a file for this state of the data set.
    """
    try:
        header = json.loads(line)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}")
        fingerprint, name = header["fingerprint"], header["dataset"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataFormatError(f"{path}:1: expected a file of written preferences, got {error!r}") from error
    if fingerprint != dataset.fingerprint:
        raise DataFormatError(
            f"{path} was written for another state of {name}; write another with `deeprec preferences`"
        )
    return dict(header)


def read_subject(record: Mapping[str, Any], dataset: Dataset) -> int | Prefix:
    """Return the item, or the beginning of a sequence, that a line is about.

    Raises:
        KeyError: if a field is missing.
        ValueError: if there is no such item or user.
    """
    if "item" in record:
        if record["item"] not in dataset.catalog:
            raise ValueError(f"item {record['item']}")
        return int(record["item"])
    prefix = Prefix(int(record["user"]), int(record["length"]))
    if not 0 <= prefix.user_index < dataset.splits.num_users:
        raise ValueError(f"user {prefix.user_index}")
    if not 1 <= prefix.length < len(dataset.splits.train_sequence(prefix.user_index)):
        raise ValueError(f"the first {prefix.length} items of user {prefix.user_index}")
    return prefix


def hidden_titles(subject: int | Prefix, dataset: Dataset) -> list[str]:
    """Return the titles that a text about this must not name: those that it may be trained to lead to."""
    if isinstance(subject, Prefix):
        later = dataset.splits.train_sequence(subject.user_index)[subject.length :]
        return [dataset.catalog.title(int(item_id)) for item_id in later]
    return [dataset.catalog.title(subject)]


def _check_texts(texts: tuple[str, ...], subject: int | Prefix, dataset: Dataset) -> None:
    for title in hidden_titles(subject, dataset) if texts else ():
        for text in texts:
            if names_title(text, title):
                raise ValueError(f"the text {text!r}, which names {title!r}")


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _cores(title: str) -> list[list[str]]:
    """Return the runs of words that name a title."""
    whole = _YEAR.sub("", title)
    cores = [_without_article(_words(whole))]
    before_colon = _without_article(_words(whole.partition(":")[0])) if ":" in whole else []
    if len(before_colon) > 1:
        cores.append(before_colon)
    words = cores[0]
    cores += [words[start : start + _TELLING_RUN] for start in range(len(words) - _TELLING_RUN)]
    return [core for core in cores if core]


def _without_article(words: list[str]) -> list[str]:
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words
