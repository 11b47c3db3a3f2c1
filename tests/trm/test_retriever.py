from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.trm.test_model import NUM_ITEMS, TEXT_DIM, random_model
from trm.retriever import TRMRetriever, ranks_of
from trm.text_encoder import HashingEncoder
from trm.types import RetrievalQuery, Retriever

QUERIES = [
    RetrievalQuery((1, 2, 3), "red", k=5),
    RetrievalQuery((4,), "", k=7, exclude_history=False),
    RetrievalQuery((), "round and flat", k=3),
    RetrievalQuery(tuple(range(1, 29)), "red", k=10),
]


@pytest.fixture
def retriever() -> TRMRetriever:
    return TRMRetriever(random_model().export(encoder_name="hashing-16"), HashingEncoder(TEXT_DIM))


def reference(retriever: TRMRetriever, query: RetrievalQuery) -> list[tuple[int, float]]:
    frozen = retriever.frozen
    states, preference = frozen.encode_histories([query.history]), retriever.encoder.encode([query.preference])
    scores = frozen.queries(states)[0] @ frozen.item_vectors.T
    if query.preference:
        (query_vector,), (trust,) = frozen.steered(states, preference)
        scores = np.maximum(scores, frozen.item_vectors @ query_vector + trust)
    scores = [(item_id, float(scores[item_id])) for item_id in range(1, NUM_ITEMS + 1)]
    allowed = [pair for pair in scores if not (query.exclude_history and pair[0] in query.history)]
    return sorted(allowed, key=lambda pair: -pair[1])


def test_gives_the_best_items_in_order(retriever: TRMRetriever):
    assert isinstance(retriever, Retriever)
    for query, answer in zip(QUERIES, retriever.retrieve(QUERIES)):
        expected = reference(retriever, query)[: query.k]
        assert list(answer.item_ids) == [item_id for item_id, _ in expected]
        assert answer.scores == pytest.approx([score for _, score in expected], abs=1e-5)


def test_the_score_is_the_better_of_two_and_an_empty_preference_has_one(retriever: TRMRetriever):
    history = (1, 2, 3)
    own, asked = retriever.scores([RetrievalQuery(history, ""), RetrievalQuery(history, "red")])
    assert (asked >= own).all()
    assert (asked > own + 1e-4).any()
    assert (np.abs(asked - own) < 1e-6)[1:].any()  # the gate of this model leaves some items to the history
    query = retriever.query_vectors([RetrievalQuery(history, "")])[0]
    np.testing.assert_allclose(own, retriever.frozen.item_vectors @ query, atol=1e-6)


def test_a_gate_that_trusts_nothing_answers_as_without_a_preference(retriever: TRMRetriever):
    model = random_model()
    with torch.no_grad():
        model.gate.linear_2.weight.zero_()
        model.gate.linear_2.bias.fill_(-1e3)
    deaf = TRMRetriever(model.export(encoder_name="hashing-16"), retriever.encoder)
    with_it, without = (deaf.retrieve([RetrievalQuery((1, 2, 3), text, k=9)])[0] for text in ("red", ""))
    assert with_it == without


def test_a_larger_k_after_a_smaller_one_is_answered_in_full(retriever: TRMRetriever):
    for preference in ("", "red"):
        retriever.retrieve([RetrievalQuery((1, 2), preference, k=1)])
        (answer,) = retriever.retrieve([RetrievalQuery((1, 2), preference, k=NUM_ITEMS)])
        assert len(answer.item_ids) == len(set(answer.item_ids)) == NUM_ITEMS - 2


def test_fewer_than_k_where_the_catalogue_ends(retriever: TRMRetriever):
    (answer,) = retriever.retrieve([QUERIES[3]])
    assert set(answer.item_ids) == {29, 30}
    assert all(type(item_id) is int for item_id in answer.item_ids)


def test_an_answer_does_not_hang_on_its_batch_or_on_the_caches(retriever: TRMRetriever):
    together = retriever.retrieve(QUERIES)
    alone = [retriever.retrieve([query])[0] for query in QUERIES]
    assert [answer.item_ids for answer in together] == [answer.item_ids for answer in alone]
    many = retriever.retrieve(QUERIES * 25)  # more than are scored again at once
    assert many == together * 25
    small = TRMRetriever(retriever.frozen, retriever.encoder, max_cached_histories=1)
    assert [answer.item_ids for answer in small.retrieve(QUERIES * 2)] == [answer.item_ids for answer in together] * 2
    assert len(small._state_by_history) == 1


def test_a_history_is_encoded_once(retriever: TRMRetriever, monkeypatch: pytest.MonkeyPatch):
    encoded: list[tuple[int, ...]] = []
    encode = retriever.frozen.encode_histories
    monkeypatch.setattr(
        retriever.frozen, "encode_histories", lambda histories: encoded.extend(histories) or encode(histories)
    )
    retriever.retrieve([QUERIES[0], QUERIES[0], QUERIES[1]])
    retriever.retrieve([QUERIES[1]])
    assert encoded == [(1, 2, 3), (4,)]


def test_ties_are_ordered_by_id(retriever: TRMRetriever):
    model = random_model()
    table = model.item_embedding.weight.data
    texts = model.item_texts_NP
    table[2:] = table[1].clone()
    texts[2:] = texts[1].clone()
    tied = TRMRetriever(model.export(encoder_name="hashing-16"), retriever.encoder)
    query = RetrievalQuery((), "red", k=NUM_ITEMS)
    assert tied.retrieve([query])[0].item_ids == tuple(range(1, NUM_ITEMS + 1))
    assert tied.ranks([query] * 3, [1, 7, 30]).tolist() == [1, 7, 30]


def test_ranks_agree_with_the_order(retriever: TRMRetriever):
    for query in QUERIES:
        order = [item_id for item_id, _ in reference(retriever, query)]
        targets = list(range(1, NUM_ITEMS + 1))
        ranks = retriever.ranks([query] * NUM_ITEMS, targets)
        assert ranks.tolist() == [order.index(target) + 1 if target in order else 0 for target in targets]


def test_ranks_of_by_hand():
    scores = np.array([[-np.inf, 3, 5, 3, 1], [-np.inf, 3, 5, 3, -np.inf]], dtype=np.float32)
    assert ranks_of(scores, np.array([3, 4])).tolist() == [3, 0]
    assert ranks_of(scores, np.array([1, 2])).tolist() == [2, 1]


def test_misuse_is_refused(retriever: TRMRetriever):
    assert retriever.retrieve([]) == []
    assert retriever.ranks([], []).shape == (0,)
    with pytest.raises(ValueError, match="k of at least 1"):
        retriever.retrieve([RetrievalQuery((1,), "", k=0)])
    with pytest.raises(ValueError, match="expected item ids"):
        retriever.retrieve([RetrievalQuery((99,), "")])
    with pytest.raises(ValueError, match="expected a target for each"):
        retriever.ranks(QUERIES, [1])
    with pytest.raises(ValueError, match="trained with, got 'hashing-8'"):
        TRMRetriever(retriever.frozen, HashingEncoder(8))
