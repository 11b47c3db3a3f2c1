"""What a whole response is worth when it comes as text, after the fact: the rewards of the game, without playing it.

By the preset `paper` the text itself is scored. By `strict` the game is played again from it: what the environment
wrote between the item-list tags stands for what the recommender returned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from deeprec_env.config import GameConfig
from deeprec_env.game import Game
from deeprec_env.protocol import ITEM_LIST_BEGIN, ITEM_LIST_END, THINK_BEGIN, parse_titles
from deeprec_env.rewards.paper import preferences_of, score_paper_response
from deeprec_env.world import World
from trm.types import Candidates, RetrievalQuery

SCORE_NAMES = ("outcome", "format", "similarity", "invocation", "diversity")
"""The order of the original contract."""
RESPONSE_BEGIN = f"\nAssistant:\n{THINK_BEGIN}"
"""What stands before a response; the last one counts."""
STRIPPED_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|pad|>", "<|end_of_text|>", "<pad>", "<s>", "</s>")
"""Texts of padding and end tokens of common tokenizers and of ours."""

_ITEM_BLOCK = re.compile(rf"\n*{re.escape(ITEM_LIST_BEGIN)}(.*?){re.escape(ITEM_LIST_END)}\n*", re.DOTALL)


class ScoredText(NamedTuple):
    """A response and what must be known of it."""

    response: str
    """All text after the opened thinking block of the prompt."""
    user_index: int
    num_searches: int
    """How many retrievals were made for it."""


def response_of(text: str, *, stripped: Sequence[str] = STRIPPED_TOKENS) -> str | None:
    """Return the response within prompt + response; None if there is no beginning of one.

    Args:
        text: may be padded on both sides.
        stripped: texts of tokens that are dropped at both ends.
    """
    tokens = [token for token in stripped if token]
    while token := next((token for token in tokens if text.startswith(token)), None):
        text = text.removeprefix(token)
    while token := next((token for token in tokens if text.endswith(token)), None):
        text = text.removesuffix(token)
    _, begin, response = text.rpartition(RESPONSE_BEGIN)
    return response if begin else None


class ResponseScorer:
    """Scores responses of one world, stage and split. Not for several threads at a time."""

    def __init__(
        self, world: World, *, stage: str, reward: str = "paper", split: str = "train", top_k: int = 10
    ) -> None:
        """Bind world and rules.

        Args:
            world: catalogue, users, vectors and text encoder; its recommender is not asked.
            stage: "cold" or "rec".
            reward: "paper", or "strict" or any other preset of strict rules.
            split: whose held-out item is the target.
            top_k: titles in the final ranking.

        Raises:
            ValueError: if a name is unknown.
        """
        self._retriever = _WrittenCandidates()
        written = World(
            world.name,
            world.catalog,
            world.splits,
            retriever=self._retriever,
            encoder=world.encoder,
            item_text_vectors=world.item_text_vectors,
            item_id_vectors=world.item_id_vectors,
        )
        self._game = Game(written, GameConfig(stage=stage, reward=reward, top_k=top_k))
        self._split = split
        self._game.start(0, split)  # refuses an unknown split now

    def score(self, texts: Sequence[ScoredText]) -> list[list[float]]:
        """Return the scores of each response, in the order of SCORE_NAMES.

        Raises:
            ValueError: if there is no such user.
        """
        if self._game.config.rewards.rules == "paper":
            return self._paper_scores(texts)
        return [self._played_scores(text) for text in texts]

    def _paper_scores(self, texts: Sequence[ScoredText]) -> list[list[float]]:
        config, world = self._game.config, self._game.world
        preferences: list[str] = []
        if config.stage == "cold":
            preferences = list(dict.fromkeys(p for text in texts for p in preferences_of(text.response.strip())))
        vectors = dict(zip(preferences, world.encoder.encode(preferences), strict=True)) if preferences else {}
        scores = (
            score_paper_response(
                text.response,
                text.num_searches,
                world.display(self._game.start(text.user_index, self._split).target).title,
                stage=config.stage,
                row_by_title=world.row_by_lower_title,
                text_vectors=world.item_text_vectors,
                id_vectors=world.item_id_vectors,
                preference_vectors=vectors,
                top_k=config.top_k,
                config=config.rewards,
            )
            for text in texts
        )
        return [[found[name] for name in SCORE_NAMES] for found in scores]

    def _played_scores(self, text: ScoredText) -> list[float]:
        episode = self._game.start(text.user_index, self._split)
        blocks = list(_ITEM_BLOCK.finditer(text.response))
        if len(blocks) != text.num_searches:
            blocks = []  # the policy wrote a list itself, or one is cut short: one malformed turn
        start = 0
        for block in blocks:
            if not episode.ended:
                self._retriever.ids = self._ids_of(block[1])
                self._game.step([episode], [text.response[start : block.start()]])
                start = block.end()
        self._retriever.ids = ()
        if not episode.ended:
            self._game.step([episode], [text.response[start:]])
        if not episode.ended:  # the last turn was a search, and nothing came after it
            self._game.step([episode], [""])
        return [episode.paid.get(name, 0.0) for name in SCORE_NAMES]

    def _ids_of(self, block: str) -> tuple[int, ...]:
        """Return the items of an item list; attribute lines are indented."""
        titles = parse_titles("\n".join(line for line in block.split("\n") if not line.startswith(" ")))
        return tuple(dict.fromkeys(item_id for title in titles for item_id in self._game.world.find(title)))


class _WrittenCandidates:
    """Answers every query with the ids that were read from the text."""

    ids: tuple[int, ...] = ()

    def retrieve(self, queries: Sequence[RetrievalQuery]) -> list[Candidates]:
        return [Candidates(self.ids, (0.0,) * len(self.ids)) for _ in queries]
