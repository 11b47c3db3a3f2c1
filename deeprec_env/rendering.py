"""A readable transcript of an episode, plain (ansi) or coloured, with the rewards at the side."""

from __future__ import annotations

import re

from deeprec_env.episode import Episode, Turn
from deeprec_env.protocol import ActionKind

_RESET, _DIM, _BOLD, _GREEN, _RED, _CYAN = "\033[0m", "\033[2m", "\033[1m", "\033[32m", "\033[31m", "\033[36m"
_RULE = "│"
_SIDE = re.compile(rf"^[ \d.+-]{{7}} {_RULE} ", re.MULTILINE)
_COLOR = re.compile(r"\x1b\[\d+m")
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421, 0x9B: 0x241B}
"""Pictures of the control characters, which in a text of a model or a title could command the terminal."""


def render_transcript(episode: Episode, *, colored: bool = False) -> str:
    """Return the whole episode so far: prompt, turns, and how it ended."""
    parts = [render_opening(episode, colored=colored)]
    parts += [render_turn(episode, turn_index, colored=colored) for turn_index in range(len(episode.turns))]
    return "\n".join(parts)


def render_opening(episode: Episode, *, colored: bool = False) -> str:
    """Return the heading and the prompt."""
    heading = f"--- user {episode.user_id} ({episode.split}) ---"
    return f"{_paint(heading, _BOLD, colored=colored)}\n{_paint(episode.prompt.rstrip(), _DIM, colored=colored)}"


def render_turn(episode: Episode, turn_index: int, *, colored: bool = False) -> str:
    """Return one turn with its reward, in colour also at its side, and the episode's end if it is the last."""
    turn = episode.turns[turn_index]
    body = _paint(turn.action.strip(), _RED if turn.malformed_reason else _GREEN, colored=colored)
    if turn.observation:
        body += "\n" + _paint(turn.observation.strip(), _CYAN, colored=colored)
    lines = [_paint(_margin(turn_index, turn), _BOLD, colored=colored)]
    lines.append(_beside(turn.reward, body) if colored else body)
    if episode.ended and turn_index == len(episode.turns) - 1:
        lines.append(_paint(_ending(episode, turn), _BOLD, colored=colored))
    return "\n".join(lines)


def _beside(reward: float, text: str) -> str:
    """Return the text with the reward at the side of its first line and a rule along the others."""
    color = _GREEN if reward > 0 else _RED if reward < 0 else _DIM
    first = _paint(f"{reward:+7.3f}", color, colored=True)
    sides = [first, *[" " * 7] * text.count("\n")]
    return "\n".join(f"{side} {_RULE} {line}" for side, line in zip(sides, text.split("\n"), strict=True))


def without_side(text: str) -> str:
    """Return a coloured transcript's text without colours and without what stands at its side."""
    return _SIDE.sub("", _COLOR.sub("", text))


def _margin(turn_index: int, turn: Turn) -> str:
    terms = ", ".join(f"{name} {amount:+.3f}" for name, amount in turn.reward_terms.items() if amount)
    return f"--- turn {turn_index + 1}: {turn.kind} | reward {turn.reward:+.3f}" + (f" ({terms})" if terms else "")


def _ending(episode: Episode, turn: Turn) -> str:
    if turn.malformed_reason is not None:
        how = f"{'truncated' if episode.truncated else 'malformed'}: {turn.malformed_reason}"
    elif turn.kind is ActionKind.RECOMMEND and episode.outcome is not None and episode.outcome.hit_rank:
        how = f"the target is at place {episode.outcome.hit_rank}"
    else:
        how = "the target is not in the ranking"
    return f"--- end: {how} | total reward {episode.reward:+.3f}"


def _paint(text: str, code: str, *, colored: bool) -> str:
    """Return the text in a colour, line by line, so that what is put before a line keeps its own."""
    if not colored:
        return text
    return "\n".join(f"{code}{line}{_RESET}" for line in text.translate(_CONTROLS).split("\n"))
