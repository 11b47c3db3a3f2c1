"""The tags of the game: the only module that knows them. Texts to actions, actions and items to texts.

It knows nothing of episodes, rewards or catalogues.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

THINK_BEGIN, THINK_END = "<think>", "</think>"
PREFERENCE_BEGIN, PREFERENCE_END = "<|begin_of_preference|>", "<|end_of_preference|>"
ITEM_LIST_BEGIN, ITEM_LIST_END = "<|begin_of_item_list|>", "<|end_of_item_list|>"
RECOMMENDATION_BEGIN, RECOMMENDATION_END = "<recommendation_list>", "</recommendation_list>"

SPECIAL_TOKENS: tuple[str, ...] = (
    THINK_BEGIN,
    THINK_END,
    PREFERENCE_BEGIN,
    PREFERENCE_END,
    ITEM_LIST_BEGIN,
    ITEM_LIST_END,
    RECOMMENDATION_BEGIN,
    RECOMMENDATION_END,
)
"""All tags; a tokenizer trained for the game keeps each as one token."""
STOP_STRINGS: tuple[str, ...] = (PREFERENCE_END, RECOMMENDATION_END)
"""Where an engine ends a turn. The tag itself is sampled and kept."""

_ANY_TAG = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
_NUMBER = re.compile(r"\s*\d{1,3}[.)]\s+")
_UNTITLED = "(untitled)"


class ActionKind(StrEnum):
    """What an action turned out to be."""

    SEARCH = "search"
    RECOMMEND = "recommend"
    MALFORMED = "malformed"


class MalformedReason(StrEnum):
    """Why an action, or the way an episode ended, is not well-formed."""

    NO_ACTION = "no_action"
    """Neither a preference nor a recommendation list."""
    ITEM_LIST_WRITTEN = "item_list_written"
    """The policy wrote an item-list tag, which only the environment may."""
    THINKING_REOPENED = "thinking_reopened"
    """A second thinking block; the prompt has opened the only one."""
    MIXED_ACTIONS = "mixed_actions"
    """A preference beside the end of thinking or a recommendation list."""
    PREFERENCE_TAGS = "preference_tags"
    """Not exactly one preference, opened and then closed."""
    THINKING_NOT_CLOSED = "thinking_not_closed"
    """Not exactly one end of thinking before the recommendation list."""
    RECOMMENDATION_TAGS = "recommendation_tags"
    """Not exactly one recommendation list, opened and then closed."""
    TEXT_AFTER_ACTION = "text_after_action"
    """Something but white space after the closing tag."""
    NUM_TITLES = "num_titles"
    """The list does not hold exactly top_k titles."""
    NO_SEARCH = "no_search"
    """A recommendation without a single search before it."""
    NO_REASONING = "no_reasoning"
    """Nothing was written between the last item list and the end of thinking."""
    SEARCH_BUDGET = "search_budget"
    """More than max_turns searches."""
    TEXT_BUDGET = "text_budget"
    """More text than max_action_chars or max_episode_chars."""
    TURN_TOKENS = "turn_tokens"
    """The policy's tokens for a turn were used up before it had acted; see CutAction."""
    EPISODE_TOKENS = "episode_tokens"
    """The policy's tokens for the whole episode were used up before it had acted; see CutAction."""


@dataclass(frozen=True, slots=True)
class Search:
    """A call of the recommender with a preference."""

    preference: str
    """Stripped; "" asks for the recommender's own order."""
    reasoning: str = ""
    """What stands before the preference, stripped."""


@dataclass(frozen=True, slots=True)
class Recommend:
    """The final ranking."""

    titles: tuple[str, ...]
    """One a non-blank line, best first, numbers dropped."""
    reasoning: str = ""
    """What stands before the end of thinking, stripped."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Anything else."""

    reason: MalformedReason


Action = Search | Recommend | Malformed


class DisplayItem(NamedTuple):
    """An item as the policy reads it. Build it by `display_item`, which makes it safe to show."""

    title: str
    attributes: str = ""


class CutAction(str):
    """The text of a turn that a limit on the policy's tokens cut off: whoever samples knows of it, the text does not.

    It is played as any other text is, but truncates the episode instead of terminating it.
    """

    reason: MalformedReason

    def __new__(cls, text: str, reason: MalformedReason) -> CutAction:
        """Return the text, TURN_TOKENS or EPISODE_TOKENS being the reason."""
        action = super().__new__(cls, text)
        action.reason = reason
        return action

    def __getnewargs__(self) -> tuple[str, MalformedReason]:  # type: ignore[override]
        """Return what copies and pickles are made from."""
        return str(self), self.reason


