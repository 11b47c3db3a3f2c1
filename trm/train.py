"""Trains the default TRM: all positions at once, full softmax, early stopping on validation; resumes where it was."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trm.data.dataset import Dataset
from trm.data.storage import written_folder
from trm.evaluate import evaluate_trm, render_model_card
from trm.retriever import TRMRetriever
from trm.train_config import TrainConfig
from trm.training_run import TrainingRun
from trm.types import TextEncoder
from trm.written_preferences import WrittenPreferences

METRICS_FILE = "metrics.json"
CARD_FILE = "MODEL_CARD.md"

_log = logging.getLogger(__name__)


def train_trm(
    dataset: Dataset,
    encoder: TextEncoder,
    config: TrainConfig,
    *,
    out: Path,
    progress: bool = True,
    log_dir: Path | None = None,
    written: WrittenPreferences | None = None,
) -> dict[str, Any]:
    """Train, write the best model and its metrics into out, and return the test metrics.

    After every epoch a checkpoint is written beside out; a run with the same config and data goes on from it.

    Args:
        dataset: catalogue and interactions.
        encoder: of items and preferences; its name is kept with the model.
        config: the settings.
        out: the folder that load_frozen reads afterwards.
        progress: whether to show bars.
        log_dir: where TensorBoard events go; none if not given.
        written: preferences of a language model to train on as well.
    """
    started = time.perf_counter()
    run = TrainingRun(dataset, encoder, config, folder=out.with_name(out.name + ".training"), written=written)
    run.resume()
    with (
        _Scalars(log_dir) as scalars,
        tqdm(
            total=config.max_epochs, initial=run.epoch, desc=f"training the TRM on {dataset.name}", disable=not progress
        ) as bar,
    ):
        while not run.finished:
            figures = run.train_epoch()
            scalars.add(figures, step=run.epoch)
            _log.debug("epoch %d: %s", run.epoch, figures)
            bar.set_postfix(loss=f"{figures['loss/own']:.3f}", ndcg10=f"{figures['valid/ndcg_at_10_empty']:.4f}")
            bar.update()
    frozen = run.calibrated_model()
    metrics = evaluate_trm(TRMRetriever(frozen, encoder), dataset, split="test")
    metrics["training"] = {
        "epochs": run.epoch,
        "best_epoch": run.best_epoch,
        "best_valid_score": run.best_score,
        "agreement": frozen.config["agreement"],
        "seconds": round(run.seconds + time.perf_counter() - started - run.seconds_here, 1),
        "encoding_seconds": round(run.encoding_seconds, 1),
        "epoch_seconds": round(run.seconds / run.epoch, 1),
        "seconds_to_best_epoch": round(run.encoding_seconds + run.seconds / run.epoch * run.best_epoch, 1),
        "config": asdict(config),
        "text_encoder": encoder.name,
        "written_preferences": None if written is None else written.fingerprint,
    }
    with written_folder(out) as draft:
        frozen.write_files(draft)
        (draft / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (draft / CARD_FILE).write_text(render_model_card(metrics), encoding="utf-8")
    shutil.rmtree(run.folder, ignore_errors=True)
    return metrics


class _Scalars:
    """Writes TensorBoard scalars, or nothing."""

    def __init__(self, log_dir: Path | None) -> None:
        self._writer: Any = None
        if log_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(log_dir))

    def __enter__(self) -> _Scalars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, figures: dict[str, float], *, step: int) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
