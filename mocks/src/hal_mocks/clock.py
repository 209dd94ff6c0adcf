"""Time as an object: the machine's own, or one that moves when it is told to."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Where a mock machine gets its time, in seconds since the Unix epoch."""

    def now(self) -> float:
        """Return the time."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        ...


class RealClock:
    """The machine's time, which never jumps back within a boot (CLOCK_BOOTTIME plus a fixed offset)."""

    def __init__(self) -> None:
        self._offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> float:
        """Return boot time plus the offset taken at the start."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) + self._offset

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        threading.Event().wait(seconds)


class VirtualClock:
    """Time that stands still until :meth:`advance`; sleeping moves it."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return the time."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move time on at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move time on."""
        self._now += seconds
