"""The preset `paper` against figures that were computed with the original code."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from deeprec_env.rewards.paper import preferences_of, score_paper_response

FOLDER = Path(os.environ.get("DEEPREC_GOLDEN") or Path(__file__).parents[2] / "golden")
GOLDEN = json.loads((FOLDER / "rewards_paper.json").read_text(encoding="utf-8"))
ITEMS = GOLDEN["items"]


def _rows(field: str) -> np.ndarray:
    rows = np.zeros((len(ITEMS) + 1, len(ITEMS[0][field])))
    for item in ITEMS:
        rows[item["id"]] = item[field]
    return rows


def test_there_are_64_cases() -> None:
    assert len(GOLDEN["cases"]) == 64


@pytest.mark.parametrize("stage", ["cold", "rec"])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_paper_scores_as_the_original(case: dict, stage: str) -> None:
    vectors = {text: np.array(vector) for text, vector in GOLDEN["preference_embeddings"].items()}
    scores = score_paper_response(
        case["response"],
        case["n_calls"],
        case["target_title"],
        stage=stage,
        row_by_title={item["title"].lower(): item["id"] for item in ITEMS},
        text_vectors=_rows("text_embedding"),
        id_vectors=_rows("item_embedding"),
        preference_vectors=vectors,
        top_k=GOLDEN["config"]["top_k"],
    )
    assert scores == pytest.approx(case["expected"][stage], abs=1e-6)


def test_preferences_end_where_the_next_begins() -> None:
    text = "<|begin_of_preference|> a <|begin_of_preference|> b <|end_of_preference|> c"
    assert preferences_of(text) == ["a", "b"]
