"""The terms against hand arithmetic."""

import math

import numpy as np
import pytest

from deeprec_env.rewards import process
from deeprec_env.rewards.config import PRESETS, TERMS, RewardConfig, build_reward_config
from deeprec_env.rewards.outcome import build_outcome, hit_reward, likeness, mean_similarities, place_weights

CONFIG = PRESETS["strict"]
TITLES = {"a": (1,), "b": (2,), "twin": (3, 4), "c": (5,)}


def _outcome(titles: list[str], *, target: int = 2, top_k: int = 4, pool: tuple[int, ...] = (1, 2, 3)):
    return build_outcome(
        titles, target=target, top_k=top_k, find=lambda t: TITLES.get(t, ()), pool=pool, well_formed=True
    )


def test_outcome_reads_a_ranking() -> None:
    outcome = _outcome(["a", "a", "nowhere", "b", "c"])
    assert outcome.recommended_ids == (1, 1, 0, 2)
    assert outcome.hit_rank == 4
    assert outcome.duplicate_titles == ("a",)
    assert outcome.unknown_titles == ("nowhere",)
    assert outcome.never_retrieved_titles == ()
    assert outcome.grounded_share == 2 / 4
    assert (outcome.recall(1), outcome.recall(5)) == (0.0, 1.0)
    assert outcome.ndcg(5) == 1 / math.log2(5)
    assert outcome.ndcg(1) == 0.0


def test_only_the_first_top_k_count() -> None:
    assert _outcome(["a", "twin", "c", "nowhere", "b"]).hit_rank == 0
    assert _outcome(["twin"], target=4).hit_rank == 1
    assert _outcome(["c"], target=5).never_retrieved_titles == ("c",)


def test_info_is_fresh() -> None:
    outcome = _outcome(["a"])
    assert outcome.as_info() == outcome.as_info()
    assert outcome.as_info() is not outcome.as_info()


@pytest.mark.parametrize(("rank", "reward"), [(0, 0.0), (1, 1 + 0.2 * 10), (4, 1 + 0.2 * 7), (10, 1 + 0.2 * 1)])
def test_hit(rank: int, reward: float) -> None:
    assert hit_reward(rank, CONFIG) == pytest.approx(reward)


@pytest.mark.parametrize(("num_searches", "reward"), [(0, 0.0), (1, 0.0), (2, 0.5), (3, 1.0), (8, 1.0)])
def test_invocation(num_searches: int, reward: float) -> None:
    assert process.invocation_reward(num_searches, CONFIG) == reward


def test_mean_distance() -> None:
    x, y = np.array([1.0, 0.0], dtype=np.float32), np.array([0.0, 1.0], dtype=np.float32)
    assert process.mean_distance([x]) == 0.0
    assert process.mean_distance([x, y]) == 1.0
    assert process.mean_distance([x, x, y]) == pytest.approx(1 - 1 / 3)
    assert process.mean_distance([x, -x]) == 2.0
    assert process.mean_distance([x, -x], cap=0.5) == 0.5


def test_different_wishes_are_as_diverse_as_gibberish() -> None:
    """Three genres whose embeddings lie 60 degrees apart, and three unrelated words."""
    strict, paper = PRESETS["strict"], PRESETS["paper"]
    genres = [np.array(v) / math.sqrt(2) for v in ([1.0, 1, 0], [1.0, 0, 1], [0.0, 1, 1])]
    assert process.mean_distance(genres) == pytest.approx(0.5)
    amounts = [
        strict.diversity_weight * process.mean_distance(vectors, cap=strict.diversity_cap)
        for vectors in (genres, list(np.eye(3)), [np.eye(3)[0], -np.eye(3)[0]])
    ]
    assert amounts == [pytest.approx(0.1)] * 3
    assert (paper.diversity_weight, paper.invocation_weight) == (0.2, 0.5)


def test_progress_potential() -> None:
    assert process.progress_potential([0, 0]) == 0.0
    assert process.progress_potential([0, 3, 7]) == 1 / math.log2(4)


def test_likeness_is_the_mean_of_dot_and_cosine() -> None:
    text = np.array([[0, 0], [1, 0], [0.6, 0.8]], dtype=np.float32)
    ids = np.array([[0, 0], [2, 0], [0, 3]], dtype=np.float32)
    (values,) = likeness([[1, 2, 0]], [1], text_vectors=text, id_vectors=ids)
    assert values == pytest.approx([(1 + 1) / 2, (0.6 + 0) / 2, 0.0])


def test_similarity_weighs_early_places_more() -> None:
    assert place_weights(4) == (1.0, 0.75**2, 0.5**2, 0.25**2)
    text = np.zeros((6, 2), dtype=np.float32)
    text[1:] = (1, 0)
    ids = text.copy()
    weights = 1 + 0.75**2 + 0.5**2 + 0.25**2
    early, late = _outcome(["a", "x", "x", "x"]), _outcome(["x", "x", "x", "a"])
    first, last = mean_similarities([early, late], [2, 2], text_vectors=text, id_vectors=ids)
    assert (first, last) == (pytest.approx(1 / weights), pytest.approx(0.25**2 / weights))
    text[1] = (-1, 0)
    assert mean_similarities([_outcome(["a"])], [2], text_vectors=text, id_vectors=-ids)[0] >= 0.0


def test_likeness_does_not_depend_on_the_company() -> None:
    rng = np.random.default_rng(0)
    text, ids = rng.normal(size=(50, 384)).astype(np.float32), rng.normal(size=(50, 64)).astype(np.float32)
    rows, targets = rng.integers(1, 50, size=(70, 10)).tolist(), rng.integers(1, 50, size=70).tolist()
    together = likeness(rows, targets, text_vectors=text, id_vectors=ids)
    for row, target, values in zip(rows, targets, together, strict=True):
        alone = likeness([row], [target], text_vectors=text, id_vectors=ids)
        np.testing.assert_array_equal(alone[0], values)


def test_every_weight_switches_its_term() -> None:
    for term in TERMS:
        assert hasattr(RewardConfig(), term.weight_field)
        assert term.description
    assert CONFIG.terms("cold") == ("format", "invocation", "diversity")
    assert CONFIG.terms("rec") == ("format", "outcome", "similarity")
    assert "progress" in build_reward_config({"progress_weight": 1.0}).terms("rec")
    assert build_reward_config({"preset": "paper"}) == PRESETS["paper"]
    with pytest.raises(TypeError, match="preset"):
        build_reward_config(3)  # type: ignore[arg-type]
