"""The small world of the tests as a retrieval service, and what a client of the original sends."""

from __future__ import annotations

from typing import Any

from deeprec_env.world import World, load_world
from trm.server import RecallWorld


def sample_world() -> World:
    """Return the data set that the package carries: 300 items, 400 users, neither torch nor a network."""
    return load_world("sample")


def history(world: World, user: int, split: str = "train") -> tuple[int, ...]:
    """Return what a user has chosen before the target."""
    example = world.splits.example(split, user)  # type: ignore[arg-type]
    return tuple(item_id for item_id in example.history if item_id != example.target)


def recall_world(world: World, **changes: Any) -> RecallWorld:
    """Return the world as it is served."""
    parts: dict[str, Any] = {
        "retriever": world.retriever,
        "history_of": lambda user: history(world, user) if user < world.splits.num_users else None,
        "item_texts": ["", *(world.catalog.title(i) for i in range(1, world.catalog.num_items + 1))],
    }
    return RecallWorld(**{**parts, **changes})


def recall_request(**changes: Any) -> dict[str, Any]:
    """Return a request of the original contract for two users."""
    request: dict[str, Any] = {
        "idx_list": [0, 3],
        "preference_list": ["slow mysteries", "bright comedies"],
        "current_step": 1,
        "recall_num_list": [0, 1],
        "k": 5,
    }
    return {**request, **changes}
