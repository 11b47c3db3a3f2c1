"""Users as the original's services and files name them: by whole numbers. Every place that does so asks here."""

from __future__ import annotations

from collections.abc import Sequence


def user_numbers(user_ids: Sequence[str]) -> list[int]:
    """Return each user's number: its own id if the ids of all are whole numbers, else its index, from 0."""
    if all(text.isascii() and text.isdecimal() and str(int(text)) == text for text in user_ids):
        return [int(text) for text in user_ids]
    return list(range(len(user_ids)))
