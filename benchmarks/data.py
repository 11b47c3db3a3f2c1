"""Measures the reading of large raw data: generates Amazon reviews, MovieLens ratings, and reads what is there of ids.

Run it from the repository's root: `python -m benchmarks.data --folder raw --write benchmarks/results/data.md`; what was
generated stays in the folder for the next run. Every data set is prepared in a process of its own, as `deeprec
prepare` does it, so that the peak of the memory is its own.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

CATEGORY = "Generated"
_LINES_AT_ONCE = 50_000
_VOCABULARY = 3_000
_CHILD = "--in-child"


@dataclass(frozen=True)
class Args:
    """What is generated, and where."""

    folder: Path
    """Raw and prepared data go here; some 3 GB with the defaults."""
    reviews: int = 5_000_000
    """Amazon reviews."""
    items: int = 300_000
    """Amazon items."""
    ratings: int = 20_000_000
    """Ratings in the layout of MovieLens-20M; 0 for none."""
    write: Path | None = None
    """A Markdown file for the table; standard output, if not given."""


@dataclass(frozen=True)
class Measurement:
    """One data set, prepared."""

    what: str
    raw_mb: float
    read_s: float
    """Reading, filtering, writing."""
    load_s: float
    """Loading what was written, checksums and all."""
    peak_gb: float
    users: int
    items: int
    interactions: int


def texts(rng: np.random.Generator, *, mean_words: int, num_texts: int) -> list[str]:
    """Return different texts of invented words, about as compressible as prose."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, size=length)) for length in rng.integers(2, 10, size=_VOCABULARY)]
    ranks = np.minimum(rng.zipf(1.3, size=num_texts * 2 * mean_words), _VOCABULARY) - 1
    lengths = rng.geometric(1 / mean_words, size=num_texts)
    ends = np.cumsum(np.minimum(lengths, 2 * mean_words))
    return [
        " ".join(words[r] for r in ranks[end - length : end]) for end, length in zip(ends, np.diff(ends, prepend=0))
    ]


def generate_amazon(folder: Path, *, num_reviews: int, num_items: int) -> None:
    """Write reviews and items in the raw layout of 2023, with the fields and about the sizes of the real ones."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    bodies = [json.dumps(text) for text in texts(rng, mean_words=40, num_texts=20_000)]
    titles = [json.dumps(text) for text in texts(rng, mean_words=8, num_texts=20_000)]
    descriptions = [json.dumps(text) for text in texts(rng, mean_words=100, num_texts=5_000)]
    users = np.minimum(
        rng.zipf(1.4, size=num_reviews) * 37 + rng.integers(0, num_reviews // 8, size=num_reviews), 10**9
    )
    items = (rng.integers(0, num_items, size=num_reviews) * rng.random(num_reviews)).astype(np.int64)
    times = rng.integers(1_300_000_000, 1_700_000_000, size=num_reviews) * 1000
    with gzip.open(folder / f"{CATEGORY}.jsonl.gz.draft", "wt", compresslevel=1, encoding="utf-8") as file:
        for start in range(0, num_reviews, _LINES_AT_ONCE):
            rows = zip(*(column[start : start + _LINES_AT_ONCE].tolist() for column in (users, items, times)))
            file.write(
                "".join(
                    f'{{"rating": 5.0, "title": {titles[time % 19_997]}, "text": {bodies[time % 19_993]}, '
                    f'"images": [], "asin": "B{item:09d}", "parent_asin": "B{item:09d}", "user_id": "AG{user:026d}", '
                    f'"timestamp": {time}, "helpful_vote": 0, "verified_purchase": true}}\n'
                    for user, item, time in rows
                )
            )
    with gzip.open(folder / f"meta_{CATEGORY}.jsonl.gz.draft", "wt", compresslevel=1, encoding="utf-8") as file:
        for item in range(num_items):
            file.write(
                f'{{"main_category": "Tools", "title": {titles[item % 19_997]}, "average_rating": 4.1, '
                f'"rating_number": {item}, "features": [{titles[item % 19_991]}, {titles[item % 19_979]}], '
                f'"description": [{descriptions[item % 4_999]}], "price": 9.99, "images": [], "videos": [], '
                f'"store": "Brand {item % 997}", "categories": ["Tools", "Kind {item % 53}", "Sort {item % 503}"], '
                f'"details": {{}}, "parent_asin": "B{item:09d}", "bought_together": null}}\n'
            )
    for draft in folder.glob("*.draft"):
        draft.replace(draft.with_suffix(""))


def generate_movielens(folder: Path, *, num_ratings: int, num_films: int = 27_000) -> None:
    """Write ratings and films in the layout of MovieLens-20M."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    films = (f'{film},"Film, The ({1930 + film % 90})",Drama|War\n' for film in range(1, num_films + 1))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(films), encoding="utf-8")
    with (folder / "ratings.csv.draft").open("w", encoding="utf-8") as file:
        file.write("userId,movieId,rating,timestamp\n")
        for start in range(0, num_ratings, _LINES_AT_ONCE):
            chosen = (rng.integers(1, num_films + 1, size=_LINES_AT_ONCE) * rng.random(_LINES_AT_ONCE)).astype(np.int64)
            times = rng.integers(800_000_000, 1_400_000_000, size=_LINES_AT_ONCE)
            rows = enumerate(zip(chosen.tolist(), times.tolist()), start=start)
            file.write("".join(f"{place // 145 + 1},{film + 1},3.5,{time}\n" for place, (film, time) in rows))
    (folder / "ratings.csv.draft").replace(folder / "ratings.csv")


