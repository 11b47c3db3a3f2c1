"""An episode that a person plays in the terminal: what they type, and what it stands for.

The transcript goes to standard output, so that it can be kept; what is said to the person beside it is logged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from agents.base import first_titles, valid_text
from agents.cli.common import say
from deeprec_env.protocol import STOP_STRINGS, render_recommend, render_search
from deeprec_env.rendering import render_opening, render_turn

if TYPE_CHECKING:
    from deeprec_env.episode import Episode
    from deeprec_env.game import Game

logger = logging.getLogger(__name__)

HELP = f"""
/ and a preference searches:                    /slow noir; 1990s
= and places of the last list recommends them:  =3 1 7     (the rest follows as it was found)
Or write an action as a model does; it ends with the line that holds {" or ".join(STOP_STRINGS)},
or with an empty line."""


def play_by_hand(game: Game, user: int, split: str, *, colored: bool) -> Episode:
    """Play an episode by what is typed, print it, and return it, not ended if the input was at its end.

    Args:
        game: the rules and the world.
        user: a user index.
        split: whose target is looked for.
        colored: whether the transcript has colours.
    """
    episode = game.start(user, split)
    say(render_opening(episode, colored=colored))
    logger.info(HELP)
    while not episode.ended:
        action = _next_action(sys.stdin, lambda line: expand(line, game, episode))
        if action is None:
            logger.info("--- no more input; the episode was left")
            break
        game.step([episode], [valid_text(action)])
        say(render_turn(episode, len(episode.turns) - 1, colored=colored))
    return episode


def expand(line: str, game: Game, episode: Episode) -> str | None:
    """Return the action that a line with a "/" or "=" in front stands for; None for any other line.

    Raises:
        ValueError: if places are no places of the last list of candidates.
    """
    if line.startswith("/"):
        return render_search(line[1:].strip(), reasoning="I look for this.")
    if not line.startswith("="):
        return None
    last = next((turn.candidate_ids for turn in reversed(episode.turns) if turn.candidate_ids), ())
    words = line[1:].replace(",", " ").split()
    if not last or not all(word.isdecimal() and 1 <= int(word) <= len(last) for word in words):
        known = f"places of the last list, 1 to {len(last)}" if last else "a search before the recommendation"
        raise ValueError(f"expected {known}, got {line.strip()!r}")
    chosen = [last[int(word) - 1] for word in words]
    titles = first_titles(game.world.catalog, [*chosen, *last, *episode.pool], game.config.top_k)
    return render_recommend(titles, reasoning="I rank what I like best first.")


def _next_action(lines: Iterable[str], expanded: Callable[[str], str | None]) -> str | None:
    """Return the next action, which may be several lines; None if there are no more."""
    written: list[str] = []
    for line in lines:
        if not written:
            try:
                action = expanded(line)
            except ValueError as error:
                logger.info("%s", error)
                continue
            if action is not None:
                return action
        if not line.strip():
            return "".join(written)
        written.append(line)
        if any(stop in line for stop in STOP_STRINGS):
            break
    return "".join(written) if written else None
