"""Messages that come late, twice, in another order, or not at all."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.timeline import Timeline


class Network:
    """``loss`` and ``doubling`` are probabilities for each message; delays are drawn anew for each copy."""

    def __init__(self, time: Timeline) -> None:
        self.time = time
        self.loss = 0.0
        self.doubling = 0.0
        self.slowest = 0.05

    def send(self, what: str, deliver: Callable[[], None]) -> None:
        copies = 2 if self.time.chance(self.doubling) else 1
        for _ in range(copies):
            if self.time.chance(self.loss):
                self.time.note(f"network: lost {what}")
                continue
            self.time.after(self.time.random.random() ** 3 * self.slowest, deliver)
