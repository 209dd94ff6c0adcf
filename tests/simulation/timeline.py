"""Virtual time: what is to happen when, in one order that the seed decides."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random


class Crash(BaseException):
    """The broker's process dies here: nothing of it runs on, what it wrote stays."""


class Timeline:
    """A clock that moves from one event to the next, the only source of time and of chance.

    ``trace`` is for people; ``history`` is what was written (bytes) and what devices saw (tuples), in one order.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.trace: list[str] = []
        self.history: list[object] = []
        self._now = 1_000_000.0
        self._begun = self._now
        self._next: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0

    def now(self) -> float:
        return self._now

    @property
    def elapsed(self) -> float:
        return self._now - self._begun

    def pass_time(self, seconds: float) -> None:
        """A slow device or disk: time goes on while somebody waits for it."""
        self._now += seconds

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._next, (self._now + seconds, self._numbers, what))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def note(self, line: str) -> None:
        self.trace.append(f"{self.elapsed:10.4f} {line}")

    def step(self, until: float) -> bool:
        """Let the next event happen; False if there is none before ``until`` seconds have passed."""
        if not self._next or self._next[0][0] > self._begun + until:
            self._now = max(self._now, self._begun + until)
            return False
        at, _, what = heapq.heappop(self._next)
        self._now = max(self._now, at)
        what()
        return True
