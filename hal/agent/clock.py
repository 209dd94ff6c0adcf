"""The broker's steady time: the clock that ran since boot, plus an offset that is fixed once for each boot.

A wall clock that an operator or NTP sets back or forth must not end a lease or lengthen one.
"""

from __future__ import annotations

import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SteadyClock:
    """Seconds since the Unix epoch as they were judged at the first start after boot, then CLOCK_BOOTTIME."""

    def __init__(self, offset_seconds: float) -> None:
        self.offset_seconds = offset_seconds

    @classmethod
    def begin(cls, not_before: float = 0.0) -> SteadyClock:
        """Return a clock that starts at the wall clock's time, but never before a time already used."""
        return cls(max(time.time(), not_before) - time.clock_gettime(time.CLOCK_BOOTTIME))

    def now(self) -> float:
        """Return the time; it goes on during suspend and never goes back."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) + self.offset_seconds


def read_boot_id() -> str:
    """Return what the kernel calls this boot (random(4), ``boot_id``)."""
    return BOOT_ID.read_text(encoding="ascii").strip()
