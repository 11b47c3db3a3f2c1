"""The published rules, which read the response as text. Kept with their holes, for comparison (arXiv:2505.16810)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from deeprec_env.protocol import (
    ITEM_LIST_BEGIN,
    ITEM_LIST_END,
    PREFERENCE_BEGIN,
    PREFERENCE_END,
    RECOMMENDATION_BEGIN,
    RECOMMENDATION_END,
    THINK_BEGIN,
    THINK_END,
)
from deeprec_env.rewards.config import PRESETS, RewardConfig
from deeprec_env.rewards.outcome import hit_reward, likeness, place_weights
from deeprec_env.rewards.process import invocation_reward, mean_distance
from trm.data.catalog import PAD
from trm.types import FloatArray

_ECHOES = (
    "[user preference phrases, concatenated by ;]",
    "[Continue iterating through the process—reasoning before tool invocation,",
    "[recalled item",
    "[purchased item",
    " to recommend]\n",
)
_COUNTED = (
    PREFERENCE_BEGIN,
    PREFERENCE_END,
    ITEM_LIST_BEGIN,
    ITEM_LIST_BEGIN + "\n",
    ITEM_LIST_BEGIN + "\n1.",
    ITEM_LIST_END,
    ITEM_LIST_END + "\n",
)
"""What a well-formed response holds equally often."""
_INNER_NAMES = tuple(tag.strip("<|>") for tag in (PREFERENCE_BEGIN, PREFERENCE_END, ITEM_LIST_BEGIN, ITEM_LIST_END))
_ITEM_BLOCK = re.compile(re.escape(ITEM_LIST_BEGIN) + ".*?" + re.escape(ITEM_LIST_END), re.DOTALL)
_CJK = re.compile(r"[\u4e00-\u9fff]")


def preferences_of(response: str) -> list[str]:
    """Return the pieces from each preference begin to the next preference end, stripped."""
    return [piece.partition(PREFERENCE_END)[0].strip() for piece in response.split(PREFERENCE_BEGIN)[1:]]


def ranking_of(response: str) -> list[str]:
    """Return the lines between the last list begin and the next list end; [] without a list."""
    _, begin, rest = response.rpartition(RECOMMENDATION_BEGIN)
    return rest.partition(RECOMMENDATION_END)[0].strip().split("\n") if begin else []


def format_problem(response: str, n_calls: int, *, top_k: int) -> str | None:
    """Return the first of the published rules that a response breaks, in words; None if it is well-formed."""
    counts = [response.count(text) for text in _COUNTED]
    lines = ranking_of(response)
    answer = response.partition(THINK_END)[2]
    after_last_list = response.rpartition(ITEM_LIST_END)[2]
    rules = (
        (len(set(counts)) == 1, "the preference and item-list tags are not equally many"),
        (n_calls >= 1, "there is no retrieval"),
        (re.search("[Aa]ssistant", response) is None, 'it says "assistant"'),
        (not any(echo in response for echo in _ECHOES), "it echoes the template"),
        (THINK_BEGIN not in response, "thinking is opened again"),
        (response.count(THINK_END) == 1, "thinking is not closed exactly once"),
        (
            all(response.count(tag) == answer.count(tag) == 1 for tag in (RECOMMENDATION_BEGIN, RECOMMENDATION_END)),
            "there is not exactly one ranking after the thinking",
        ),
        (bool(after_last_list.partition(THINK_END)[0].strip()), "there is no reasoning before the thinking ends"),
        (len(lines) == top_k, f"the ranking has {len(lines)} lines instead of {top_k}"),
        (not any(name in line for name in _INNER_NAMES for line in lines), "the ranking holds a tag's name"),
        (_CJK.search(_ITEM_BLOCK.sub("", response)) is None, "it holds Chinese characters"),
    )
    return next((problem for holds, problem in rules if not holds), None)


def format_holds(response: str, n_calls: int, *, top_k: int) -> bool:
    """Return whether a response is well-formed by the published rules."""
    return format_problem(response, n_calls, top_k=top_k) is None


def hit_place(titles: Sequence[str], target_title: str, *, top_k: int) -> int:
    """Return the first place, from 1, whose title contains the target's; 0 without one."""
    return next((place for place, title in enumerate(titles[:top_k], start=1) if target_title in title), 0)


def title_of(line: str) -> str:
    """Return what follows the first ". ", or the whole line."""
    head, dot, tail = line.partition(". ")
    return tail.strip() if dot else head.strip()


def score_paper_response(
    response: str,
    n_calls: int,
    target_title: str,
    *,
    stage: str,
    row_by_title: Mapping[str, int],
    text_vectors: FloatArray,
    id_vectors: FloatArray,
    preference_vectors: Mapping[str, FloatArray],
    top_k: int = 10,
    config: RewardConfig = PRESETS["paper"],
) -> dict[str, float]:
    """Return outcome, format, similarity, invocation, diversity and their total.

    Args:
        response: all text after the prompt's last opened thinking block.
        n_calls: how many retrievals were made.
        target_title: the held-out item's title.
        stage: "cold" or "rec".
        row_by_title: lower-case title to its row in the vectors.
        text_vectors: float32 [num_items + 1, D], row 0 zeros.
        id_vectors: float32 [num_items + 1, d], row 0 zeros.
        preference_vectors: unit embeddings of `preferences_of(response)`; needed in stage "cold" only.
        top_k: lines that the list must have.
        config: weights.
    """
    text = response.strip()
    holds = format_holds(text, n_calls, top_k=top_k)
    scores = dict.fromkeys(("outcome", "format", "similarity", "invocation", "diversity"), 0.0)
    scores["format"] = 0.0 if holds else -config.format_penalty
    if stage == "cold":
        scores["invocation"] = invocation_reward(n_calls, config)
        scores["diversity"] = config.diversity_weight * mean_distance(
            [preference_vectors[p] for p in preferences_of(text)]
        )
    elif holds:
        titles = [title_of(line) for line in ranking_of(text)]
        scores["outcome"] = hit_reward(hit_place(titles, target_title, top_k=top_k), config)
        rows = [row_by_title.get(title.lower(), PAD) for title in titles]
        scores["similarity"] = _similarity(rows, row_by_title.get(target_title.lower(), PAD), text_vectors, id_vectors)
        scores["similarity"] *= config.similarity_weight
    scores["total"] = sum(scores.values())
    return scores


def _similarity(rows: Sequence[int], target: int, text_vectors: FloatArray, id_vectors: FloatArray) -> float:
    weights = place_weights(len(rows))
    values = likeness([rows], [target], text_vectors=text_vectors, id_vectors=id_vectors)[0].tolist()
    return sum(w * s for w, s in zip(weights, values, strict=True)) / sum(weights)
