"""From raw events and items to a Dataset: the filters, the dense ids and the account, the same for every source."""

from __future__ import annotations

import dataclasses
import logging
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trm.data.catalog import Catalog, Item
from trm.data.dataset import Dataset
from trm.data.interactions import Interactions
from trm.data.splits import MIN_INTERACTIONS
from trm.types import IntArray

Report = dict[str, int | str]
"""The account: what was read, dropped and kept, by name."""

logger = logging.getLogger(__name__)


class EventLog:
    """Interactions as a source lists them, in its order; ids are interned, so that millions of events stay small."""

    def __init__(self) -> None:
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._user_indices = array("q")
        self._item_indices = array("q")
        self._timestamps = array("q")

    def __len__(self) -> int:
        return len(self._timestamps)

    def append(self, user_id: str, source_id: str, timestamp_ms: int) -> None:
        """Add one event."""
        self._user_indices.append(self._users.setdefault(user_id, len(self._users)))
        self._item_indices.append(self._items.setdefault(source_id, len(self._items)))
        self._timestamps.append(timestamp_ms)

    def chronological(self) -> Events:
        """Return the events sorted by user and time; ties keep the order of the source."""
        users = np.array(self._user_indices, dtype=np.int64)
        order = np.lexsort((np.array(self._timestamps, dtype=np.int64), users))
        return Events(
            user_ids=list(self._users),
            source_ids=list(self._items),
            users=users[order],
            items=np.array(self._item_indices, dtype=np.int64)[order],
            timestamps=np.array(self._timestamps, dtype=np.int64)[order],
        )


