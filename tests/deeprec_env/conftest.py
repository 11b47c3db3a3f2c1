from __future__ import annotations

import pytest

from deeprec_env.world import World
from tests.fakes import build_fake_world


@pytest.fixture
def world() -> World:
    return build_fake_world()
