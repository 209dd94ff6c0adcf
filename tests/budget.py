"""How much the tests that draw at random do: little by default, much in the night."""

from __future__ import annotations

import os

PROFILES = {"default": 1, "nightly": 25}
PROFILE = os.environ.get("HAL_TEST_PROFILE") or "default"
if PROFILE not in PROFILES:
    raise ValueError(f"HAL_TEST_PROFILE is {PROFILE!r}; one of {', '.join(PROFILES)}")


def examples(default: int) -> int:
    """Return how many examples to draw where ``default`` are drawn by default."""
    return default * PROFILES[PROFILE]
