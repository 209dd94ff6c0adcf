"""What the mocks compile on first use is compiled once for all tests, whatever cache folder each one has."""

from __future__ import annotations

import os
from pathlib import Path

from hal_mocks.native import cache_folder

KEPT = cache_folder(os.environ)
"""Where it is, before a test changes the environment."""


def keep_compiled(cache: Path) -> None:
    """Let a fresh folder that a test names in ``XDG_CACHE_HOME`` share what is compiled, and nothing else."""
    KEPT.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / KEPT.name).symlink_to(KEPT)
