"""Where trained TRMs live on disk, and the one way to have one: load it, or train and save it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from trm.data.dataset import Dataset
from trm.data.prepare import DatasetRef, data_home
from trm.data.sources.deeprec_export import TRMArrays
from trm.errors import CheckpointError, DatasetNotPrepared
from trm.frozen import FrozenTRM, load_frozen
from trm.retriever import TRMRetriever
from trm.text_encoder import MINILM, NO_TEXT, CachedEncoder, load_encoder
from trm.types import RetrievalQuery
from trm.written_preferences import WrittenPreferences

FAST_EPOCHS = 6
_MARKER = "trm.json"
_RANKED_AT_ONCE = 256
_STAMP = "dataset.json"
"""Says which data the TRM was trained on."""

_log = logging.getLogger(__name__)


def trm_folder(ref: DatasetRef) -> Path:
    """Return where the TRM of a data set stands, or would stand."""
    return data_home() / "trm" / ref.key


def load_cached_encoder(name: str = MINILM) -> CachedEncoder:
    """Return a text encoder whose vectors are kept on disk, beside the prepared data.

    Raises:
        ValueError: if no encoder has the name.
        TRMError: if what the encoder needs is not installed.
    """
    return CachedEncoder(load_encoder(name), data_home() / "text_vectors")


def load_trm(ref: DatasetRef, dataset: Dataset | None = None) -> FrozenTRM:
    """Return the trained TRM of a data set from disk.

    Args:
        ref: names the data set.
        dataset: the data set as it is now; if given, a TRM that was trained on another state of it is refused.

    Raises:
        DatasetNotPrepared: if it is not there, or was trained on other data; the message names what trains it.
        CheckpointError: if its files are damaged.
    """
    folder = trm_folder(ref)
    command = f"deeprec train-trm {ref.arguments}"
    if not (folder / _MARKER).is_file():
        raise DatasetNotPrepared(f"there is no trained TRM for {ref.key!r} in {folder}; run `{command}`")
    frozen = load_frozen(folder)
    if dataset is not None and (reason := _stale(frozen, folder, dataset)) is not None:
        raise DatasetNotPrepared(f"the TRM in {folder} {reason}; run `{command}`")
    return frozen


def prepare_trm(
    ref: DatasetRef,
    dataset: Dataset,
    *,
    progress: bool = True,
    fast: bool = False,
    log_dir: Path | None = None,
    encoder_name: str | None = None,
    written: WrittenPreferences | None = None,
) -> FrozenTRM:
    """Return the TRM of a data set: from disk if it is there, else trained and saved, with metrics and a model card.

    One that was trained on other data, or with another text encoder or other written preferences than are asked for, is
    trained again, with a warning. A training that was interrupted goes on where it was.

    Args:
        ref: names the data set.
        dataset: the prepared data set itself.
        progress: whether to show bars.
        fast: train FAST_EPOCHS epochs only.
        log_dir: where TensorBoard events go; none if not given.
        encoder_name: of items and preferences; if not given, that of the TRM on disk, else all-MiniLM-L6-v2, or none
            where the items have no texts.
        written: preferences of a language model to train on as well.

    Raises:
        ValueError: if no encoder has the name.
        TRMError: if torch, transformers or the text encoder's weights are missing.
    """
    reason = ""
    if (trm_folder(ref) / _MARKER).is_file():
        try:
            frozen = load_trm(ref, dataset)
            if encoder_name not in (None, frozen.encoder_name):
                reason = f"it was trained with the text encoder {frozen.encoder_name!r}"
            elif written is not None and _stamp(ref).get("written_preferences") != written.fingerprint:
                reason = "it was trained without these written preferences"
            else:
                return frozen
        except (CheckpointError, DatasetNotPrepared) as error:
            reason = str(error)
    encoder = load_cached_encoder(encoder_name or (MINILM if dataset.catalog.has_texts else NO_TEXT))
    if reason:
        _log.warning("training the TRM of %s again: %s", ref.key, reason)
    from trm.train import train_trm  # torch, which loading does without
    from trm.train_config import TrainConfig

    config = TrainConfig(max_epochs=FAST_EPOCHS) if fast else TrainConfig()
    train_trm(dataset, encoder, config, out=trm_folder(ref), progress=progress, log_dir=log_dir, written=written)
    stamp = {"name": dataset.name, "fingerprint": dataset.fingerprint}
    if written is not None:
        stamp["written_preferences"] = written.fingerprint
    (trm_folder(ref) / _STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    return load_trm(ref, dataset)


def export_arrays(ref: DatasetRef, dataset: Dataset) -> TRMArrays | None:
    """Return what the trained TRM adds to the original data layout; None if there is none of this data set."""
    try:
        frozen = load_trm(ref, dataset)
    except DatasetNotPrepared:
        return None
    retriever = TRMRetriever(frozen, load_cached_encoder(frozen.encoder_name))
    examples = [dataset.splits.example("train", user) for user in range(dataset.splits.num_users)]
    ranks = np.zeros(len(examples), dtype=np.int64)
    for start in range(0, len(examples), _RANKED_AT_ONCE):
        batch = examples[start : start + _RANKED_AT_ONCE]
        queries = [RetrievalQuery(example.history, "") for example in batch]
        found = retriever.ranks(queries, [example.target for example in batch])
        ranks[start : start + len(batch)] = np.where([bool(example.history) for example in batch], found, 0)
    return TRMArrays(frozen.item_text_vectors, frozen.item_id_vectors, ranks)


def _stamp(ref: DatasetRef) -> dict[str, str]:
    """Return what a trained TRM was trained on; {} if it does not say."""
    try:
        return dict(json.loads((trm_folder(ref) / _STAMP).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _stale(frozen: FrozenTRM, folder: Path, dataset: Dataset) -> str | None:
    """Return why a TRM does not belong to the data set as it is now; None if it does."""
    if frozen.num_items != dataset.catalog.num_items:
        return f"knows {frozen.num_items} items, the data set has {dataset.catalog.num_items}"
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        if dataset.report.get("repeated_interactions_kept", 0):
            return "does not say which data it was trained on"
        _log.warning("the TRM in %s does not say which data it was trained on; it knows as many items", folder)
        return None
    return None if stamp.get("fingerprint") == dataset.fingerprint else "was trained on another state of the data set"
