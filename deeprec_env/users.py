"""Which users an environment plays, and in which order. Randomness comes from the caller's generator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from deeprec_env.errors import unknown_name
from deeprec_env.world import World
from trm.types import IntArray, RetrievalQuery

_RANK_RANGE = re.compile(r"top(\d+)_(\d+)")
RESET_OPTIONS = ("user_id", "user_index")


def select_users(world: World, users: str | Sequence[int], split: str) -> IntArray:
    """Return the user indices that are named.

    Args:
        world: whose users.
        users: "all", "topA_B" (the recommender, without a preference, ranks the target behind A and within B; the paper
            trains on top0_100), or user indices.
        split: whose target the ranks are of.

    Raises:
        ValueError: if the name is none of these, an index does not exist, or no user is left.
        TypeError: if it is neither a name nor a sequence of integers.
    """
    num_users = world.splits.num_users
    if isinstance(users, str):
        if (users, split) not in world.user_subsets:
            world.user_subsets[users, split] = _named_users(world, users, split)
        chosen = world.user_subsets[users, split]
    else:
        chosen = _user_indices(users)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < num_users):
            raise ValueError(f"expected user indices in 0..{num_users - 1}, got {chosen.min()}..{chosen.max()}")
    if chosen.size == 0:
        raise ValueError(f"expected users to name at least one user, got {users!r}")
    return chosen


def _user_indices(users: Sequence[int]) -> IntArray:
    indices = np.asarray(list(users)) if isinstance(users, Sequence) else np.asarray(users)
    if indices.ndim != 1 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
        raise TypeError(f"expected users to be 'all', a name such as 'top0_100', or user indices, got {users!r}")
    return indices.astype(np.int64)


def _named_users(world: World, users: str, split: str) -> IntArray:
    if users == "all":
        return np.arange(world.splits.num_users, dtype=np.int64)
    match = _RANK_RANGE.fullmatch(users)
    if match is None:
        raise unknown_name("users", users, ("all", "top0_100"))
    low, high = int(match[1]), int(match[2])
    ranks = target_ranks(world, split)
    return np.flatnonzero((ranks > low) & (ranks <= high)).astype(np.int64)


def target_ranks(world: World, split: str) -> IntArray:
    """Return int64 [num_users]: where the recommender, without a preference, ranks each user's target; 1 is best.

    Raises:
        ValueError: if the recommender cannot say.
    """
    rank = getattr(world.retriever, "ranks", None)
    if rank is None:
        raise ValueError("expected a recommender with `ranks` for users by rank, got one without; use users='all'")
    examples = [world.splits.example(split, user) for user in range(world.splits.num_users)]  # type: ignore[arg-type]
    queries = [RetrievalQuery(example.history, "") for example in examples]
    return np.asarray(rank(queries, [example.target for example in examples]), dtype=np.int64)


def check_options(options: object, known: Sequence[str]) -> None:
    """Do nothing.

    Raises:
        TypeError: if the options of a reset are no mapping.
        ValueError: if one of them is not among the known ones.
    """
    if not isinstance(options, Mapping):
        raise TypeError(f"expected options of reset as a dict, such as {{'user_index': 3}}, got {options!r}")
    for name in options:
        if name not in known:
            raise unknown_name("an option of reset", name, known)


def chosen_user(world: World, options: dict[str, object] | None) -> int | None:
    """Return the user index that `reset(options=…)` asks for; None if it leaves the choice open.

    Raises:
        ValueError: if an option is unknown, both are given, or there is no such user.
        TypeError: if the options are no mapping.
    """
    if options is None:
        return None
    check_options(options, RESET_OPTIONS)
    if not options:
        return None
    if len(options) > 1:
        raise ValueError("expected user_id or user_index, got both; leave one out")
    if "user_id" in options:
        try:
            return world.splits.user_index(str(options["user_id"]))
        except KeyError:
            ids = ", ".join(map(repr, world.splits.user_ids[:3]))
            given = options["user_id"]
            raise ValueError(f"expected user_id to be a user of {world.name} ({ids}, …), got {given!r}") from None
    index = options["user_index"]
    if isinstance(index, bool) or not isinstance(index, int | np.integer):
        raise ValueError(f"expected user_index to be an integer, got {index!r}")
    num_users = world.splits.num_users
    if not 0 <= index < num_users:
        raise ValueError(f"expected user_index to be in 0..{num_users - 1}, got {index}")
    return int(index)


class UserOrder:
    """Draws users without replacement until all have been seen, then anew. Its memory grows with the draws only."""

    def __init__(self, users: IntArray) -> None:
        """Hold the users (not a copy); nothing is drawn yet."""
        self._users = users
        self._moved: dict[int, int] = {}
        self._num_drawn = 0

    def restart(self) -> None:
        """Forget what has been seen, as after a new seed."""
        self._moved.clear()
        self._num_drawn = 0

    def draw(self, rng: np.random.Generator) -> int:
        """Return the next user's index, by one step of a Fisher-Yates shuffle whose untouched places are not stored."""
        if self._num_drawn == len(self._users):
            self.restart()
        place = int(rng.integers(self._num_drawn, len(self._users)))
        picked = self._moved.get(place, place)
        self._moved[place] = self._moved.pop(self._num_drawn, self._num_drawn)
        self._num_drawn += 1
        return int(self._users[picked])
