"""How a child stands among its siblings, and the orders that siblings are kept in."""

from __future__ import annotations

from heapq import heapify, heappop
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hal.broker.fair.leaf import Leaf
    from hal.broker.fair.node import Node

Place = tuple[int, str, int, "Leaf | Node"]
"""A child by its weighted dominant share (times its parent's factor), then by name; with the serial of its stand."""

Heap = list[Place]


class Stand:
    """What the parent remembers of a child, and takes back when the child has changed.

    ``serial`` numbers its places in the parent's orders: those with another are left. It is 0 where it does not wait.
    ``admits`` are the shapes for which it stands there, ``covers`` those of them that a guarantee of it or of one below
    it covers. ``part`` is what it adds to the parent for each unit of level, and ``blocked`` what it adds where it does
    not wait: all that it uses. None stands for nothing.
    """

    __slots__ = ("admits", "blocked", "covers", "key", "part", "serial")

    def __init__(self) -> None:
        self.forget_stand()

    def forget_stand(self) -> None:
        """Stand nowhere."""
        self.serial = 0
        self.key = 0
        self.admits = 0
        self.covers = 0
        self.part: list[int] | None = None
        self.blocked: list[int] | None = None


def head(heap: Heap) -> Place | None:
    """Return the first place that is still taken, if any is."""
    while heap:
        place = heap[0]
        if place[3].serial == place[2]:
            return place
        heappop(heap)
    return None


def tidy(heap: Heap) -> None:
    """Forget the places that were left."""
    heap[:] = [place for place in heap if place[3].serial == place[2]]
    heapify(heap)
