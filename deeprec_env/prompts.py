"""The wording of the prompt. The tags come from `protocol`; placeholders stand in words, never in brackets."""

from __future__ import annotations

from collections.abc import Sequence

from deeprec_env import protocol
from deeprec_env.protocol import DisplayItem

PROMPT_STYLES = ("full", "compact")

_FULL = """User:
You recommend items to a person whose past choices you know. You have a search tool: it knows these choices too, reads \
a preference in words, and answers with the items that fit both best.

Work in turns. In each turn think about what the person may want next, then do one of two things.
To search, write a preference between {pb} and {pe}: a few short phrases, separated by semicolons. The results \
follow between {ib} and {ie}; they are written for you, never write them yourself. Search several times, each time for \
another side of the person's taste, and read what comes back.
To finish, say in a sentence how you rank what you have seen, close your thinking with {te}, and write {rb}, then \
exactly {top_k} different titles from the results, the likeliest next choice first, one numbered title a line, spelled \
as in the results, then {re}.

The person's past choices, oldest first:
{history}

Assistant:
{tb}
"""

_COMPACT = """User:
{history}
Search by {pb}, then rank {top_k} titles.

Assistant:
{tb}
"""


def render_prompt(
    history_items: Sequence[DisplayItem], *, top_k: int, style: str = "full", max_history: int = 20
) -> str:
    r"""Return the prompt, which ends in the opened thinking block and a line break.

    Args:
        history_items: oldest first; only the last max_history are shown.
        top_k: how many titles the final ranking must hold.
        style: one of PROMPT_STYLES.
        max_history: at least 1.
    """
    shown = history_items[-max_history:]
    separator = " | " if style == "compact" else "\n  - categories: "
    history = "\n".join(
        f"{place}. {item.title}{separator}{item.attributes}" if item.attributes else f"{place}. {item.title}"
        for place, item in enumerate(shown, start=1)
    )
    template = _COMPACT if style == "compact" else _FULL
    return template.format(
        history=history or "(none)",
        top_k=top_k,
        tb=protocol.THINK_BEGIN,
        te=protocol.THINK_END,
        pb=protocol.PREFERENCE_BEGIN,
        pe=protocol.PREFERENCE_END,
        ib=protocol.ITEM_LIST_BEGIN,
        ie=protocol.ITEM_LIST_END,
        rb=protocol.RECOMMENDATION_BEGIN,
        re=protocol.RECOMMENDATION_END,
    )
