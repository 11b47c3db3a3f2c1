"""A catalogue of four films, and the folder of real data where there is one."""

import os
from pathlib import Path

import numpy as np
import pytest

from trm.data.catalog import Catalog, Item
from trm.data.dataset import Dataset
from trm.data.interactions import Interactions


@pytest.fixture
def catalog() -> Catalog:
    return Catalog(
        [
            Item(1, "a", "The Iron Engine (1991)", {"genres": ("Action", "Sci-Fi"), "decade": ("1990s",)}, year=1991),
            Item(2, "b", "Pokémon", {"genres": ("Action",)}, description="pocket monsters " * 100),
            Item(3, "c", "Hugo Pool (1997)", {"decade": ("1990s",)}, year=1997),
            Item(4, "d", "Hugo  POOL (1997)", {}),
        ]
    )


@pytest.fixture
def interactions() -> Interactions:
    """u has 4 events (two at one time), v has 2, w has 3; interleaved, not in the order of time."""
    events = [(0, 4, 9), (1, 1, 5), (0, 2, 3), (2, 3, 1), (0, 1, 3), (0, 3, 1), (1, 2, 4), (2, 1, 2), (2, 2, 3)]
    users, items, times = (np.array(column, dtype=np.int64) for column in zip(*events))
    return Interactions.from_events(["u", "v", "w"], users=users, item_ids=items, timestamps=times)


@pytest.fixture
def dataset(catalog, interactions) -> Dataset:
    return Dataset("toy", catalog, interactions, {"source": "by hand", "interactions_read": 9})


@pytest.fixture
def real_data() -> Path:
    """The folder that DEEPREC_DATA names."""
    folder = os.environ.get("DEEPREC_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: DEEPREC_DATA is not set, or names no folder")
    return Path(folder)
