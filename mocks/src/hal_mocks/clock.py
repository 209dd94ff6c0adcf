"""Time as an object: the machine's own, or one that moves when it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

VIRTUAL_START = 1_000_000.0
"""Where virtual time starts, in seconds."""

_CENTURY_SECONDS = 100 * 365.25 * 86400


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

    def __init__(self, start: float = VIRTUAL_START) -> None:
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


class SharedClock:
    """Virtual time that all processes of a mock machine share: a word of its control page, in nanoseconds.

    It stands still until somebody advances it; sleeping moves it for everybody.
    """

    def __init__(self, words: memoryview[int], word: int, lock: Callable[[], AbstractContextManager[None]]) -> None:
        self._words = words
        self._word = word
        self._lock = lock
        with lock():
            if not words[word]:
                words[word] = round(VIRTUAL_START * 1e9)

    def now(self) -> float:
        """Return the time."""
        return self._words[self._word] / 1e9

    def sleep(self, seconds: float) -> None:
        """Move time on at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move time on, in every process."""
        if seconds <= 0:
            return
        with self._lock():
            self._words[self._word] += max(1, round(min(seconds, _CENTURY_SECONDS) * 1e9))
