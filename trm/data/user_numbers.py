"""Users as the original's services and files name them: by whole numbers. Every place that does so asks here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def user_numbers(user_ids: Sequence[str]) -> list[int]:
    """Return each user's number: its own id if the ids of all are whole numbers, else its index, from 0."""
    return [int(user_id) for user_id in user_ids] if are_numbers(user_ids) else list(range(len(user_ids)))


def are_numbers(ids: Iterable[str]) -> bool:
    """Return whether all ids are whole numbers, written as Python writes them."""
    return all(text.isascii() and text.isdecimal() and str(int(text)) == text for text in ids)
