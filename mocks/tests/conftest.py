"""What all tests of the mocks need."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _every_tool() -> Iterator[None]:
    """Find tools that Debian keeps where only root's path leads (ibstat), for ordinary users, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        yield
