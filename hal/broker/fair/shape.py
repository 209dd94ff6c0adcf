"""Shapes of waiting claims, each a bit: what can be granted, and where it waits, are then masks of bits."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from hal.broker.fair.limits import Pairs


@dataclass(frozen=True)
class Shape:
    """Claims of one priority class that are feasible or not together and ask for the same amounts."""

    priority: int
    group: Hashable
    amounts: Pairs


class Shapes:
    """The shapes of the claims that wait now. A bit that is not in use any more is given to another shape."""

    def __init__(self) -> None:
        self.of_bit: dict[int, Shape] = {}
        self._bits: dict[Shape, int] = {}
        self._claims: dict[int, int] = {}
        self._unused: list[int] = []
        self._priorities: list[int] = []
        self._classes: dict[int, dict[Hashable, int]] = {}

    def add(self, shape: Shape) -> int:
        """Count one more claim of the shape, and return its bit."""
        bit = self._bits.get(shape)
        if bit is None:
            bit = heappop(self._unused) if self._unused else len(self.of_bit)
            self._bits[shape] = bit
            self.of_bit[bit] = shape
            self._claims[bit] = 0
            if shape.priority not in self._classes:
                self._classes[shape.priority] = {}
                insort(self._priorities, shape.priority)
            groups = self._classes[shape.priority]
            groups[shape.group] = groups.get(shape.group, 0) | 1 << bit
        self._claims[bit] += 1
        return bit

    def discard(self, bit: int) -> None:
        """Count one claim less of the shape with this bit."""
        self._claims[bit] -= 1
        if self._claims[bit]:
            return
        shape = self.of_bit.pop(bit)
        del self._claims[bit], self._bits[shape]
        heappush(self._unused, bit)
        groups = self._classes[shape.priority]
        groups[shape.group] &= ~(1 << bit)
        if not groups[shape.group]:
            del groups[shape.group]
        if not groups:
            del self._classes[shape.priority]
            self._priorities.remove(shape.priority)

    def classes(self, feasible: Callable[[Hashable], bool]) -> Iterator[int]:
        """Yield a mask of the feasible shapes of each priority class that has any, the highest class first.

        A group is asked about once at most, and the groups of a class only when its turn has come.
        """
        if len(self._priorities) == 1:
            mask = 0
            for group, bits in self._classes[self._priorities[0]].items():
                if feasible(group):
                    mask |= bits
            if mask:
                yield mask
            return
        known: dict[Hashable, bool] = {}
        for priority in reversed(self._priorities):
            mask = 0
            for group, bits in self._classes[priority].items():
                can = known.get(group)
                if can is None:
                    can = known[group] = feasible(group)
                if can:
                    mask |= bits
            if mask:
                yield mask