def prepare(name: str, category: str) -> None:
    """Prepare a data set in this process and print what it took."""
    from trm.data.prepare import DatasetRef, load_prepared, prepare_dataset

    ref = DatasetRef(name, category or None)
    started = time.perf_counter()
    dataset = prepare_dataset(ref, progress=False)
    read_s = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    started = time.perf_counter()
    load_prepared(ref)
    found = {
        "read_s": read_s,
        "load_s": time.perf_counter() - started,
        "peak_gb": peak_gb,
        "users": dataset.interactions.num_users,
        "items": dataset.catalog.num_items,
        "interactions": dataset.interactions.num_interactions,
    }
    print(json.dumps(found))


def measure(what: str, name: str, *files: Path, args: Args, raw: Path, category: str = "") -> Measurement:
    """Return what it takes a new process to prepare a data set whose files stand under raw."""
    with tempfile.TemporaryDirectory(dir=args.folder) as home:
        environment = {**os.environ, "DEEPREC_DATA": str(raw), "DEEPREC_HOME": home}
        command = [sys.executable, "-m", "benchmarks.data", _CHILD, name, category]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    raw_mb = sum(path.stat().st_size for path in files) / 1e6
    return Measurement(what, raw_mb, **json.loads(done.stdout.splitlines()[-1]))


def render(rows: list[Measurement]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| data | raw, MB | read and written, s | loaded, s | peak memory, GB | users | items | interactions |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.what} | {row.raw_mb:,.0f} | {row.read_s:.1f} | {row.load_s:.1f} | {row.peak_gb:.2f} | {row.users:,} "
        f"| {row.items:,} | {row.interactions:,} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(args: Args) -> None:
    """Generate what is not there, measure, and write the table."""
    folder = args.folder.resolve()
    amazon, movielens = folder / "amazon", folder / "ml-20m"
    reviews, meta = amazon / f"{CATEGORY}.jsonl.gz", amazon / f"meta_{CATEGORY}.jsonl.gz"
    if not meta.is_file():
        generate_amazon(amazon, num_reviews=args.reviews, num_items=args.items)
    what = f"Amazon 2023, {args.reviews:,} reviews and {args.items:,} items, generated"
    rows = [measure(what, "amazon", reviews, meta, args=args, raw=folder, category=CATEGORY)]
    if args.ratings:
        if not (movielens / "ratings.csv").is_file():
            generate_movielens(movielens, num_ratings=args.ratings)
        files = movielens / "movies.csv", movielens / "ratings.csv"
        rows.append(
            measure(f"MovieLens-20M, {args.ratings:,} ratings, generated", "ml-20m", *files, args=args, raw=folder)
        )
    raw = os.environ.get("DEEPREC_DATA")
    if raw and (ids := Path(raw, "ids", "Games.txt")).is_file():
        rows.append(measure("ids/Games.txt", f"ids:{ids}", ids, args=args, raw=folder))
    if raw and (industrial := Path(raw, "amazon", "Industrial_and_Scientific.jsonl.gz")).is_file():
        category = "Industrial_and_Scientific"
        files = industrial, industrial.with_name(f"meta_{industrial.name}")
        rows.append(
            measure("Amazon Industrial & Scientific", "amazon", *files, args=args, raw=Path(raw), category=category)
        )
    text = f"""# Reading raw data, measured

`python -m benchmarks.data --folder FOLDER --write benchmarks/results/data.md` on {os.cpu_count()} CPU cores, Python
{platform.python_version()}. Reading uses one of them. Generated reviews are gzipped and have texts of 40 words in the
mean, items have descriptions of 100 words; the goal for them was 5 minutes and 6 GB.

{render(rows)}

*Read and written*: the raw files parsed, filtered (users of Amazon with fewer than 5 reviews go), sorted, and the
prepared data set written with its checksums, as `deeprec prepare` does it. *Loaded*: the prepared data set from disk,
checksums compared.
"""
    if args.write is None:
        print(text)
    else:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        prepare(*sys.argv[2:4])
    else:
        main(tyro.cli(Args))
