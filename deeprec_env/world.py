"""What is played in: a catalogue, its users and the recommender over them; loaded once a process and data set."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from deeprec_env.protocol import DisplayItem, display_item
from trm.data.catalog import Catalog, normalize_title
from trm.types import FloatArray, IntArray, RankingRetriever, Retriever, TextEncoder

if TYPE_CHECKING:
    from trm.data.dataset import Dataset
    from trm.data.splits import LeaveOneOut
    from trm.frozen import FrozenTRM

_Key = tuple[str, str | None, str | None, str | None]
"""Data set, category, home, source of candidates."""
_WORLDS: dict[_Key, World] = {}

RETRIEVER_VARIABLE = "DEEPREC_RETRIEVER"
"""The environment variable that names where candidates come from, where no argument does."""
SAMPLE_FOLDER = Path(__file__).parent / "assets" / "sample"
"""The data set and recommender that the package carries; written by scripts/make_sample.py."""


class Opening(NamedTuple):
    """How the episodes of one user begin."""

    history: tuple[int, ...]
    """Item ids, oldest first, without the target."""
    target: int
    prompt: str


class World:
    """One data set with its recommender. Shared by all environments over it, and never changed."""

    def __init__(
        self,
        name: str,
        catalog: Catalog,
        splits: LeaveOneOut,
        *,
        retriever: Retriever,
        encoder: TextEncoder,
        item_text_vectors: FloatArray,
        item_id_vectors: FloatArray,
    ) -> None:
        """Put the parts together.

        Args:
            name: stands in messages and tables.
            catalog: the items.
            splits: the users.
            retriever: answers the searches.
            encoder: embeds preferences for the reward.
            item_text_vectors: float32 [num_items + 1, D], unit rows, row 0 zeros.
            item_id_vectors: float32 [num_items + 1, d], row 0 zeros.

        Raises:
            ValueError: if the vectors do not have one row an item.
        """
        for label, vectors in (("item_text_vectors", item_text_vectors), ("item_id_vectors", item_id_vectors)):
            if len(vectors) != catalog.num_items + 1:
                raise ValueError(f"expected {label} to have {catalog.num_items + 1} rows, got {len(vectors)}")
        self.name = name
        self.catalog = catalog
        self.splits = splits
        self.retriever = retriever
        self.encoder = encoder
        self.item_text_vectors = item_text_vectors
        self.item_id_vectors = item_id_vectors
        self.user_subsets: dict[tuple[str, str], IntArray] = {}
        """What `users.select_users` has found, by name and split."""
        self.openings: dict[tuple[object, ...], Opening] = {}
        """What `Game.start` has made, by user and all that shapes a prompt."""
        self._key: _Key | None = None

    def __repr__(self) -> str:
        return f"World({self.name!r}, num_items={self.catalog.num_items}, num_users={self.splits.num_users})"

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        """Return the world itself: it never changes, and `gymnasium.make` copies its arguments."""
        return self

    def __reduce__(self) -> Any:
        """Pickle a loaded world by its name, so that workers load (and share) their own."""
        if self._key is None:
            return super().__reduce__()
        return _reload, self._key

    @cached_property
    def fingerprint(self) -> str:
        """A checksum of catalogue size and item vectors: equal for the same trained recommender only."""
        vectors = np.ascontiguousarray(self.item_id_vectors)
        return f"{zlib.crc32(vectors.tobytes(), self.catalog.num_items):08x}"

    def display(self, item_id: int) -> DisplayItem:
        """Return the item as it is shown: one line, tags in its texts made harmless."""
        return self.items[item_id]

    def find(self, title: str) -> tuple[int, ...]:
        """Return the ids of all items with this title, in the catalogue's spelling or as shown."""
        exact = self._ids_by_shown.get(title)
        return self._find(title) if exact is None else exact

    def _find(self, title: str) -> tuple[int, ...]:
        found = self.catalog.find(title)
        if self._shown_otherwise and (others := self._shown_otherwise.get(normalize_title(title))):
            return tuple(sorted({*found, *others}))
        return found

    @cached_property
    def row_by_lower_title(self) -> dict[str, int]:
        """Lower-case title as shown to item id; of several with one title the last."""
        return {self.display(i).title.lower(): i for i in range(1, self.catalog.num_items + 1)}

    @cached_property
    def items(self) -> Sequence[DisplayItem]:
        """All items as they are shown, by id; one without a title at PAD. Not to be written to."""
        ids = range(1, self.catalog.num_items + 1)
        shown = [display_item(self.catalog.title(i), self.catalog.attribute_line(i)) for i in ids]
        return [DisplayItem(""), *shown]

    @cached_property
    def _ids_by_shown(self) -> dict[str, tuple[int, ...]]:
        return {item.title: self._find(item.title) for item in self.items[1:]}

    @cached_property
    def _shown_otherwise(self) -> dict[str, tuple[int, ...]]:
        ids: dict[str, list[int]] = {}
        for item_id in range(1, self.catalog.num_items + 1):
            shown = self.display(item_id).title
            if item_id not in self.catalog.find(shown):
                ids.setdefault(normalize_title(shown), []).append(item_id)
        return {title: tuple(found) for title, found in ids.items()}


def _reload(dataset: str, category: str | None, data_home: str | None, retriever: str | None) -> World:
    return load_world(dataset, category=category, data_home=data_home, retriever=retriever)


