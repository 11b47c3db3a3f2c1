"""Writes preference texts into a file, a line a subject as the answers come; started again it asks for the rest."""

from __future__ import annotations

import fcntl
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tqdm import tqdm

from agents.base import AgentError
from agents.preferences.answers import Answer, read_answer
from agents.preferences.models import TextModel
from agents.preferences.prompts import VERSION, Asked, ask
from trm.data.prepare import data_home
from trm.errors import DataFormatError
from trm.written_preferences import FORMAT, Prefix, check_header, read_subject

if TYPE_CHECKING:
    from agents.preferences.fit import FitJudge
    from trm.data.dataset import Dataset

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""How often a subject is asked about that got no text."""


@dataclass
class WritingReport:
    """What a call of `write_preferences` has done."""

    num_known: int = 0
    """Subjects that the file held already."""
    num_asked: int = 0
    num_texts: int = 0
    num_without: int = 0
    """Subjects that got no text in all attempts."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Lines that were not taken, by reason: see `agents.preferences.answers`."""


def preferences_file(dataset_key: str, model_name: str) -> Path:
    """Return where the texts of a model for a data set are kept, beside the prepared data."""
    slug = re.sub(r"[^\w.-]+", "-", model_name).strip("-")
    return data_home() / "preferences" / dataset_key / f"{slug}.jsonl"


def write_preferences(
    dataset: Dataset,
    model: TextModel,
    subjects: Sequence[int | Prefix],
    *,
    out: Path,
    count: int = 3,
    seed: int = 0,
    batch_size: int = 64,
    judge: FitJudge | None = None,
    progress: bool = False,
) -> WritingReport:
    """Ask the model about the subjects that the file does not hold yet, and return what was done.

    Args:
        dataset: items and users.
        model: writes.
        subjects: items and beginnings of sequences.
        out: the file; what it holds is kept.
        count: texts a subject at most.
        seed: of engines' sampling.
        batch_size: questions that are handed to the model at a time.
        judge: refuses what does not fit its item.
        progress: whether to show a bar.

    Raises:
        AgentError: if the file belongs to another model or is being written, or the model cannot answer any more; what
            was answered is kept.
        DataFormatError: if it is no such file, or one of another state of the data set.
    """
    report = WritingReport()
    header = {
        "format": FORMAT,
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "model": model.name,
        "prompts": VERSION,
    }
    with _opened(out, header, dataset) as (stream, known):
        missing = [subject for subject in subjects if subject not in known]
        report.num_known = len(subjects) - len(missing)
        with tqdm(total=len(missing), desc=f"preferences by {model.name}", disable=not progress) as bar:
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                answers = _answers(dataset, model, batch, count=count, seed=seed, judge=judge, report=report)
                for subject, answer in answers:
                    stream.write(json.dumps(_record(subject, answer)) + "\n")
                    stream.flush()
                    bar.update()
    return report


def _answers(
    dataset: Dataset,
    model: TextModel,
    subjects: Sequence[int | Prefix],
    *,
    count: int,
    seed: int,
    judge: FitJudge | None,
    report: WritingReport,
) -> Iterator[tuple[int | Prefix, Answer]]:
    """Yield every subject once, with what was written for it; one without a text is asked about again."""
    pending = list(subjects)
    for attempt in range(_ATTEMPTS):
        questions: list[Asked] = [ask(one, dataset, count=count, seed=seed + attempt) for one in pending]
        pending = []
        for reply in model.answer(questions):
            subject = reply.asked.subject
            answer = read_answer(reply.text, subject, dataset, count=count, cut=reply.is_cut, judge=judge)
            report.num_asked += 1
            report.left_out.update(answer.left_out)
            if not answer.texts and attempt + 1 < _ATTEMPTS:
                pending.append(subject)
                continue
            report.num_texts += len(answer.texts)
            report.num_without += not answer.texts
            yield subject, answer
        if not pending:
            return


def _record(subject: int | Prefix, answer: Answer) -> dict[str, object]:
    about = {"user": subject.user_index, "length": subject.length} if isinstance(subject, Prefix) else {"item": subject}
    return {**about, "texts": list(answer.texts), "left_out": answer.left_out}


@contextmanager
def _opened(out: Path, header: dict[str, object], dataset: Dataset) -> Iterator[tuple[IO[str], set[int | Prefix]]]:
    """Open the file for appending and yield it with the subjects that it holds; a torn last line is dropped."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AgentError(f"{out} is being written by another process; take another --out") from error
        stream.seek(0)
        whole, newline, torn = stream.read().rpartition("\n")
        lines = whole.split("\n") if newline else []
        if torn:
            logger.warning("%s: the last line was cut short and is dropped", out)
            stream.truncate(len(f"{whole}{newline}".encode()))
        if not lines:
            stream.write(json.dumps(header) + "\n")
            stream.flush()
        else:
            found = check_header(out, lines[0], dataset)
            for name in ("model", "prompts"):
                if found.get(name) != header[name]:
                    raise AgentError(
                        f"{out} was written with another {name}: {found.get(name)!r}, not {header[name]!r}; "
                        "take another --out"
                    )
        yield stream, _known_subjects(out, lines[1:], dataset)


def _known_subjects(out: Path, lines: Sequence[str], dataset: Dataset) -> set[int | Prefix]:
    known = set()
    for number, line in enumerate(lines, start=2):
        try:
            known.add(read_subject(json.loads(line), dataset))
        except (ValueError, KeyError, TypeError) as error:
            raise DataFormatError(f"{out}:{number}: expected written preferences, got {error!r}") from error
    return known
