"""The catalogue: ids, titles, texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trm.data.catalog import MAX_DESCRIPTION_CHARS, PAD, Catalog, Item, normalize_title


def test_ids_run_from_one(catalog):
    assert catalog.num_items == len(catalog) == 4
    assert [item.item_id for item in catalog] == [1, 2, 3, 4]
    assert catalog.title(2) == "Pokémon"
    assert PAD not in catalog
    assert 4 in catalog
    assert 5 not in catalog


@pytest.mark.parametrize("item_id", [PAD, -1, 5])
def test_ids_of_no_item_are_refused(catalog, item_id):
    with pytest.raises(IndexError, match=rf"1\.\.4, got {item_id}"):
        catalog[item_id]


def test_items_must_be_numbered_in_order():
    with pytest.raises(ValueError, match="got 2 at place 1"):
        Catalog([Item(2, "a", "A", {})])
    with pytest.raises(ValueError, match="at least one item"):
        Catalog([])


@pytest.mark.parametrize("title", ["pokémon", " POKE\u0301MON ", "Poke\u0301mon"])
def test_find_folds_case_space_and_composition(catalog, title):
    assert catalog.find(title) == (2,)


def test_find_gives_all_items_of_a_title(catalog):
    assert catalog.find("hugo pool (1997)") == (3, 4)
    assert catalog.find("Iron Engine") == ()


@given(st.text())
def test_normalized_titles_stay_as_they_are(text):
    assert normalize_title(normalize_title(text)) == normalize_title(text)


def test_attribute_line(catalog):
    assert catalog.attribute_line(1) == "Action, Sci-Fi; 1990s"
    assert catalog.attribute_line(4) == ""


def test_text_is_title_attributes_and_clipped_description(catalog):
    assert catalog.text(1) == "The Iron Engine (1991). Action, Sci-Fi; 1990s"
    assert catalog.text(4) == "Hugo  POOL (1997)"
    text = catalog.text(2)
    assert text.startswith("Pokémon. Action. pocket monsters")
    assert text.endswith(("pocket", "monsters"))
    assert len(text) <= len("Pokémon. Action. ") + MAX_DESCRIPTION_CHARS


def test_attribute_values_come_commonest_first(catalog):
    assert {kind: list(values.items()) for kind, values in catalog.attribute_values.items()} == {
        "genres": [("Action", 2), ("Sci-Fi", 1)],
        "decade": [("1990s", 2)],
    }
