"""Episodes again from what was kept of them: saved turns, or the text of a transcript. Asks no recommender.

The game itself is played, with the recorded candidates; nothing here knows how a reward comes about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deeprec_env.config import GameConfig
from deeprec_env.episode import Episode
from deeprec_env.errors import DeepRecError
from deeprec_env.game import Game
from deeprec_env.protocol import ITEM_LIST_BEGIN, ITEM_LIST_END, THINK_BEGIN, parse_titles
from deeprec_env.recorded import RecordedRetriever, recorded_world
from deeprec_env.rendering import without_side
from deeprec_env.world import World

SavedTurn = tuple[str, tuple[int, ...]]
"""An action and the candidates that it got, best first."""

_RESPONSE_BEGIN = f"Assistant:\n{THINK_BEGIN}"
_ITEM_BLOCK = re.compile(rf"\n*{re.escape(ITEM_LIST_BEGIN)}\n(.*?){re.escape(ITEM_LIST_END)}\n*", re.DOTALL)
_MARGIN = re.compile(r"^--- .*\n?", re.MULTILINE)
_HEADING = re.compile(r"^--- user (?P<user>.*) \((?P<split>train|valid|test)\) ---$", re.MULTILINE)


class NotThisEpisode(DeepRecError):
    """What was saved is no episode by these rules over these data."""


@dataclass(frozen=True, slots=True)
class TranscriptText:
    """What the text of an episode says."""

    response: str
    """All text after the prompt."""
    user_id: str | None
    split: str | None
    """Where the text is one that `deeprec play` printed; None in a bare one."""


class Replayer:
    """Plays saved episodes of one world again, by any rules."""

    def __init__(self, world: World, config: GameConfig) -> None:
        """Bind world and rules; the world's recommender is not asked."""
        self._retriever = RecordedRetriever()
        self.game = Game(recorded_world(world, self._retriever), config)

    def replay(self, user_index: int, split: str, turns: Sequence[SavedTurn]) -> Episode:
        """Return the episode that the turns make.

        Raises:
            NotThisEpisode: if they do not fit: one stands after the end, or a search has no answer.
            ValueError: if there is no such user or split.
        """
        episode = self.game.start(user_index, split)
        for place, (action, candidate_ids) in enumerate(turns):
            if episode.ended:
                raise NotThisEpisode(f"expected the episode to end after turn {place}, got {len(turns)} turns")
            self._retriever.load([candidate_ids])
            (result,) = self.game.step([episode], [action])
            searched = result.info["candidate_ids"]
            if tuple(candidate_ids) != searched:
                raise NotThisEpisode(
                    f"expected candidates for a search only, got {len(candidate_ids)} in turn {place + 1}, which is "
                    f"{result.info['action_kind']}"
                )
        return episode

    def turns_of(self, response: str) -> list[SavedTurn]:
        """Return the turns of a response as text; titles become ids, of items that share one the lowest."""
        turns: list[SavedTurn] = []
        start = 0
        for block in _ITEM_BLOCK.finditer(response):
            turns.append((response[start : block.start()], self._ids(block[1])))
            start = block.end()
        return [*turns, (rest, ())] if (rest := response[start:]).strip() else turns

    def _ids(self, block: str) -> tuple[int, ...]:
        titles = parse_titles("\n".join(line for line in block.split("\n") if not line.startswith(" ")))
        found = [self.game.world.find(title) for title in titles]
        if missing := [title for title, ids in zip(titles, found, strict=True) if not ids]:
            raise NotThisEpisode(f"expected titles of {self.game.world.name}, got {missing[0]!r}; name the data set")
        return tuple(dict.fromkeys(ids[0] for ids in found))


def read_transcript(text: str) -> TranscriptText:
    """Return what a transcript says: one that `deeprec play` printed, prompt and response, or a response alone."""
    text = without_side(text)
    heading = _HEADING.search(text)
    response = text.partition(_RESPONSE_BEGIN)[2].removeprefix("\n") or text
    response = _MARGIN.sub("", response) if heading else response
    return TranscriptText(response, heading and heading["user"], heading and heading["split"])
