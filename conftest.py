"""What holds for all tests of all folders."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests out of every later garbage collection: several tests ask for many."""
    gc.collect()
    gc.freeze()
