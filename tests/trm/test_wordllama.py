"""The fast encoder: unit rows, texts near in meaning, odd texts, and no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from trm.errors import TRMError
from trm.text_encoder import NO_TEXT, load_encoder
from trm.types import TextEncoder
from trm.wordllama import WORDLLAMA, WordLlamaEncoder


@pytest.fixture(scope="module")
def encoder() -> WordLlamaEncoder:
    pytest.importorskip("wordllama", reason="needs the package wordllama (extra fast)")
    return WordLlamaEncoder()


def test_rows_are_unit_and_do_not_hang_on_the_batch(encoder: WordLlamaEncoder) -> None:
    assert isinstance(encoder, TextEncoder)
    texts = ["a dark crime film", "", "noir", "   ", "\u200b", "\ud800 broken", "long " * 2000]
    vectors = encoder.encode(texts)
    assert vectors.shape == (7, 256)
    assert vectors.dtype == np.float32
    empty = [1, 3]
    assert not vectors[empty].any()
    norms = np.linalg.norm(np.delete(vectors, empty, axis=0), axis=1)
    assert norms == pytest.approx(np.ones(5), abs=1e-5)
    np.testing.assert_allclose(vectors, np.concatenate([encoder.encode([text]) for text in texts]), atol=1e-6)
    assert encoder.encode([]).shape == (0, 256)


def test_what_is_meant_alike_is_near(encoder: WordLlamaEncoder) -> None:
    film, like, other = encoder.encode(["a dark crime film", "noir thriller movie", "stainless steel bolts"])
    assert film @ like > film @ other + 0.1


def test_the_package_is_loaded_by_name() -> None:
    pytest.importorskip("wordllama")
    assert load_encoder(WORDLLAMA) is load_encoder(WORDLLAMA)
    with pytest.raises(ValueError, match="did you mean 'wordllama-256'"):
        load_encoder("wordlama")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trm.wordllama._PACKAGE", "no_such_package")
    with pytest.raises(TRMError, match=r"pip install deeprec-env\[fast\]"):
        WordLlamaEncoder()


def test_it_needs_no_torch() -> None:
    pytest.importorskip("wordllama")
    code = (
        "import sys; from trm.text_encoder import load_encoder; load_encoder('wordllama-256').encode(['x']);"
        "assert not {'torch', 'transformers', 'wordllama'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_text_is_a_zero_row_for_everything() -> None:
    none = load_encoder(NO_TEXT)
    assert isinstance(none, TextEncoder)
    assert none.encode(["a", ""]).tolist() == [[0.0], [0.0]]
