"""Shapes of waiting claims, each a bit: what can be granted, and where it waits, are then masks of bits."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import compress
from typing import NamedTuple

from hal.broker.fair.limits import Pairs


class Shape(NamedTuple):
    """Claims of one priority class that are feasible or not together and ask for the same amounts."""

    priority: int
    group: Hashable
    amounts: Pairs


class Shapes:
    """The shapes of the claims that wait now. A bit that is not in use any more is given to another shape.

    ``empty`` are those that ask for nothing at all.
    """

    def __init__(self) -> None:
        self.of_bit: dict[int, Shape] = {}
        self._bits: dict[Shape, int] = {}
        self._claims: dict[int, int] = {}
        self._unused: list[int] = []
        self._priorities: list[int] = []
        self._classes: dict[int, dict[Hashable, int]] = {}
        self.empty = 0
        self._asking: dict[int, dict[int, int]] = {}
        self._amounts: dict[int, list[int]] = {}

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
            self._ask(shape.amounts, 1 << bit)
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
        self._ask_no_more(shape.amounts, 1 << bit)
        groups = self._classes[shape.priority]
        groups[shape.group] &= ~(1 << bit)
        if not groups[shape.group]:
            del groups[shape.group]
        if not groups:
            del self._classes[shape.priority]
            self._priorities.remove(shape.priority)

    def _ask(self, amounts: Pairs, bit: int) -> None:
        if not amounts:
            self.empty |= bit
        for index, amount in amounts:
            asking = self._asking.setdefault(index, {})
            if amount not in asking:
                insort(self._amounts.setdefault(index, []), amount)
            asking[amount] = asking.get(amount, 0) | bit

    def _ask_no_more(self, amounts: Pairs, bit: int) -> None:
        self.empty &= ~bit
        for index, amount in amounts:
            asking = self._asking[index]
            asking[amount] &= ~bit
            if not asking[amount]:
                del asking[amount]
                self._amounts[index].remove(amount)

    def beyond(self, index: int, room: int) -> int:
        """Return a mask of the shapes that ask for any of a resource, and for more than this."""
        amounts = self._amounts.get(index)
        if not amounts or amounts[-1] <= room:
            return 0
        mask, asking = 0, self._asking[index]
        for amount in reversed(amounts):
            if amount <= room:
                break
            mask |= asking[amount]
        return mask

    def refused(self, quota: Pairs, use: Sequence[int]) -> int:
        """Return a mask of the shapes that together with the use would exceed the quota."""
        mask = 0
        for index, most in quota:
            mask |= self.beyond(index, most - use[index])
        return mask

    def uncovered(self, guarantee: Pairs, use: Sequence[int]) -> int:
        """Return a mask of the shapes that together with the use are more than the guarantee, in any resource."""
        promised = dict(guarantee)
        mask = self.empty
        for index in self._amounts:
            mask |= self.beyond(index, promised[index] - use[index] if index in promised else 0)
        return mask

    def classes(self, feasible: Callable[[Hashable], bool]) -> Iterator[int]:
        """Yield a mask of the feasible shapes of each priority class that has any, the highest class first.

        A group is asked about once at most, and the groups of a class only when its turn has come.
        """
        if len(self._priorities) == 1:
            mask, groups = 0, self._classes[self._priorities[0]]
            for bits in compress(groups.values(), map(feasible, groups)):
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
