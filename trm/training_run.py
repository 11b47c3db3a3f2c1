"""One training run of the TRM, epoch by epoch: model, optimizer, data, validation, checkpoints.

Deterministic by seed on one machine: every epoch draws from generators of its own, made of the seed and its number,
so that a resumed run gives what an uninterrupted one gives.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from trm.data.dataset import Dataset
from trm.evaluate import KINDS, PreferenceKind, preference_texts, split_examples, trm_ranks
from trm.frozen import FrozenTRM
from trm.metrics import ndcg_at_k
from trm.model import SteerConfig, SteerTRM, mixture_log_prob, profiles_of
from trm.retriever import TRMRetriever
from trm.train_config import TrainConfig
from trm.training_data import Batch, TrainingData
from trm.types import FloatArray, RetrievalQuery, TextEncoder
from trm.written_preferences import WrittenPreferences

AGREEMENTS = (0.0, 0.25, 0.5)
"""Weights of the own score in the score with a preference, of which validation chooses; the first is as trained."""
WORTHWHILE = 1.03
"""By how much another agreement must validate better, for it takes from what a preference moves."""
_LEVEL_PLACE = 10
"""An item at this place of the own ranking neither gains nor loses by the agreement, on average."""
_CHECKPOINT = "checkpoint.pt"
_MAX_LOGITS = 64_000_000
"""Bounds positions * items of a step, a quarter of a gigabyte of logits."""
_LEAST_STEPS = 50
"""An epoch of a small data set has about so many, down to batches of _LEAST_BATCH windows."""
_LEAST_BATCH = 8

_log = logging.getLogger(__name__)


def item_text_vectors(dataset: Dataset, encoder: TextEncoder) -> FloatArray:
    """Return the unit vectors of the items' texts, float32 [num_items + 1, encoder.dim], row 0 zeros."""
    catalog = dataset.catalog
    return encoder.encode(["", *(catalog.text(item_id) for item_id in range(1, catalog.num_items + 1))])