def load_world(
    dataset: str,
    *,
    category: str | None = None,
    data_home: str | Path | None = None,
    auto_prepare: bool = True,
    retriever: str | None = None,
) -> World:
    """Return the world of a data set; the same object for the same arguments within a process.

    Args:
        dataset: "sample", "ml-100k", "ml-1m" or "amazon".
        category: of the Amazon reviews.
        data_home: where prepared data lie; by default $DEEPREC_HOME or ~/.cache/deeprec.
        auto_prepare: whether what is missing is fetched, prepared and trained, which may take minutes.
        retriever: where candidates come from, as in `trm.retrievers`: http://HOST:PORT, record:FILE or replay:FILE; by
            default $DEEPREC_RETRIEVER or the recommender in this process.

    Raises:
        ValueError: if there is no such data set, or it has no categories and one is given.
        DatasetNotPrepared: if something is missing and may not, or cannot, be prepared.
        RetrieverError: if a retrieval service cannot be reached, or serves another recommender.
    """
    if dataset == "sample" and category is not None:
        raise ValueError(f"expected no category for the data set 'sample', got {category!r}; leave it out")
    home = data_home or os.environ.get("DEEPREC_HOME")
    source = retriever or os.environ.get(RETRIEVER_VARIABLE) or None
    key = (dataset, category, None if home is None else str(Path(home).expanduser().resolve()), source)
    if key not in _WORLDS:
        if source is None:
            world = _load_sample() if dataset == "sample" else _load_prepared(key, auto_prepare=auto_prepare)
        else:
            world = _load_with_source(key, source, auto_prepare=auto_prepare)
        world._key = key
        _WORLDS[key] = world
    return _WORLDS[key]


def _load_sample() -> World:
    from trm.data.dataset import load_dataset
    from trm.frozen import load_frozen

    return build_world(load_dataset(SAMPLE_FOLDER / "dataset"), load_frozen(SAMPLE_FOLDER / "trm"))


def _load_with_source(key: _Key, source: str, *, auto_prepare: bool) -> World:
    """Return the world whose candidates come from a service or a recording."""
    from trm.retrievers import build_retriever, recorded_file

    kind, file = recorded_file(source)
    if kind == "replay":
        return _load_replayed(key, file, auto_prepare=auto_prepare)
    world = _load_sample() if key[0] == "sample" else _load_prepared(key, auto_prepare=auto_prepare)
    local = cast(RankingRetriever, world.retriever)
    world.retriever = build_retriever(source, lambda: local, recommender=world.fingerprint)
    if kind == "record":
        from deeprec_env.replayed import keep_vectors

        keep_vectors(world, file)
    return world


def _load_replayed(key: _Key, file: Path, *, auto_prepare: bool) -> World:
    """Return the world of a recording, without its recommender."""
    from deeprec_env.replayed import LateEncoder, load_vectors
    from trm.data.dataset import load_dataset
    from trm.data.prepare import DatasetRef, load_prepared, prepare_dataset
    from trm.errors import DataFormatError
    from trm.recording import ReplayRetriever

    dataset_name, category, home, _ = key
    if dataset_name == "sample":
        dataset = load_dataset(SAMPLE_FOLDER / "dataset")
    else:
        with _data_home(home):
            ref = DatasetRef(dataset_name, category)
            dataset = prepare_dataset(ref) if auto_prepare else load_prepared(ref)
    kept, replay = load_vectors(file), ReplayRetriever(file)
    world = World(
        dataset.name,
        dataset.catalog,
        dataset.splits,
        retriever=replay,
        encoder=LateEncoder(kept.encoder_name, kept.encoder_dim),
        item_text_vectors=kept.item_text_vectors,
        item_id_vectors=kept.item_id_vectors,
    )
    if replay.recommender != world.fingerprint:
        raise DataFormatError(
            f"{file}: a recording of the recommender {replay.recommender!r}, but beside it lie the vectors of "
            f"{world.fingerprint!r}; record the run again"
        )
    return world


def _load_prepared(key: _Key, *, auto_prepare: bool) -> World:
    from trm.data.prepare import DatasetRef, load_prepared, prepare_dataset

    dataset_name, category, home, _ = key
    ref = DatasetRef(dataset_name, category)
    with _data_home(home):
        dataset = prepare_dataset(ref) if auto_prepare else load_prepared(ref)
        from trm.prepare_trm import load_trm, prepare_trm  # only now: it may train

        frozen = prepare_trm(ref, dataset) if auto_prepare else load_trm(ref, dataset)
        return build_world(dataset, frozen, cache_folder=_encoder_cache())


def _encoder_cache() -> Path:
    from trm.data.prepare import data_home

    return data_home() / "encoder_cache"


@contextmanager
def _data_home(home: str | None) -> Iterator[None]:
    """Let `trm` look for prepared data in home, if given."""
    before = os.environ.get("DEEPREC_HOME")
    if home is not None:
        os.environ["DEEPREC_HOME"] = home
    try:
        yield
    finally:
        if home is not None and before is None:
            del os.environ["DEEPREC_HOME"]
        elif home is not None and before is not None:
            os.environ["DEEPREC_HOME"] = before


def build_world(dataset: Dataset, frozen: FrozenTRM, *, cache_folder: Path | None = None) -> World:
    """Return the world of a data set and the recommender trained on it.

    Args:
        dataset: items and users.
        frozen: the recommender's arrays.
        cache_folder: where text embeddings are kept on disk; in memory only if None.
    """
    from trm.retriever import TRMRetriever
    from trm.text_encoder import CachedEncoder, load_encoder

    encoder = CachedEncoder(load_encoder(frozen.encoder_name), cache_folder)
    return World(
        dataset.name,
        dataset.catalog,
        dataset.splits,
        retriever=TRMRetriever(frozen, encoder),
        encoder=encoder,
        item_text_vectors=frozen.item_text_vectors,
        item_id_vectors=frozen.item_id_vectors,
    )
