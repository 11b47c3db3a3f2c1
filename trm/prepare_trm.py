"""Where trained TRMs live on disk, and the one way to have one: load it, or train and save it."""

from __future__ import annotations

import logging
from pathlib import Path

from trm.data.dataset import Dataset
from trm.data.prepare import DatasetRef, data_home
from trm.errors import CheckpointError, DatasetNotPrepared
from trm.frozen import FrozenTRM, load_frozen
from trm.text_encoder import MINILM, CachedEncoder, load_encoder

FAST_EPOCHS = 6
_MARKER = "trm.json"

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


def load_trm(ref: DatasetRef) -> FrozenTRM:
    """Return the trained TRM of a data set from disk.

    Raises:
        DatasetNotPrepared: if it is not there; the message names the command that trains it.
        CheckpointError: if its files are damaged.
    """
    folder = trm_folder(ref)
    if not (folder / _MARKER).is_file():
        raise DatasetNotPrepared(f"there is no trained TRM for {ref.key!r} in {folder}; run `{ref.prepare_command}`")
    return load_frozen(folder)


def prepare_trm(
    ref: DatasetRef, dataset: Dataset, *, progress: bool = True, fast: bool = False, log_dir: Path | None = None
) -> FrozenTRM:
    """Return the TRM of a data set: from disk if it is there, else trained and saved, with metrics and a model card.

    A training that was interrupted goes on where it was.

    Args:
        ref: names the data set.
        dataset: the prepared data set itself.
        progress: whether to show bars.
        fast: train FAST_EPOCHS epochs only.
        log_dir: where TensorBoard events go; none if not given.

    Raises:
        TRMError: if torch, transformers or the text encoder's weights are missing.
    """
    if (trm_folder(ref) / _MARKER).is_file():
        try:
            return load_trm(ref)
        except CheckpointError as error:
            _log.warning("training the TRM of %s again: %s", ref.key, error)
    from trm.train import TrainConfig, train_trm  # torch, which loading does without

    config = TrainConfig(max_epochs=FAST_EPOCHS) if fast else TrainConfig()
    train_trm(dataset, load_cached_encoder(), config, out=trm_folder(ref), progress=progress, log_dir=log_dir)
    return load_trm(ref)
