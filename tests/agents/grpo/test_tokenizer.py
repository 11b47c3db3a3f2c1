from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from agents.grpo.generation.stops import turn_stops
from agents.grpo.tokenizer import decode, encode, stop_token_ids, train_tokenizer
from deeprec_env.protocol import PREFERENCE_END, RECOMMENDATION_END, SPECIAL_TOKENS, display_item, render_items

TITLES = ["Fargo (1996)", "Pokémon", "漢字 (1990)", "The Good; The Bad (1966)"]
TEXT = "User:\n1. Fargo (1996) | Crime, Drama; 1990s\n2. Pokémon\nSearch.\n<think>\n"
TOKENIZER = train_tokenizer([TEXT] * 5, titles=TITLES, vocab_size=400)
MIXED = st.lists(st.one_of(st.text(max_size=12), st.sampled_from([*SPECIAL_TOKENS, *TITLES, "\n1. "])), max_size=8)


@settings(deadline=None)
@given(MIXED)
def test_any_text_survives(parts: list[str]) -> None:
    text = "".join(parts)
    assert decode(TOKENIZER, encode(TOKENIZER, text)) == text


def test_every_tag_is_one_token() -> None:
    for tag in SPECIAL_TOKENS:
        assert len(encode(TOKENIZER, tag)) == 1
    assert len(encode(TOKENIZER, "".join(SPECIAL_TOKENS))) == len(SPECIAL_TOKENS)


def test_a_title_is_the_same_token_at_every_place_of_a_list() -> None:
    text = render_items([display_item(title) for title in TITLES[:3]])
    for title in TITLES[:3]:
        (token,) = encode(TOKENIZER, title)
        assert encode(TOKENIZER, text).count(token) == 1


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = TEXT + render_items([display_item(title) for title in TITLES])
    assert encode(loaded, text) == encode(TOKENIZER, text)
    assert decode(loaded, encode(loaded, text)) == text
    assert stop_token_ids(loaded) == stop_token_ids(TOKENIZER)


def test_turns_stop_at_the_closing_tags() -> None:
    stops = stop_token_ids(TOKENIZER)
    assert {*encode(TOKENIZER, PREFERENCE_END), *encode(TOKENIZER, RECOMMENDATION_END)} < stops


def test_a_token_that_holds_a_closing_tag_ends_the_turn() -> None:
    dialogue = f"I look. {PREFERENCE_END}, then more.\n"
    tokenizer = train_tokenizer([dialogue] * 50, vocab_size=400)
    holding = {i for i in range(len(tokenizer)) if PREFERENCE_END in decode(tokenizer, [i])}
    assert len(holding) > 1, "the BPE has learnt tokens around the tag"
    stops = turn_stops(tokenizer)
    assert holding | stop_token_ids(tokenizer) == stops.ids
    assert stops.strings == ()


def test_training_is_deterministic() -> None:
    again = train_tokenizer([TEXT] * 5, titles=TITLES, vocab_size=400)
    assert again.get_vocab() == TOKENIZER.get_vocab()


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="300"):
        train_tokenizer([TEXT], vocab_size=100)
