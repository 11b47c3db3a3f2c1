"""`deeprec preferences`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from agents.cli.common import dataset_ref, say


@dataclass(frozen=True)
class Preferences:
    """Let a language model write preferences for the recommender to train on (`deeprec train-trm --preferences FILE`).

    It is asked about items, and about the beginnings of users' training sequences. What names a target's title, does
    not fit the item or is no preference at all is left out and counted by kind. Every answer is kept as it comes; the
    same command asks for what is missing.
    """

    dataset: Positional[str]
    """As `deeprec prepare` takes it; it is prepared first if need be."""
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")]
    """chat:URL?model=NAME (an OpenAI-compatible endpoint), hf:MODEL or vllm:MODEL (a folder in Hugging Face format, a
    GGUF file, a name of the hub, or package:NAME); behind a "?" temperature and max_tokens; of chat also concurrency,
    max_requests and max_total_tokens."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    items: int = 2000
    """Items at most, the most popular first; 0 takes all."""
    users: int = 2000
    """Users at most; 0 takes all."""
    texts: int = 3
    """Texts an answer at most."""
    out: Path | None = None
    """The file; by default one of the model's own beside the prepared data."""
    seed: int = 0
    """Of the choice of users, and of sampling."""
    min_fit: float = 0.7
    """A text for an item must fit it better than this share of the catalogue, by the text encoder; 0 takes all. Of the
    recommender's own texts for one attribute, 0.7 takes three in four."""
    encoder: str = "all-minilm-l6-v2"
    """The text encoder that judges; as of `deeprec train-trm`."""
    batch_size: int = 64
    """Questions that are handed to the model at a time."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> None:
        """Write and print what was taken, what was left out, and where it lies."""
        for option, value in (("--items", self.items), ("--users", self.users)):
            if value < 0:
                raise ValueError(f"{option} must be at least 0, got {value}")
        if self.texts < 1 or self.batch_size < 1:
            raise ValueError(f"--texts and --batch-size must be at least 1, got {self.texts} and {self.batch_size}")
        if not 0 <= self.min_fit <= 1:
            raise ValueError(f"--min-fit must be from 0 to 1, got {self.min_fit}")
        from agents.preferences.fit import FitJudge
        from agents.preferences.models import make_text_model
        from agents.preferences.prompts import choose_subjects
        from agents.preferences.writing import preferences_file, write_preferences
        from trm.data.prepare import prepare_dataset
        from trm.prepare_trm import load_cached_encoder

        ref = dataset_ref(self.dataset, self.category)
        dataset = prepare_dataset(ref)
        judge = FitJudge(dataset, load_cached_encoder(self.encoder), min_fit=self.min_fit) if self.min_fit else None
        model = make_text_model(self.model)
        out = self.out or preferences_file(ref.key, model.name)
        report = write_preferences(
            dataset,
            model,
            choose_subjects(dataset, num_items=self.items, num_users=self.users, seed=self.seed),
            out=out,
            count=self.texts,
            seed=self.seed,
            batch_size=self.batch_size,
            judge=judge,
            progress=not self.quiet,
        )
        left_out = ", ".join(f"{reason} {count}" for reason, count in sorted(report.left_out.items())) or "none"
        say(
            f"{report.num_asked} answers, {report.num_texts} texts; lines left out: {left_out}; "
            f"{report.num_without} subjects without a text, {report.num_known} known already"
        )
        say(f"{ref.key}: written in {out}; to train with them: deeprec train-trm {ref.arguments} --preferences {out}")
