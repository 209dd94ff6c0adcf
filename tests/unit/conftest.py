"""Fixtures of several tests of units."""

from __future__ import annotations

import pytest

from tests.unit.odd_plugin import Place


@pytest.fixture
def place(tmp_path):
    """Where drivers that misbehave are started, each in its monitor; all are closed afterwards."""
    found = Place(tmp_path)
    yield found
    for process in found.started:
        process.close()
