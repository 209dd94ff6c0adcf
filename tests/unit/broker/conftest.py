"""A broker over a server of four GPUs and four NICs, which do what the test says."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.unit.broker.fake import World
from tests.unit.broker.world import server


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, server("n0", 4))


@pytest.fixture
def broker(world):
    return world.broker


@pytest.fixture
def memory_path(tmp_path):
    """A folder in memory where that is possible: for journals that are written often, and that nobody unplugs."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)