class TrainingRun:
    """Model, optimizer, data and the best weights so far; all that a checkpoint holds."""

    def __init__(
        self,
        dataset: Dataset,
        encoder: TextEncoder,
        config: TrainConfig,
        *,
        folder: Path,
        written: WrittenPreferences | None = None,
    ) -> None:
        """Build the model and its data; a run with the same config and data goes on where it was by `resume`.

        Args:
            dataset: catalogue and interactions.
            encoder: of items and preferences.
            config: the settings.
            folder: of the checkpoint.
            written: preferences of a language model to train on as well.
        """
        self.folder = folder
        self._dataset, self._encoder, self._config, self._written = dataset, encoder, config, written
        began = time.perf_counter()
        _log.info("encoding the texts of %d items and the training preferences", dataset.catalog.num_items)
        texts = item_text_vectors(dataset, encoder)
        self._data = TrainingData(
            dataset, encoder, mix=config.mix, max_history=config.max_history, seed=config.seed, written=written
        )
        self._preferences = torch.from_numpy(self._data.preference_vectors)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._model = SteerTRM(_architecture(dataset, encoder, config), texts)
        gate = list(self._model.gate.parameters())
        others = [parameter for name, parameter in self._model.named_parameters() if not name.startswith("gate.")]
        self._optimizer = torch.optim.AdamW(
            [{"params": others, "peak": config.learning_rate}, {"params": gate, "peak": config.gate_learning_rate}],
            weight_decay=config.weight_decay,
        )
        self._valid = split_examples(dataset, "valid", max_users=config.max_valid_users, seed=config.seed)
        self._valid_texts = {
            kind: preference_texts(dataset, self._valid, kind=kind, seed=config.seed) for kind in KINDS
        }
        encoder.encode([text for texts in self._valid_texts.values() for text in texts])  # kept by a cached encoder
        self.encoding_seconds = time.perf_counter() - began
        """Spent before the first epoch, nearly all on texts; less where a cache holds them."""
        self.epoch = 0
        self.best_epoch = 0
        self.best_score = -math.inf
        self.seconds = 0.0
        """Spent in epochs, over all processes."""
        self.seconds_here = 0.0
        """Spent in epochs by this process."""
        self._best_weights = _copied(self._model.state_dict())

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or validation has not got better for too long."""
        config = self._config
        return self.epoch >= config.max_epochs or self.epoch - self.best_epoch >= config.patience

    def train_epoch(self) -> dict[str, float]:
        """Train one epoch, validate, write the checkpoint; return the figures by their TensorBoard names."""
        began = time.perf_counter()
        config = self._config
        rng = np.random.default_rng([config.seed, 1, self.epoch])
        batch_size = min(
            config.batch_size,
            max(_LEAST_BATCH, self._data.num_windows // _LEAST_STEPS),
            max(1, _MAX_LOGITS // (config.max_history * self._dataset.catalog.num_items)),
        )
        losses: list[dict[str, float]] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            self._model.train()
            batches = list(self._data.batches(rng, batch_size=batch_size, max_positions=config.max_positions))
            for done, batch in enumerate(batches, start=1):
                self._set_learning_rate((self.epoch + done / len(batches)) / config.max_epochs)
                losses.append(self._step(batch))
        self.epoch += 1
        frozen = self._model.export(encoder_name=self._encoder.name)
        retriever = TRMRetriever(frozen, self._encoder)
        # A model that is deaf, or believes all that it is told, is bad at one kind, and a geometric mean shows it.
        ndcg = {kind: self._validate(retriever, kind) for kind in KINDS}
        score = _geometric_mean(ndcg.values())
        if score > self.best_score:
            self.best_score, self.best_epoch = score, self.epoch
            self._best_weights = _copied(self._model.state_dict())
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self.seconds_here += elapsed
        self._save()
        return {
            **_means(losses),
            **{f"valid/ndcg_at_10_{kind}": value for kind, value in ndcg.items()},
            "valid/score": score,
            "time/epoch_s": elapsed,
        }

    def best_model(self) -> FrozenTRM:
        """Return the model of the epoch that validated best."""
        self._model.load_state_dict(self._best_weights)
        return self._model.export(encoder_name=self._encoder.name)

    def calibrated_model(self) -> FrozenTRM:
        """Return the best model with the agreement of AGREEMENTS that validates best, or none where that gains little.

        Training itself finds none, as the ranking with a preference has seen the same histories and targets as the
        history's own; on users' next items the two err independently enough for their agreement to tell.
        """
        frozen = self.best_model()
        own = TRMRetriever(frozen, self._encoder).scores(
            [RetrievalQuery(example.history, "") for example in self._valid]
        )
        place = min(_LEVEL_PLACE, own.shape[1] - 1)
        level = float(np.partition(own[:, 1:], -place, axis=1)[:, -place].mean())
        models = [frozen.with_agreement(agreement, level=level) for agreement in AGREEMENTS]
        scores = []
        for model in models:
            retriever = TRMRetriever(model, self._encoder)
            scores.append(_geometric_mean(self._validate(retriever, kind) for kind in KINDS))
        _log.info(
            "validation by the history's weight beside a preference: %s",
            ", ".join(f"{agreement} gives {score:.4f}" for agreement, score in zip(AGREEMENTS, scores)),
        )
        best = int(np.argmax(scores))
        return models[best if scores[best] > WORTHWHILE * scores[0] else 0]

    def _step(self, batch: Batch) -> dict[str, float]:
        """Take one step of the optimizer; return the losses by their TensorBoard names.

        The history's own ranking learns from every position. Where there is a preference the mixture of both rankings
        learns too, in which the own one is given: no preference changes what an empty one gets.
        """
        model, config = self._model, self._config
        targets_BL = torch.from_numpy(batch.targets)
        present_BL = targets_BL > 0
        items_BL, rows_M = torch.from_numpy(batch.items), torch.from_numpy(batch.preference_rows)[present_BL]
        texts_ND = model.item_texts()
        table_ND = model.item_table(texts_ND)
        states_MD = model.states(items_BL, table_ND)[present_BL]
        columns_M1 = targets_BL[present_BL][:, None] - 1
        own_MD = model.own_query(states_MD)
        own_logits_MN = model.own_logits(own_MD, table_ND)
        own_mass_M = own_logits_MN.logsumexp(dim=-1)
        own_log_prob_M = own_logits_MN.gather(1, columns_M1)[:, 0] - own_mass_M
        loss = own_loss = -own_log_prob_M.mean()
        losses = {"loss/own": float(own_loss.detach())}
        asked_M = rows_M > 0
        if asked_M.any():
            rows, place_of_row = rows_M[asked_M].unique(return_inverse=True)
            preferences_XD = model.adapt(self._preferences[rows])[place_of_row]
            fused_XD = model.preference_query(states_MD[asked_M], preferences_XD)
            logits_XN = model.preference_logits(fused_XD, table_ND)
            mass_X = logits_XN.logsumexp(dim=-1)
            profiles_XD = profiles_of(items_BL, texts_ND.detach())[present_BL][asked_M]
            trust_X = model.gate(own_MD[asked_M], fused_XD, preferences_XD, profiles_XD)
            own_log_prob_X = own_log_prob_M[asked_M].detach()
            log_prob_X = logits_XN.gather(1, columns_M1[asked_M])[:, 0] - mass_X
            log_odds_X = trust_X + mass_X - own_mass_M[asked_M].detach()
            mixture_loss = -mixture_log_prob(own_log_prob_X, log_prob_X, log_odds_M=log_odds_X).mean()
            better_X = torch.sigmoid(log_prob_X.detach() - own_log_prob_X)
            gate_loss = functional.binary_cross_entropy_with_logits(log_odds_X, better_X)
            losses |= {"loss/mixture": float(mixture_loss.detach()), "loss/gate": float(gate_loss.detach())}
            loss = own_loss + mixture_loss + config.hindsight * gate_loss
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self._optimizer.step()
        return losses

    def _set_learning_rate(self, progress: float) -> None:
        """Rise over the first warmup share of the training, then fall to a twentieth along a cosine."""
        warmup = self._config.warmup
        if progress < warmup:
            factor = progress / warmup
        else:
            factor = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _validate(self, retriever: TRMRetriever, kind: PreferenceKind) -> float:
        """Return the mean NDCG@10 on the validation targets, history left in."""
        ranks = trm_ranks(retriever, self._valid, self._valid_texts[kind], exclude_history=False)
        return float(ndcg_at_k(ranks, 10).mean())

    def _fingerprint(self) -> str:
        splits = self._dataset.splits
        parts = {
            "config": asdict(self._config),
            "encoder": self._encoder.name,
            "written": None if self._written is None else self._written.fingerprint,
            "data": [self._dataset.name, self._dataset.catalog.num_items, splits.num_users, self._data.num_positions],
        }
        return json.dumps(parts, sort_keys=True)

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / (_CHECKPOINT + ".draft")
        state = {
            "fingerprint": self._fingerprint(),
            "model": self._model.state_dict(),
            "best_weights": self._best_weights,
            "optimizer": self._optimizer.state_dict(),
            "progress": [self.epoch, self.best_epoch, self.best_score, self.seconds],
        }
        torch.save(state, draft)
        draft.replace(self.folder / _CHECKPOINT)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one of this config and data; a damaged one is ignored."""
        path = self.folder / _CHECKPOINT
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            _log.warning("ignoring the damaged checkpoint %s: %s", path, error)
            return
        if state["fingerprint"] != self._fingerprint():
            _log.info("starting anew: %s is of another configuration or data set", path)
            return
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best_weights = state["best_weights"]
        self.epoch, self.best_epoch, self.best_score, self.seconds = state["progress"]
        _log.info("resuming after epoch %d", self.epoch)


def _architecture(dataset: Dataset, encoder: TextEncoder, config: TrainConfig) -> SteerConfig:
    return SteerConfig(
        num_items=dataset.catalog.num_items,
        text_dim=encoder.dim,
        dim=config.dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        hidden_dim=config.hidden_dim,
        max_history=config.max_history,
        dropout=config.dropout,
        text_dropout=config.text_dropout,
        temperature=config.temperature,
    )


def _geometric_mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(np.prod(numbers) ** (1 / len(numbers)))


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each loss over the steps that have it."""
    names = sorted({name for step in steps for name in step})
    return {name: float(np.mean([step[name] for step in steps if name in step])) for name in names}


def _copied(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
