"""What holds for all tests of all folders."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
ENOUGH_BYTES = 8 << 30


def pytest_configure() -> None:
    """Keep the tests' folders in memory if there is plenty and nobody named another place.

    A mock machine is several thousand files, and most tests have one of their own: to make them on a disk can take
    longer than the tests themselves.
    """
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ and _is_roomy():
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)
    # A run in the background, or under nohup, is started with these ignored, and all that tests start would be, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
    """Give the memory back if there is nothing to look at."""
    yield
    factory = getattr(session.config, "_tmp_path_factory", None)
    if exitstatus == 0 and factory is not None and not hasattr(session.config, "workerinput"):
        folder = factory.getbasetemp()
        if MEMORY in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)


def _is_roomy() -> bool:
    try:
        return os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH_BYTES
    except OSError:
        return False


def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests out of every later garbage collection: several tests ask for many."""
    gc.collect()
    gc.freeze()
