"""Many leaves of one node by the shapes that they wait for: the first of each shape is known without looking at all."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from hal.broker.fair.limits import bits_of

if TYPE_CHECKING:
    from hal.broker.fair.leaf import Leaf
    from hal.broker.fair.stand import Place

Heap = list["Place"]


class Lines:
    """A line for each shape, of the places of those that wait for it; a place that was left stays until it comes first.

    In the lines of ``covered`` shapes are those whose guarantee covers them.
    """

    def __init__(self) -> None:
        self._admitted: dict[int, Heap] = {}
        self._covered: dict[int, Heap] = {}
        self._standing = 0

    def put(self, leaf: Leaf, place: Place, admits: int, covers: int) -> None:
        """Let a leaf stand in line with its new place; the one it had is left."""
        self._standing += leaf.place is None
        leaf.place = place
        for lines, mask in ((self._admitted, admits), (self._covered, covers)):
            for bit in bits_of(mask):
                line = lines.setdefault(bit, [])
                heappush(line, place)
                if len(line) > 2 * self._standing + 16:
                    line[:] = [other for other in line if other[3].place is other]
                    heapify(line)

    def leave(self) -> None:
        """Count one leaf less; its place was taken from it."""
        self._standing -= 1

    def forget(self, bit: int) -> None:
        """Nobody waits for a shape any more."""
        self._admitted.pop(bit, None)
        self._covered.pop(bit, None)

    def first(self, allowed: int, sought: int) -> Place | None:
        """Return the first of those who wait for an allowed shape, or for a sought one that is covered."""
        best = None
        for lines, mask in ((self._admitted, allowed), (self._covered, sought)):
            if mask and lines:
                for bit in bits_of(mask):
                    place = head(lines.get(bit, []))
                    if place is not None and (best is None or place[:3] < best[:3]):
                        best = place
        return best


def head(heap: Heap) -> Place | None:
    """Return the first place that is still taken, if any is."""
    while heap:
        place = heap[0]
        if place[3].place is place:
            return place
        heappop(heap)
    return None
