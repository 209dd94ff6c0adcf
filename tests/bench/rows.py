"""One line of a benchmark's report, and how to time things fairly."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was measured, in the same run as what it is compared with.

    ``ratio`` is measured over peer; ``goal`` says in words what it must be and ``met`` whether it is. ``includes`` says
    what the number contains.
    """

    name: str
    measured: str
    peer: str
    ratio: float | None
    goal: str
    met: bool
    includes: str


def best(work: Callable[[], object], *, repeat: int = 7, number: int = 1) -> float:
    """Return seconds a call: the median of several rounds of ``number`` calls, with the collector off."""
    times = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                work()
            times.append((time.perf_counter() - start) / number)
    finally:
        gc.enable()
    return statistics.median(times)
