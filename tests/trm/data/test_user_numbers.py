from __future__ import annotations

import pytest

from trm.data.user_numbers import user_numbers


@pytest.mark.parametrize(
    ("user_ids", "numbers"),
    [
        (("196", "3", "22"), [196, 3, 22]),
        (("u1", "3", "22"), [0, 1, 2]),
        (("1", "02"), [0, 1]),
        (("1", "²"), [0, 1]),
        (("1", "-2"), [0, 1]),
    ],
)
def test_own_ids_where_all_are_whole_numbers(user_ids: tuple[str, ...], numbers: list[int]) -> None:
    assert user_numbers(user_ids) == numbers
