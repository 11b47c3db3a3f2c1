"""The reward service: the original's `/reward`, for one stage, over the scorers of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from fastapi import FastAPI
from pydantic import BaseModel, Field

from deeprec_env.response_scores import RESPONSE_BEGIN, STRIPPED_TOKENS, ScoredText, response_of
from trm.batching import MicroBatcher
from trm.service import (
    REFUSALS,
    Count,
    Refusal,
    ServiceConfig,
    ServiceMetrics,
    UserId,
    build_service,
    refusing_overload,
    same_lengths,
)

MAX_TEXTS = 1024
"""Texts of one request at most."""
MAX_TEXT_CHARS = 1_000_000
MAX_SEARCHES = 1000

Transcript = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_TEXT_CHARS)]
NumSearches = Annotated[int, Field(strict=True, ge=0, le=MAX_SEARCHES)]


class RewardRequest(BaseModel):
    """The original contract: prompt and response of each episode as one text."""

    query_list: list[Transcript] = Field(max_length=MAX_TEXTS)
    idx_list: list[UserId] = Field(max_length=MAX_TEXTS)
    """Users by their number in the data set."""
    current_step: Count
    """The trainer's step; not used."""
    recall_num_list: list[NumSearches] = Field(max_length=MAX_TEXTS)
    """How many retrievals were made for each episode."""


class RewardAnswer(BaseModel):
    """Outcome, format, similarity, invocation and diversity of each text."""

    rewards: list[list[float]]


def build_reward_app(
    score: Callable[[Sequence[ScoredText]], list[list[float]]],
    config: ServiceConfig | None = None,
    *,
    user_of: Callable[[int], int | None],
    health: Mapping[str, object] | None = None,
    stripped_tokens: Sequence[str] = STRIPPED_TOKENS,
) -> FastAPI:
    """Return the reward service as an ASGI app.

    Args:
        score: such as `ResponseScorer.score`; called by one thread at a time.
        config: token and limits.
        user_of: the index of the user with this number; None if there is none.
        health: what /health says beside "ok".
        stripped_tokens: texts of padding and end tokens, dropped at both ends of a text.
    """
    metrics = ServiceMetrics()
    sizes = metrics.sizes("deeprec_batch_size", "Texts that were scored in one call")
    batcher: MicroBatcher[ScoredText, list[float]] = MicroBatcher(score, on_batch=sizes.observe)
    app = build_service(
        "DeepRec rewards",
        description="What a whole response is worth.",
        health=health or {},
        metrics=metrics,
        config=config or ServiceConfig(),
        on_start=batcher.start,
        on_stop=batcher.close,
    )

    @app.post("/reward", responses=REFUSALS)
    async def reward(request: RewardRequest) -> RewardAnswer:
        texts = _scored_texts(request, user_of, stripped_tokens)
        with refusing_overload():
            return RewardAnswer(rewards=await batcher.submit(texts))

    return app


def _scored_texts(
    request: RewardRequest, user_of: Callable[[int], int | None], stripped_tokens: Sequence[str]
) -> list[ScoredText]:
    same_lengths(query_list=request.query_list, idx_list=request.idx_list, recall_num_list=request.recall_num_list)
    texts = []
    for place, (query, idx, num) in enumerate(
        zip(request.query_list, request.idx_list, request.recall_num_list, strict=True)
    ):
        user = user_of(idx)
        if user is None:
            raise Refusal(f"idx_list[{place}]: expected the number of a user, got {idx}, which is nobody's")
        response = response_of(query, stripped=stripped_tokens)
        if response is None:
            raise Refusal(f"query_list[{place}]: expected a response after {RESPONSE_BEGIN!r}, got a text without it")
        texts.append(ScoredText(response, user, num))
    return texts
