from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from deeprec_env.world import World, load_world
from tests.fakes import build_fake_world
from trm.errors import DatasetNotPrepared


@pytest.mark.parametrize("env_id", ["DeepRec-MovieLens100K-v0", "DeepRec-Amazon-v0"])
def test_what_is_not_prepared_names_one_command(env_id: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotPrepared, match="deeprec prepare"):
        gym.make(env_id, auto_prepare=False, data_home=str(tmp_path))


def test_unknown_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ml-100k"):
        load_world("ml-100", data_home=tmp_path)


def test_vectors_must_fit_the_catalogue(world: World) -> None:
    with pytest.raises(ValueError, match="61 rows"):
        World(
            "broken",
            world.catalog,
            world.splits,
            retriever=world.retriever,
            encoder=world.encoder,
            item_text_vectors=np.zeros((3, 2), dtype=np.float32),
            item_id_vectors=world.item_id_vectors,
        )


def test_titles_are_found_as_written_and_as_shown() -> None:
    world = build_fake_world()
    for item_id in range(1, world.catalog.num_items + 1):
        assert item_id in world.find(world.catalog.title(item_id))
        assert item_id in world.find(world.display(item_id).title)