@dataclass(frozen=True, eq=False)
class Events:
    """Events as arrays: users and items index the two lists of ids."""

    user_ids: list[str]
    source_ids: list[str]
    users: IntArray
    items: IntArray
    timestamps: IntArray

    def __len__(self) -> int:
        return int(self.users.size)

    def where(self, mask: NDArray[np.bool_]) -> Events:
        """Return the events that mask marks, in their order."""
        return dataclasses.replace(
            self, users=self.users[mask], items=self.items[mask], timestamps=self.timestamps[mask]
        )

    def user_counts(self) -> IntArray:
        """Return, for every event, how many events its user has."""
        return np.bincount(self.users, minlength=len(self.user_ids))[self.users]

    def item_counts(self) -> IntArray:
        """Return, for every event, how many events its item has."""
        return np.bincount(self.items, minlength=len(self.source_ids))[self.items]

    def num_users(self) -> int:
        """Return how many users have an event."""
        return int(np.count_nonzero(np.bincount(self.users)))

    def num_items(self) -> int:
        """Return how many items have an event."""
        return int(np.count_nonzero(np.bincount(self.items)))


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which of the interactions of a source stay."""

    min_interactions: int = 1
    """Users with fewer interactions, as found in the source, go."""
    k_core: int = 0
    """If not 0: users and items with fewer interactions than this go, until none is left."""
    drop_repeats: bool = False
    """Whether only the first of several interactions of one user with one item stays; else a target may be an item that
    its history holds already."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: if one is negative.
        """
        if self.min_interactions < 0 or self.k_core < 0:
            raise ValueError(f"expected min_interactions and k_core of at least 0, got {self}")

    def __str__(self) -> str:
        repeats = "dropped" if self.drop_repeats else "kept"
        return f"at least {self.min_interactions} interactions a user, {self.k_core}-core, repeats {repeats}"


NO_FILTERS = Filters()


def filter_events(log: EventLog, *, filters: Filters, report: Report) -> Events:
    """Return the events that a data set is made of, chronological within a user; counts into report what went and why.

    In this order: users below min_interactions, repeats, the k-core, users that no split could use. A k-core that drops
    over half of the interactions, users or items is warned of.
    """
    events = log.chronological()
    report |= {"filters": str(filters), "interactions_read": len(events)}

    kept = events.where(events.user_counts() >= filters.min_interactions)
    report["users_below_min_interactions"] = events.num_users() - kept.num_users()
    report["interactions_of_users_below_min"] = len(events) - len(kept)

    first = _first_of_pair(kept)
    report["duplicated_rows"] = len(kept) - _num_distinct(kept)
    events = kept.where(first) if filters.drop_repeats else kept
    report["repeated_interactions_dropped"] = len(kept) - len(events)
    report["repeated_interactions_kept"] = 0 if filters.drop_repeats else int((~first).sum())

    kept = _core(events, filters.k_core) if filters.k_core > 0 else events
    report["users_outside_core"] = events.num_users() - kept.num_users()
    report["items_outside_core"] = events.num_items() - kept.num_items()
    report["interactions_outside_core"] = len(events) - len(kept)
    if filters.k_core > 0:
        _warn_of_core(events, kept, k_core=filters.k_core)

    events = kept.where(kept.user_counts() >= MIN_INTERACTIONS)
    report["users_with_too_few_items"] = kept.num_users() - events.num_users()
    report["interactions_of_users_with_too_few_items"] = len(kept) - len(events)
    return events


def _warn_of_core(before: Events, after: Events, *, k_core: int) -> None:
    counts = (
        ("users", before.num_users(), after.num_users()),
        ("items", before.num_items(), after.num_items()),
        ("interactions", len(before), len(after)),
    )
    lost = [f"{had - has:,} of {had:,} {what}" for what, had, has in counts if 2 * has < had]
    if lost:
        logger.warning("the %d-core drops over half: %s; a smaller k, or none, keeps them", k_core, ", ".join(lost))


def count(report: Report, entry: str) -> None:
    """Add one to an entry of the account."""
    report[entry] = int(report.get(entry, 0)) + 1


def assemble_dataset(
    name: str,
    events: Events,
    items: Iterable[Item],
    *,
    report: Report,
    describe_missing: Callable[[str], Item] | None = None,
) -> Dataset:
    """Return the data set of these events; its catalogue holds the items that occur in them, in the order of `items`.

    Args:
        name: of the data set.
        events: as filter_events gives them.
        items: with any item_id; they are numbered here. A second item of the same source_id is left out.
        report: what the reader counted so far, and counts while `items` runs; grows by what is counted here.
        describe_missing: makes the item of a source_id that `items` lacks.

    Raises:
        ValueError: if no event is left, or an item is lacking and describe_missing is not given.
    """
    if len(events) == 0:
        raise ValueError(f"expected interactions for {name!r}, got none after the filters; weaken the filters")
    wanted = {events.source_ids[index]: int(index) for index in np.unique(events.items)}
    chosen: dict[str, Item] = {}
    twice = unused = 0
    for item in items:
        if item.source_id in chosen:
            twice += 1
        elif item.source_id in wanted:
            chosen[item.source_id] = item
        else:
            unused += 1
    missing = [source_id for source_id in wanted if source_id not in chosen]
    if missing and describe_missing is None:
        raise ValueError(
            f"expected a description of every item, got none of {missing[0]!r} and {len(missing) - 1} more"
        )
    if describe_missing is not None:
        chosen.update((source_id, describe_missing(source_id)) for source_id in missing)
    report |= {"items_described_twice": twice, "items_never_taken": unused, "items_not_described": len(missing)}

    catalog = Catalog([dataclasses.replace(item, item_id=place) for place, item in enumerate(chosen.values(), start=1)])
    item_id_by_index = np.zeros(len(events.source_ids), dtype=np.int64)
    for item in catalog:
        item_id_by_index[wanted[item.source_id]] = item.item_id
    interactions = Interactions.from_events(
        events.user_ids, users=events.users, item_ids=item_id_by_index[events.items], timestamps=events.timestamps
    )
    report |= {
        "users": interactions.num_users,
        "items": catalog.num_items,
        "interactions": interactions.num_interactions,
    }
    log_report(name, report)
    return Dataset(name=name, catalog=catalog, interactions=interactions, report=dict(report))


def render_report(report: Mapping[str, int | str]) -> str:
    """Return the account, a line an entry; counts of nothing are left out."""
    shown = {entry.replace("_", " "): value for entry, value in report.items() if value != 0}
    width = max(map(len, shown), default=0)
    return "\n".join(
        f"{entry:<{width}}  {f'{value:,}' if isinstance(value, int) else value}" for entry, value in shown.items()
    )


def log_report(name: str, report: Report) -> None:
    """Log the account of a data set."""
    logger.info("%s:\n%s", name, render_report(report))


def _first_of_pair(events: Events) -> NDArray[np.bool_]:
    """Mark the first event of every pair of user and item."""
    pairs = events.users * len(events.source_ids) + events.items
    first = np.unique(pairs, return_index=True)[1]
    mask = np.zeros(len(events), dtype=np.bool_)
    mask[first] = True
    return mask


def _num_distinct(events: Events) -> int:
    """Return how many events differ in user, item or time."""
    if len(events) == 0:
        return 0
    order = np.lexsort((events.items, events.timestamps, events.users))
    columns = (column[order] for column in (events.users, events.timestamps, events.items))
    return 1 + int(np.logical_or.reduce([np.diff(column) != 0 for column in columns]).sum())


def _core(events: Events, k_core: int) -> Events:
    """Return the largest part of the events in which every user and every item has at least k_core."""
    while True:
        kept = events.where((events.user_counts() >= k_core) & (events.item_counts() >= k_core))
        if len(kept) == len(events):
            return kept
        events = kept
