"""Search: the best columns, exact and by faiss, against plain sorting."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trm.test_model import random_model
from trm import index as index_module
from trm.errors import TRMError
from trm.index import ExactIndex, FaissIndex, best_columns, build_index, default_kind, overlap
from trm.retriever import TRMRetriever
from trm.text_encoder import HashingEncoder
from trm.types import FloatArray, RetrievalQuery

KINDS = ("flat", "ivf", "hnsw")


def unit(rows: FloatArray) -> FloatArray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> FloatArray:
    """3,000 items in 60 clusters; row 0 is padding."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 16))
    items = unit(centres[rng.integers(60, size=3_000)] + 0.6 * rng.standard_normal((3_000, 16)))
    return np.concatenate((np.zeros((1, 16), dtype=np.float32), items))


def plain(vectors: FloatArray, query: FloatArray, count: int, hidden: tuple[int, ...] = ()) -> list[int]:
    order = np.argsort(-(vectors[1:] @ query), kind="stable") + 1
    return [item_id for item_id in order.tolist() if item_id not in hidden][:count]


@settings(deadline=None, max_examples=60)
@given(
    num_columns=st.integers(1, 700), num_rows=st.integers(1, 3), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1)
)
def test_the_best_columns_are_those_of_a_sort(num_columns: int, num_rows: int, share: float, seed: int) -> None:
    count = max(1, round(share**3 * num_columns))
    scores = np.random.default_rng(seed).permuted(
        np.tile(np.arange(num_columns, dtype=np.float32), (num_rows, 1)), axis=1
    )
    columns, found = best_columns(scores, count)
    assert columns.shape == found.shape == (num_rows, count)
    np.testing.assert_array_equal(np.take_along_axis(scores, columns, axis=1), found)
    best = np.arange(num_columns - count, num_columns, dtype=np.float32)
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(best, (num_rows, 1)))


def test_equal_and_hidden_scores_give_distinct_columns() -> None:
    scores = np.full((2, 500), -np.inf, dtype=np.float32)
    scores[0, 7] = 1.0
    columns, found = best_columns(scores, 5)
    assert all(len(set(row)) == 5 for row in columns.tolist())
    assert np.isfinite(found).sum() == 1


def test_exact_search_hides_padding_and_what_is_excluded(vectors: FloatArray) -> None:
    queries = vectors[[5, 900] * 70]
    excluded = [(5, 17), ()] * 70
    ids, scores = ExactIndex(vectors).search(queries, 12, excluded=excluded)
    for row in range(140):
        assert sorted(ids[row].tolist()) == sorted(plain(vectors, queries[row], 12, excluded[row]))
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, ids, axis=1), atol=1e-6)
    few = ExactIndex(vectors[:4]).search(queries[:1], 10, excluded=[(2,)])
    assert sorted(few[0][0][np.isfinite(few[1][0])].tolist()) == [1, 3]


def test_threads_do_not_share_their_scores(vectors: FloatArray) -> None:
    index = ExactIndex(vectors)
    queries = vectors[1:401]
    expected, _ = index.search(queries, 5, excluded=[()] * 400)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda row: index.search(queries[row : row + 1], 5, excluded=[()])[0], range(400)))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(expected))


@pytest.mark.parametrize("bound", ["_SCORES_AT_ONCE", "_SCORES_IN_CACHE"])
def test_large_batches_are_cut(vectors: FloatArray, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = ExactIndex(vectors).search(vectors[1:101], 5, excluded=[(1,)] * 100)
    monkeypatch.setattr(index_module, bound, 7 * len(vectors))
    cut, _ = ExactIndex(vectors).search(vectors[1:101], 5, excluded=[(1,)] * 100)
    np.testing.assert_array_equal(np.sort(cut), np.sort(whole))


@pytest.mark.parametrize("kind", KINDS)
def test_faiss_finds_nearly_all_and_nothing_that_is_excluded(vectors: FloatArray, kind: index_module.IndexKind) -> None:
    pytest.importorskip("faiss", reason="needs faiss (extra faiss)")
    rng = np.random.default_rng(1)
    queries = unit(vectors[rng.integers(1, 3_001, size=100)] + 0.1 * rng.standard_normal((100, 16), dtype=np.float32))
    excluded = [tuple(plain(vectors, query, 3)) for query in queries]
    index = build_index(vectors, kind=kind)
    ids, scores = index.search(queries, 20, excluded=excluded)
    expected = np.array([plain(vectors, query, 20, hidden) for query, hidden in zip(queries, excluded)])
    assert overlap(ids, expected) >= (1.0 if kind == "flat" else 0.97)
    assert not any(set(row) & set(hidden) for row, hidden in zip(ids.tolist(), excluded))
    assert (ids >= 1).all()
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, ids, axis=1), atol=1e-5)


def test_faiss_is_tuned_to_its_recall(vectors: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    careful = FaissIndex(vectors, kind="ivf")
    monkeypatch.setattr(index_module, "RECALL", 0.5)
    assert FaissIndex(vectors, kind="ivf").effort < careful.effort


def test_a_catalogue_smaller_than_k(vectors: FloatArray) -> None:
    pytest.importorskip("faiss")
    for kind in KINDS:
        ids, scores = build_index(vectors[:50], kind=kind).search(vectors[[1, 2]], 80, excluded=[(3,), ()])
        assert [np.isfinite(row).sum() for row in scores] == [48, 49]
        assert sorted(ids[0][np.isfinite(scores[0])].tolist()) == [1, 2, *range(4, 50)]


def test_the_default_hangs_on_the_number_of_items(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert default_kind(25_612) == "exact"
    monkeypatch.setattr(index_module.importlib.util, "find_spec", lambda name: object())
    assert default_kind(1_000_000) == "ivf"
    monkeypatch.setattr(index_module.importlib.util, "find_spec", lambda name: None)
    assert default_kind(1_000_000) == "exact"
    assert "pip install deeprec-env[faiss]" in caplog.text


def test_the_default_is_exact_where_vectors_have_no_structure(
    vectors: FloatArray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(index_module, "APPROXIMATE_FROM", 1_000)
    monkeypatch.setattr(index_module, "_WORTHWHILE", 1.0)
    assert isinstance(build_index(vectors), FaissIndex)
    monkeypatch.setattr(index_module, "_WORTHWHILE", 0.0)
    assert isinstance(build_index(vectors), ExactIndex)
    assert "too little structure" in caplog.text


def test_mistakes_are_named(vectors: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"expected an index of .* got 'tree'"):
        build_index(vectors, kind="tree")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(TRMError, match=r"pip install deeprec-env\[faiss\]"):
        build_index(vectors, kind="flat")


@pytest.mark.parametrize("kind", KINDS)
def test_a_retriever_over_faiss_answers_as_the_exact_one(kind: index_module.IndexKind) -> None:
    pytest.importorskip("faiss")
    frozen = random_model().export(encoder_name="hashing-16")
    queries = [
        RetrievalQuery((1, 2, 3), "red", k=5),
        RetrievalQuery((4,), "", k=7, exclude_history=False),
        RetrievalQuery(tuple(range(1, 29)), "red", k=10),
    ]
    exact, other = (TRMRetriever(frozen, HashingEncoder(16), index=index) for index in ("exact", kind))
    assert [answer.item_ids for answer in other.retrieve(queries)] == [
        answer.item_ids for answer in exact.retrieve(queries)
    ]
    assert other.ranks(queries[:1], [9]).tolist() == exact.ranks(queries[:1], [9]).tolist()
