"""A broker over a server of four GPUs and four NICs, which do what the test says."""

from __future__ import annotations

import pytest

from tests.unit.broker.fake import World
from tests.unit.broker.world import server


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, server("n0", 4))


@pytest.fixture
def broker(world):
    return world.broker
