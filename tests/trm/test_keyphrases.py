from __future__ import annotations

import numpy as np
import pytest

from tests.trm.worlds import colour_world
from trm.data.catalog import Catalog, Item
from trm.keyphrases import MAX_PHRASES, keyphrases, mine_keyphrases, needs_keyphrases
from trm.preferences import PreferenceWriter


def catalog(*titles: str, brand: str = "") -> Catalog:
    attributes = {"brand": (brand,)} if brand else {}
    return Catalog([Item(i, f"s{i}", title, attributes) for i, title in enumerate(titles, start=1)])


SHOP = catalog(
    *(f"Nitrile Gloves, Blue Model{i}" for i in range(4)),
    *(f"Drill Bit for Metal Series{i}" for i in range(5)),
    *(f"Acme{i} Nobody{i} Knows{i}" for i in range(60)),
    brand="Acme",
)


def test_phrases_by_hand():
    """69 titles: a phrase needs 4 of them (half the root of 69). Of all that share a count the single word is first."""
    phrases = mine_keyphrases(SHOP)
    assert len(phrases) == SHOP.num_items + 1
    assert phrases[0] == ()
    assert phrases[1] == ("blue", "gloves")  # 70 % of four words are two: "nitrile" is left out
    assert phrases[5] == ("bit", "drill", "metal")  # five words allow three; "for metal" starts with a stop word
    assert phrases[20] == ()  # no other title has its words


def test_two_words_beat_one_where_fewer_titles_have_them_and_no_phrase_crosses_punctuation():
    titles = ["Blue Tape, Wide Roll"] * 6 + ["Blue, Tape, Wide, Roll"] * 6 + [f"other{i}" for i in range(120)]
    phrases = mine_keyphrases(catalog(*titles))
    assert phrases[1] == ("blue tape",)  # of 6 titles, not 12; two of four words are all that 70 % allow
    assert phrases[7] == ("blue", "roll")


def test_what_the_attributes_say_is_not_said_again():
    titles = ["Acme Red Rope Thick Long"] * 4 + [f"other{i}" for i in range(40)]
    assert not any("acme" in phrase for found in mine_keyphrases(catalog(*titles, brand="ACME")) for phrase in found)
    assert any("acme" in phrase for found in mine_keyphrases(catalog(*titles, brand="Bolt")) for phrase in found)


def test_common_words_and_numbers_are_no_phrases():
    titles = [f"Thing of 12 3.5 {i}" for i in range(40)]  # "thing" is everywhere, the numbers have no letters
    assert set(mine_keyphrases(catalog(*titles))) == {()}


def test_only_poor_catalogues_get_phrases_and_they_are_mined_once():
    assert needs_keyphrases(SHOP)
    assert keyphrases(SHOP) is keyphrases(SHOP)
    rich = colour_world().catalog
    assert not needs_keyphrases(rich)
    assert set(keyphrases(rich)) == {()}


def test_a_writer_speaks_of_brand_and_phrases_and_never_spells_the_title():
    writer = PreferenceWriter(SHOP)
    rng = np.random.default_rng(0)
    texts = [writer.informative(item_id, rng) for item_id in range(1, 10) for _ in range(5)]
    assert all("Acme" in text for text in texts)
    assert all(("gloves" in text) == (place < 20) for place, text in enumerate(texts))
    for place, text in enumerate(texts):
        words = SHOP.title(1 + place // 5).casefold().replace(",", "").split()
        assert not all(word in text.casefold() for word in words)
    assert writer.informative(20, rng).endswith("Acme")


@pytest.mark.parametrize("num_words", [4, 12])
def test_at_most_four_phrases(num_words: int):
    title = " ".join(f"word{chr(97 + i)}" for i in range(num_words))
    found = mine_keyphrases(catalog(*[title] * 4, *(f"x{i}" for i in range(40))))[1]
    assert len(found) == min(MAX_PHRASES, int(0.7 * num_words))