def neutralize(text: str) -> str:
    """Return the text with every tag in it made harmless (its angle brackets become ‹ and ›)."""
    if "<" not in text:
        return text
    return _ANY_TAG.sub(lambda match: "‹" + match.group()[1:-1] + "›", text)


def one_line(text: str) -> str:
    """Return the text neutralised, on one line, white space folded."""
    return neutralize(" ".join(text.split()))


def display_item(title: str, attributes: str = "") -> DisplayItem:
    """Return an item whose texts hold neither tags nor line breaks, and whose title is not blank."""
    return DisplayItem(one_line(title) or _UNTITLED, one_line(attributes))


def parse_action(text: str) -> Action:
    """Return what the text of one turn means. Total: every text has a meaning, none raises."""
    if ITEM_LIST_BEGIN in text or ITEM_LIST_END in text:
        return Malformed(MalformedReason.ITEM_LIST_WRITTEN)
    if THINK_BEGIN in text:
        return Malformed(MalformedReason.THINKING_REOPENED)
    has_preference = PREFERENCE_BEGIN in text or PREFERENCE_END in text
    has_list = RECOMMENDATION_BEGIN in text or RECOMMENDATION_END in text or THINK_END in text
    if has_preference and has_list:
        return Malformed(MalformedReason.MIXED_ACTIONS)
    if has_preference:
        return _parse_search(text)
    if has_list:
        return _parse_recommend(text)
    return Malformed(MalformedReason.NO_ACTION)


def _parse_search(text: str) -> Search | Malformed:
    inner = _between(text, PREFERENCE_BEGIN, PREFERENCE_END)
    if inner is None:
        return Malformed(MalformedReason.PREFERENCE_TAGS)
    before, preference, after = inner
    if after.strip():
        return Malformed(MalformedReason.TEXT_AFTER_ACTION)
    return Search(preference.strip(), before.strip())


def _parse_recommend(text: str) -> Recommend | Malformed:
    if text.count(THINK_END) != 1:
        return Malformed(MalformedReason.THINKING_NOT_CLOSED)
    reasoning, _, rest = text.partition(THINK_END)
    if RECOMMENDATION_BEGIN in reasoning or RECOMMENDATION_END in reasoning:
        return Malformed(MalformedReason.THINKING_NOT_CLOSED)
    inner = _between(rest, RECOMMENDATION_BEGIN, RECOMMENDATION_END)
    if inner is None:
        return Malformed(MalformedReason.RECOMMENDATION_TAGS)
    _, body, after = inner
    if after.strip():
        return Malformed(MalformedReason.TEXT_AFTER_ACTION)
    return Recommend(tuple(parse_titles(body)), reasoning.strip())


def _between(text: str, begin: str, end: str) -> tuple[str, str, str] | None:
    """Return what stands before, within and after the only pair of tags; None if it is not one pair in order."""
    if text.count(begin) != 1 or text.count(end) != 1:
        return None
    before, _, rest = text.partition(begin)
    if end in before:
        return None
    inner, _, after = rest.partition(end)
    return before, inner, after


def parse_titles(body: str) -> list[str]:
    """Return the titles of a list, one a non-blank line, without their numbers."""
    return [_NUMBER.sub("", line, count=1).strip() for line in body.split("\n") if line.strip()]


def render_search(preference: str, *, reasoning: str = "") -> str:
    """Return the action text of a search; tags in the arguments are neutralised."""
    lead = f"{neutralize(reasoning)}\n" if reasoning else ""
    return f"{lead}{PREFERENCE_BEGIN} {neutralize(preference)} {PREFERENCE_END}"


def render_recommend(titles: Sequence[str], *, reasoning: str) -> str:
    """Return the action text of a recommendation; tags and line breaks in the titles are neutralised."""
    lines = "\n".join(f"{place}. {one_line(title)}" for place, title in enumerate(titles, start=1))
    return f"{neutralize(reasoning)}\n{THINK_END}\n{RECOMMENDATION_BEGIN}\n{lines}\n{RECOMMENDATION_END}"


def render_item(item: DisplayItem) -> str:
    """Return the item's title, and on a second line its attributes if it has any."""
    return f"{item.title}\n  - categories: {item.attributes}" if item.attributes else item.title


def render_items(items: Sequence[DisplayItem], *, show_attributes: bool = False) -> str:
    """Return the observation after a search: the numbered items between their tags, blank lines around."""
    texts = [render_item(item) if show_attributes else item.title for item in items]
    lines = [f"{place}. {text}\n" for place, text in enumerate(texts, start=1)]
    return f"\n\n{ITEM_LIST_BEGIN}\n{''.join(lines)}{ITEM_LIST_END}\n\n"
