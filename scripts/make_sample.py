"""Generate the data set and the tiny recommender of DeepRec-Sample-v0: `python scripts/make_sample.py`.

Everything is invented and follows from one seed. Items have a genre or two, a mood and a decade. Users have two
favourite genres, a favourite decade and a habit: half of the time the next item is one of two that follow the last item
for everybody, else it is drawn by taste and popularity. So both the history and a preference in words help.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np

from trm.data.catalog import Catalog, Item
from trm.data.dataset import Dataset, save_dataset
from trm.data.interactions import Interactions
from trm.types import FloatArray

ASSETS = Path(__file__).resolve().parents[1] / "deeprec_env" / "assets" / "sample"
NUM_ITEMS = 300
NUM_USERS = 400
SEED = 20_25
MAX_BYTES = 1_500_000

GENRES = (
    *("Adventure", "Animation", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Horror", "Musical", "Noir", "Romance", "Science Fiction", "Thriller", "Western"),
)
MOODS = ("Bleak", "Cosy", "Dreamlike", "Fast", "Quiet", "Satirical", "Tense", "Warm")
FIRST_YEAR, LAST_YEAR = 1950, 2009
_ADJECTIVES = (
    *("Amber", "Borrowed", "Crooked", "Distant", "Electric", "Forgotten", "Gilded", "Hollow", "Iron", "Jade"),
    *("Last", "Midnight", "Northern", "Painted", "Quiet", "Restless", "Silver", "Tangled", "Velvet", "Winter"),
)
_NOUNS = (
    *("Anchor", "Bakery", "Carousel", "Detective", "Engine", "Ferry", "Garden", "Harbor", "Island", "Jury"),
    *("Kite", "Lighthouse", "Mapmaker", "Notebook", "Orchard", "Piano", "Quarry", "River", "Station", "Tailor"),
)

_log = logging.getLogger("make_sample")


def build_items(rng: np.random.Generator) -> list[Item]:
    """Return items with distinct titles; each tenth is the sequel of the item before it."""
    names = [f"The {adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
    picked = [names[place] for place in rng.permutation(len(names))[:NUM_ITEMS]]
    items: list[Item] = []
    for item_id in range(1, NUM_ITEMS + 1):
        genres = [GENRES[place] for place in rng.permutation(len(GENRES))[: rng.integers(1, 3)]]
        year, mood = int(rng.integers(FIRST_YEAR, LAST_YEAR + 1)), MOODS[rng.integers(len(MOODS))]
        name = picked[item_id - 1]
        if item_id % 10 == 0:
            before = items[-1]
            assert before.year is not None
            name, year = f"{before.title[: -len(' (1950)')]} II", min(before.year + 2, LAST_YEAR)
            genres, mood = list(before.attributes["genres"]), before.attributes["mood"][0]
        attributes = {"genres": tuple(sorted(genres)), "mood": (mood,), "decade": (f"{year // 10 * 10}s",)}
        items.append(Item(item_id, f"s{item_id}", f"{name} ({year})", attributes, year=year))
    return items


def build_interactions(items: list[Item], rng: np.random.Generator) -> Interactions:
    """Return chronological histories of 10 to 39 distinct items a user."""
    popularity = 1.0 / (20.0 + rng.permutation(NUM_ITEMS))
    followers = np.stack([rng.choice(NUM_ITEMS, size=2, replace=False) for _ in range(NUM_ITEMS)])
    users, item_ids, timestamps = [], [], []
    for user in range(NUM_USERS):
        weights = popularity * _taste(items, rng)
        left = np.ones(NUM_ITEMS, dtype=bool)
        last: int | None = None
        for step in range(int(rng.integers(10, 40))):
            near = [place for place in followers[last] if left[place]] if last is not None else []
            if near and rng.random() < 0.5:
                last = int(near[rng.integers(len(near))])
            else:
                chances = weights * left
                last = int(rng.choice(NUM_ITEMS, p=chances / chances.sum()))
            left[last] = False
            users.append(user)
            item_ids.append(last + 1)
            timestamps.append(1_000_000_000_000 + user * 1_000_000 + step * 1_000)
    return Interactions.from_events(
        [f"user-{user}" for user in range(NUM_USERS)],
        users=np.array(users, dtype=np.int64),
        item_ids=np.array(item_ids, dtype=np.int64),
        timestamps=np.array(timestamps, dtype=np.int64),
    )


def _taste(items: list[Item], rng: np.random.Generator) -> FloatArray:
    """Return how much one user likes each item: 30 times a favourite genre, 4 times the favourite decade."""
    favourites = {GENRES[place] for place in rng.permutation(len(GENRES))[:2]}
    decade = f"{rng.integers(FIRST_YEAR // 10, LAST_YEAR // 10 + 1) * 10}s"
    liked = [
        (30.0 if favourites & set(item.attributes["genres"]) else 1.0)
        * (4.0 if decade in item.attributes["decade"] else 1.0)
        for item in items
    ]
    return np.array(liked, dtype=np.float32)


def build_dataset() -> Dataset:
    """Return the whole data set; the same every time."""
    rng = np.random.default_rng(SEED)
    items = build_items(rng)
    report = {"source": "generated by scripts/make_sample.py", "seed": SEED}
    return Dataset("sample", Catalog(items), build_interactions(items, rng), report)


def main() -> None:
    """Write the data set, train the recommender on it and write that too."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS, help="where the sample is written")
    parser.add_argument("--dataset-only", action="store_true", help="leave the recommender as it is")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dataset = build_dataset()
    save_dataset(dataset, arguments.out / "dataset")
    if not arguments.dataset_only:
        _train(dataset, arguments.out / "trm")
    num_bytes = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    _log.info("%s: %d bytes", arguments.out, num_bytes)
    if num_bytes > MAX_BYTES:
        raise SystemExit(f"expected at most {MAX_BYTES} bytes, got {num_bytes}; make the sample smaller")


def _train(dataset: Dataset, out: Path) -> None:
    """Train as small a recommender as learns this data set, and keep its inference arrays only."""
    from trm.evaluate import render_metrics
    from trm.frozen import load_frozen
    from trm.text_encoder import HashingEncoder
    from trm.train import train_trm
    from trm.train_config import TrainConfig

    config = TrainConfig(dropout=0.2)
    with tempfile.TemporaryDirectory() as draft:
        metrics = train_trm(dataset, HashingEncoder(256), config, out=Path(draft) / "trm", progress=False)
        _log.info("%s", render_metrics(metrics))
        shutil.rmtree(out, ignore_errors=True)
        load_frozen(Path(draft) / "trm").save(out)


if __name__ == "__main__":
    main()
