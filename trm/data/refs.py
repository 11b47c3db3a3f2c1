"""Which data sets there are, how they are named, and where they live on disk. Reads no data.

`$DEEPREC_HOME` (default `~/.cache/deeprec`) holds what is made; `$DEEPREC_DATA` may hold raw files: `ml-100k/`,
`ml-1m/`, `ml-20m/` and `ml-32m/` in GroupLens' layout, `amazon/` and `amazon-2018/` with two files a category.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

DATASET_NAMES = ("sample", "ml-100k", "ml-1m", "ml-20m", "ml-32m", "amazon", "amazon-2018")
WITH_CATEGORY = ("amazon", "amazon-2018")
SOURCES = {"deeprec": "DIR", "recbole": "DIR", "ids": "FILE", "csv": "NAME"}
"""Data of one's own, named `source:what`: the original DeepRec layout, RecBole's atomic files, ids, two CSV files."""

PLUGIN_GROUP = "deeprec.datasets"
"""The entry points by which other packages bring data sets, see `trm.data.plugins`."""


@cache
def plugin_names() -> tuple[str, ...]:
    """Return the names of the data sets that installed packages bring; built-in names are not among them."""
    found = {point.name for point in entry_points(group=PLUGIN_GROUP)}
    return tuple(sorted(found - {*DATASET_NAMES, *SOURCES}))


def data_home() -> Path:
    """Return the folder of all that is prepared: $DEEPREC_HOME, or ~/.cache/deeprec."""
    configured = os.environ.get("DEEPREC_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "deeprec"


def raw_home() -> Path | None:
    """Return the folder of raw files that the user named by $DEEPREC_DATA; None if it is not set."""
    configured = os.environ.get("DEEPREC_DATA")
    return Path(configured).expanduser() if configured else None


@dataclass(frozen=True)
class DatasetRef:
    """The name of a data set: `DatasetRef("ml-100k")`, `("amazon", "Video_Games")`, `("deeprec:../data/Games")`."""

    name: str
    """One of DATASET_NAMES, one of SOURCES and what it reads, with a colon between, or what a package brings."""
    category: str | None = None
    """For those of WITH_CATEGORY only: as in the names of the raw files."""

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            ValueError: if there is no such data set, or the category does not go with it.
        """
        if self.source is not None:
            if not self._slug:
                raise ValueError(f"expected {self.source}:{SOURCES[self.source]}, got {self.name!r}")
        elif self.name not in DATASET_NAMES and self.plugin is None:
            known = (*DATASET_NAMES, *plugin_names())
            close = difflib.get_close_matches(self.name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            own = ", ".join(f"{source}:{what}" for source, what in SOURCES.items())
            raise ValueError(f"expected a data set in {known} or {own}, got {self.name!r}{hint}")
        if self.name in WITH_CATEGORY:
            if not self.category or not re.fullmatch(r"\w+", self.category):
                raise ValueError(
                    f"expected a category such as 'Video_Games' with the data set {self.name!r}, got {self.category!r}"
                )
        elif self.category is not None:
            raise ValueError(f"expected no category with the data set {self.name!r}, got {self.category!r}")

    @property
    def source(self) -> str | None:
        """The reader of data of one's own; None for the data sets that have a name."""
        source, colon, _ = self.name.partition(":")
        return source if colon and source in SOURCES else None

    @property
    def plugin(self) -> str | None:
        """The name by which an installed package brings it; None for all others."""
        name = self.name.partition(":")[0]
        return name if name not in (*DATASET_NAMES, *SOURCES) and name in plugin_names() else None

    @property
    def path(self) -> Path | None:
        """Where the raw data of one's own stand; None where the name does not say it."""
        what = self.name.partition(":")[2]
        return Path(what).expanduser().resolve() if self.source not in (None, "csv") else None

    @property
    def key(self) -> str:
        """The name on disk, e.g. "ml-100k", "amazon-Video_Games" or "deeprec-Games"."""
        if self.source is not None:
            return f"{self.source}-{self._slug}"
        if self.plugin is not None:
            return f"{self.plugin}-{self._slug}" if self._slug else self.plugin
        return self.name if self.category is None else f"{self.name}-{self.category}"

    @property
    def prepare_command(self) -> str:
        """What to type to have it prepared."""
        files = " --interactions FILE --items FILE" if self.source == "csv" else ""
        return f"deeprec prepare {self.arguments}{files}"

    @property
    def arguments(self) -> str:
        """How it is named on the command line, e.g. "amazon --category Video_Games"."""
        return self.name if self.category is None else f"{self.name} --category {self.category}"

    @property
    def _slug(self) -> str:
        what = self.name.partition(":")[2]
        if what and self.path is not None:
            what = self.path.name.split(".")[0] if self.source == "ids" else self.path.name
        return re.sub(r"[^\w.-]+", "_", what).strip("._")


def prepared_folder(ref: DatasetRef) -> Path:
    """Return where the prepared data set stands, or would stand."""
    return data_home() / "datasets" / ref.key
