"""Data sets that installed packages bring: a package is a module and its entry points, written by hand here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trm.data import plugins, refs
from trm.data.prepare import DatasetRef, load_prepared, prepare_dataset
from trm.data.sources.assemble import Filters
from trm.errors import DataFormatError, DatasetNotPrepared

READER = """
from trm.data.catalog import Item
from trm.data.sources.assemble import Filters

class Loans:
    def __init__(self, year="2023"):
        self.year = year
    def source(self):
        return "loans of " + self.year
    def filters(self):
        return Filters(min_interactions=4)
    def events(self):
        yield from [("ann", "b", 20), ("ann", "a", 10), ("ann", "c", 30), ("ann", "d", 40), ("bob", "a", 1)]
    def items(self):
        yield from [Item(0, x, "Book " + x, {"genres": ("crime",)}) for x in "abcz"]

class Broken(Loans):
    def events(self):
        yield ("ann", "a")

class Poor:
    def source(self):
        return ""
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package with these entry points where Python finds it; a fresh home beside it."""

    def put(**points: str) -> None:
        info = tmp_path / "loans_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loans-package\nVersion: 1.0\n", encoding="utf-8")
        lines = "".join(f"{name} = {target}\n" for name, target in points.items())
        (info / "entry_points.txt").write_text(f"[deeprec.datasets]\n{lines}", encoding="utf-8")
        (tmp_path / "loans_package.py").write_text(READER, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("DEEPREC_HOME", str(tmp_path / "home"))
        _forget()

    yield put  # type: ignore[misc]
    sys.modules.pop("loans_package", None)
    _forget()


def _forget() -> None:
    refs.plugin_names.cache_clear()
    plugins._points.cache_clear()


def test_a_package_brings_a_data_set_by_four_functions(install: Install) -> None:
    install(loans="loans_package:Loans")
    ref = DatasetRef("loans")
    assert (ref.key, ref.prepare_command) == ("loans", "deeprec prepare loans")
    with pytest.raises(DatasetNotPrepared, match="deeprec prepare loans"):
        load_prepared(ref)
    dataset = prepare_dataset(ref)
    assert dataset.interactions.user_ids == ("ann",)
    titles = [dataset.catalog.title(item_id) for item_id in dataset.interactions.item_ids]
    assert titles == ["Book a", "Book b", "Book c", "d"]
    assert dataset.report["source"] == "loans of 2023"
    assert dataset.report["users_below_min_interactions"] == 1
    assert dataset.report["items_never_taken"] == 1
    assert dataset.report["items_not_described"] == 1
    assert load_prepared(ref).fingerprint == dataset.fingerprint


def test_what_stands_behind_the_colon_is_the_readers_and_filters_can_be_asked_for(install: Install) -> None:
    install(loans="loans_package:Loans")
    ref = DatasetRef("loans:2024")
    assert ref.key == "loans-2024"
    dataset = prepare_dataset(ref, filters=Filters(min_interactions=1))
    assert dataset.report["source"] == "loans of 2024"
    assert dataset.report["users_below_min_interactions"] == 0


def test_another_source_is_noticed(install: Install) -> None:
    install(loans="loans_package:Loans")
    ref = DatasetRef("loans")
    prepare_dataset(ref)
    sys.modules["loans_package"].Loans.source = lambda self: "elsewhere"  # type: ignore[attr-defined]
    with pytest.raises(DatasetNotPrepared, match="was made from loans of 2023, not from elsewhere"):
        load_prepared(ref)
    assert prepare_dataset(ref).report["source"] == "elsewhere"


@pytest.mark.parametrize(
    ("target", "name", "error", "message"),
    [
        ("loans_package:Broken", "x", DataFormatError, r"expected event 0 to be .*, got \('ann', 'a'\)"),
        ("loans_package:Poor", "x", DataFormatError, "got no filters"),
        ("loans_package:Gone", "x", DataFormatError, "cannot load 'loans_package:Gone'"),
        ("no_such_module", "x", DataFormatError, "cannot load 'no_such_module'"),
        ("loans_package", "x:2024", ValueError, "expected 'x' with nothing behind it"),
    ],
)
def test_a_broken_package_is_named(
    install: Install, target: str, name: str, error: type[Exception], message: str
) -> None:
    install(x=target)
    with pytest.raises(error, match=message):
        prepare_dataset(DatasetRef(name))


def test_built_in_names_stay_what_they_are_and_unknown_ones_suggest_plug_ins(install: Install) -> None:
    install(loans="loans_package:Loans", sample="loans_package:Loans", csv="loans_package:Loans")
    assert refs.plugin_names() == ("loans",)
    assert DatasetRef("sample").plugin is None
    with pytest.raises(ValueError, match="did you mean 'loans'"):
        DatasetRef("laons")
