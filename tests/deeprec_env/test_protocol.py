import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec_env import protocol
from deeprec_env.protocol import Malformed, Recommend, Search, parse_action, render_recommend, render_search

TEXT = st.text().map(protocol.neutralize)
PIECES = [*protocol.SPECIAL_TOKENS, "<|begin_of_", "think>", "<", "\n", "1. ", "a", " ", "é"]
TAGGED = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join)


@given(TEXT, TEXT)
def test_parse_of_rendered_search(preference: str, reasoning: str) -> None:
    expected = Search(preference.strip(), reasoning.strip())
    assert parse_action(render_search(preference, reasoning=reasoning)) == expected


@given(st.lists(st.text(), max_size=12), TEXT)
def test_parse_of_rendered_recommendation(titles: list[str], reasoning: str) -> None:
    shown = [protocol.display_item(title).title for title in titles]
    assert parse_action(render_recommend(shown, reasoning=reasoning)) == Recommend(tuple(shown), reasoning.strip())


@given(TAGGED)
def test_every_text_has_a_meaning(text: str) -> None:
    assert isinstance(parse_action(text), Search | Recommend | Malformed)


@given(TAGGED)
def test_neutralized_text_holds_no_tag(text: str) -> None:
    assert not any(tag in protocol.neutralize(text) for tag in protocol.SPECIAL_TOKENS)


SEARCH = "<|begin_of_preference|> a <|end_of_preference|>"
LIST = "<recommendation_list>\n1. a\n</recommendation_list>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_action"),
        ("just words", "no_action"),
        (SEARCH + " and more", "text_after_action"),
        (SEARCH + SEARCH, "preference_tags"),
        ("<|begin_of_preference|> a", "preference_tags"),
        ("<|end_of_preference|> a <|begin_of_preference|>", "preference_tags"),
        ("</think>" + SEARCH, "mixed_actions"),
        (SEARCH + "</think>" + LIST, "mixed_actions"),
        ("<think>" + SEARCH, "thinking_reopened"),
        ("<|begin_of_item_list|>\n1. a\n<|end_of_item_list|>" + SEARCH, "item_list_written"),
        (LIST, "thinking_not_closed"),
        ("</think></think>" + LIST, "thinking_not_closed"),
        (LIST + "</think>" + LIST, "thinking_not_closed"),
        ("ok </think>", "recommendation_tags"),
        ("ok </think>" + LIST + LIST, "recommendation_tags"),
        ("ok </think>" + LIST + " bye", "text_after_action"),
    ],
)
def test_reason_of_malformed_text(text: str, reason: str) -> None:
    assert parse_action(text) == Malformed(protocol.MalformedReason(reason))


def test_an_empty_preference_is_a_search() -> None:
    assert parse_action("<|begin_of_preference|>  <|end_of_preference|>") == Search("")


def test_numbers_of_titles_are_dropped_once() -> None:
    assert protocol.parse_titles("1. 12 Angry Men\n\n2) 2. Third\n3.10 to Yuma\nMr. Nobody") == [
        "12 Angry Men",
        "2. Third",
        "3.10 to Yuma",
        "Mr. Nobody",
    ]


def test_items_are_rendered_as_documented() -> None:
    items = [protocol.display_item("A\nB", "x, y"), protocol.display_item("<think>")]
    assert protocol.render_items(items) == "\n\n<|begin_of_item_list|>\n1. A B\n2. ‹think›\n<|end_of_item_list|>\n\n"
    assert "1. A B\n  - categories: x, y\n2. ‹think›\n" in protocol.render_items(items, show_attributes=True)
