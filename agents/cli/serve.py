"""`deeprec serve recall` and `deeprec serve reward`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import subcommand

from agents.cli.common import dataset_ref, say

if TYPE_CHECKING:
    from deeprec_env.world import World
    from trm.server import RecallWorld
    from trm.service import ServiceConfig

logger = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServedData:
    """What is served and where. If the environment variable DEEPREC_TOKEN is set, requests must carry that token."""

    dataset: str = "ml-100k"
    """A data set: sample (which needs no preparation), or any that `deeprec prepare` takes."""
    category: str | None = None
    """The category of the Amazon reviews, e.g. Video_Games."""
    split: Literal["train", "valid", "test"] = "train"
    """Whose held-out item a user's history ends before."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 lets other machines in."""


@dataclass(frozen=True)
class RecallServer:
    """The retrieval server: POST /recall as the original, /retrieve and /ranks for --retriever, /health, /metrics."""

    data: Annotated[ServedData, tyro.conf.arg(name="")] = field(default_factory=ServedData)
    port: int = 6001
    """The port."""
    exclude_history: bool = True
    """Whether /recall leaves out what the user has chosen already; the original leaves it in."""
    max_wait_ms: float = 2.0
    """How long a request waits for others that share its call of the recommender."""
    record: Path | None = None
    """Keep every retrieval in this file."""
    replay: Path | None = None
    """Answer every retrieval from this file, without a recommender, and refuse (404) what is not in it."""

    def run(self) -> None:
        """Serve until a signal to end."""
        from trm.retrievers import source_of

        world = _load(self.data, source_of(retriever=None, record=self.record, replay=self.replay))
        from trm.server import build_recall_app
        from trm.service import run_service

        config = _config(self.data, self.port)
        app = build_recall_app(
            recall_world(world, self.data.split),
            config,
            exclude_history=self.exclude_history,
            max_wait_s=self.max_wait_ms / 1000,
        )
        _announce("retrieval", world, self.data, config)
        run_service(app, config)


@dataclass(frozen=True)
class RewardServer:
    """The reward server of one stage: POST /reward (the original's), GET /health, /metrics."""

    data: Annotated[ServedData, tyro.conf.arg(name="")] = field(default_factory=ServedData)
    stage: Literal["cold", "rec"] = "rec"
    """What the reward pays for: searching (cold) or the final ranking (rec)."""
    reward: Literal["paper", "strict"] = "paper"
    """The published rules, or the project's own, which play the game again from the text."""
    port: int = 5001
    """The port."""
    strip_tokens: str | None = None
    """Texts of padding and end tokens, separated by spaces; by default those of common tokenizers."""

    def run(self) -> None:
        """Serve until a signal to end."""
        world = _load(self.data)
        from deeprec_env.response_scores import STRIPPED_TOKENS, ResponseScorer
        from deeprec_env.reward_server import build_reward_app
        from trm.service import run_service

        config = _config(self.data, self.port, max_body_bytes=64 * 2**20)
        scorer = ResponseScorer(world, stage=self.stage, reward=self.reward, split=self.data.split)
        app = build_reward_app(
            scorer.score,
            config,
            user_of=user_finder(world),
            health={**_health(world, self.data.split), "stage": self.stage, "reward": self.reward},
            stripped_tokens=STRIPPED_TOKENS if self.strip_tokens is None else self.strip_tokens.split(),
        )
        _announce(f"rewards ({self.reward}, stage {self.stage})", world, self.data, config)
        run_service(app, config)


@dataclass(frozen=True)
class Serve:
    """Serve retrieval or rewards over HTTP, by the original's contracts."""

    service: Annotated[
        Annotated[RecallServer, subcommand("recall", prefix_name=False)]
        | Annotated[RewardServer, subcommand("reward", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Serve until a signal to end."""
        self.service.run()


def recall_world(world: World, split: str) -> RecallWorld:
    """Return the world as the retrieval service shows it: users by number, items as text."""
    from deeprec_env.game import Game
    from deeprec_env.protocol import render_item
    from trm.server import RecallWorld
    from trm.types import RankingRetriever

    game, user_of = Game(world), user_finder(world)

    @lru_cache(maxsize=200_000)
    def history_of(number: int) -> tuple[int, ...] | None:
        user = user_of(number)
        return None if user is None else game.start(user, split).history

    retriever, encoder = world.retriever, world.encoder
    if not isinstance(retriever, RankingRetriever):
        raise ValueError(f"expected a recommender that ranks, got {type(retriever).__name__}")
    counts = hasattr(encoder, "num_encoded") and hasattr(retriever, "num_encoded_histories")
    return RecallWorld(
        retriever=retriever,
        history_of=history_of,
        item_texts=["", *(render_item(world.display(i)) for i in range(1, world.catalog.num_items + 1))],
        health=_health(world, split),
        cache_misses=(lambda: (encoder.num_encoded, retriever.num_encoded_histories)) if counts else None,  # type: ignore[attr-defined]
    )


def user_finder(world: World) -> Callable[[int], int | None]:
    """Return the function from a user's number (see `user_numbers`) to its index; None where there is none."""
    from trm.data.user_numbers import user_numbers

    return {number: index for index, number in enumerate(user_numbers(world.splits.user_ids))}.get


def _load(data: ServedData, source: str | None = None) -> World:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the services need more packages ({error}); run: pip install 'deeprec-env[serve]'") from error
    from deeprec_env.world import RETRIEVER_VARIABLE, load_world

    os.environ.pop(RETRIEVER_VARIABLE, None)  # a server is where retrieval ends
    dataset_ref(data.dataset, data.category)  # refuses a category where there is none, before anything is loaded
    return load_world(data.dataset, category=data.category, retriever=source)


def _config(data: ServedData, port: int, *, max_body_bytes: int = 8 * 2**20) -> ServiceConfig:
    from trm.retrievers import TOKEN_VARIABLE, service_token
    from trm.service import ServiceConfig

    if not 0 <= port < 2**16:
        raise ValueError(f"--port must be within 0 and {2**16 - 1}, got {port}")
    token = service_token()
    if token is None and data.host not in _LOOPBACK:
        logger.warning("%s is open to other machines without a token; set %s to ask for one", data.host, TOKEN_VARIABLE)
    return ServiceConfig(host=data.host, port=port, token=token, max_body_bytes=max_body_bytes)


def _health(world: World, split: str) -> dict[str, object]:
    num_users = world.splits.num_users
    return {"dataset": world.name, "split": split, "num_users": num_users, "recommender": world.fingerprint}


def _announce(what: str, world: World, data: ServedData, config: ServiceConfig) -> None:
    say(
        f"{what} of {world.name}, split {data.split}: {world.catalog.num_items} items, {world.splits.num_users} users; "
        f"http://{config.host}:{config.port} (Ctrl-C ends it)"
    )
