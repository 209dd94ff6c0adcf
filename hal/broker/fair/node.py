"""The tree of tenants: what each node uses, what it counts as using, and who of its children waits.

The definition is in ``docs/explanation/fairness.md``; the names here are its names.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import lcm
from operator import add, sub
from typing import TYPE_CHECKING

from hal.broker.fair.leaf import Leaf
from hal.broker.fair.limits import Pairs, bits_of, covers, exceeded
from hal.broker.fair.shape import Shapes

if TYPE_CHECKING:
    from hal.model.tenant import Tenant

QUANTUM = 1 << 64
"""Shares are counted in this fraction of a resource's total (the definition says where they are rounded)."""

Heap = list[tuple[int, str, int, "Leaf | Node"]]
"""Children by their weighted dominant share (times the node's factor), then by name; with the serial of an entry."""


class World:
    """What all nodes have in common: resources by index, their totals, and the shapes of waiting claims."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.index: dict[str, int] = {}
        self.totals: list[int] = []
        self.shapes = Shapes()
        self.epoch = 0
        self._serial = 0

    def serial(self) -> int:
        """Return a number that was never returned before."""
        self._serial += 1
        return self._serial

    def ratios(self, use: list[int]) -> list[int]:
        """Return what part of everything a use is, in quanta; of what there is nothing, nothing counts."""
        return [
            QUANTUM * used // total if used and total > 0 else 0 for used, total in zip(use, self.totals, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Entry:
    """How a waiting child stands among its siblings."""

    serial: int
    admitted: int
    covered: int
    scaled: list[int]
    use: list[int]


class Node:
    """A tenant, or the root. ``use``, ``leases`` and ``waiting`` count what is at and below it.

    What is computed of it is brought up to date by :meth:`settle`, and depends on no decision: ``admitted`` are the
    shapes that wait here or below and that no quota here or below refuses, ``covered`` those of them that its own
    guarantee covers and ``coverable`` those that its own or one below does; ``full`` is what it uses, ``consumption``
    what it counts as using while all that wait can be served (both in quanta); ``direction`` has the proportions of the
    latter. ``rest`` and ``scaled`` are its parts: of children that do not wait, and of those that do, for each unit of
    their common level.

    ``order`` are the children that wait by what they would count as using if all that wait could be served, which is
    the least that they can count as in any decision; ``inner_order`` those of them with others below them.
    """

    def __init__(self, name: str, parent: Node | None, resources: int) -> None:
        self.name = name
        self.parent = parent
        self.path: str = f"{parent.path}/{name}" if parent and parent.path else name
        self.tenant: Tenant | None = None
        self.weight = 1
        self.quota: Pairs = ()
        self.guarantee: Pairs = ()
        self.guaranteed = 0
        self.children: dict[str, Node] = {}
        self.own = Leaf(self, resources)
        self.use = [0] * resources
        self.leases = 0
        self.waiting = 0
        self.busy = False
        self.busy_weight = 0

        self.stale = True
        self.epoch = -1
        self.dirty: dict[Leaf | Node, None] = {}

        self.entry: Entry | None = None
        self.factor = 1
        self.inner = False
        self.mask = 0
        self.admitted = self.covered = self.coverable = 0
        self.full: list[int] = []
        self.rest: list[int] = []
        self.scaled: list[int] = []
        self.consumption: list[int] = []
        self.direction: list[int] = []
        self.dominant = self.lowest = 0
        self.lines: dict[int, Heap] = {}
        self.covered_lines: dict[int, Heap] = {}
        self.partial: set[Node] = set()
        self._admitting: dict[int, int] = {}
        self._open_use: list[int] = []
        self.order: Heap = []
        self.inner_order: Heap = []
        self._entries = 0

    def touch(self, leaf: Leaf) -> None:
        """Remember that a leaf under this node is not what it was, here and in everything above."""
        self.dirty[leaf] = None
        node, parent = self, self.parent
        while parent is not None:
            parent.dirty[node] = None
            node, parent = parent, parent.parent

    def settle(self, world: World) -> None:
        """Bring up to date what is computed of the node and of all below it that have changed."""
        if self.stale or self.epoch != world.epoch:
            self._begin_anew(world)
        elif not self.dirty:
            return
        for item in self.dirty:
            if isinstance(item, Leaf):
                self._place_leaf(item, world)
            elif item.children:  # one without has become a leaf, and everything was begun anew
                item.settle(world)
                self._place_node(item, world)
        self.dirty.clear()
        self._sum_up(world)

    def _begin_anew(self, world: World) -> None:
        self.stale = False
        self.epoch = world.epoch
        items: list[Leaf | Node] = [child if child.children else child.own for child in self.children.values()]
        if self.children or self.parent is None:
            items.append(self.own)
        for item in (*items, *self.dirty):
            item.entry = None
        self.dirty = dict.fromkeys(items)
        self.inner = any(child.children for child in self.children.values())
        self.factor = lcm(*(child.weight for child in self.children.values()))
        self.mask = 0
        self.scaled = [0] * len(world.names)
        self._open_use = [0] * len(world.names)
        self.lines.clear()
        self.covered_lines.clear()
        self._admitting.clear()
        self.partial.clear()
        self.order.clear()
        self.inner_order.clear()
        self._entries = 0

    def _place_leaf(self, leaf: Leaf, world: World) -> None:
        before = self._take_out(leaf)
        admitted, covered = leaf.open(world)
        if admitted:
            ratios = world.ratios(leaf.use)
            dominant = max(ratios, default=0)
            place = self._put_in(leaf, world, (admitted, covered), ratios, dominant, dominant)
            for lines, mask in ((self.lines, admitted), (self.covered_lines, covered)):
                for bit in bits_of(mask):
                    line = lines.setdefault(bit, [])
                    heappush(line, place)
                    if len(line) > 2 * self._entries + 16:
                        tidy(line)
        self._recount(before, admitted)

    def _place_node(self, child: Node, world: World) -> None:
        before = self._take_out(child)
        if child.admitted:
            largest = max(child.direction, default=0)
            place = self._put_in(child, world, (child.admitted, 0), child.direction, largest, child.dominant)
            heappush(self.inner_order, place)
            if len(self.inner_order) > 2 * self._entries + 16:
                tidy(self.inner_order)
        # One in or below which a quota refuses some that wait: what it counts as using is not that of a decision.
        if child.admitted and (child.partial or child.admitted != child.mask):
            self.partial.add(child)
        else:
            self.partial.discard(child)
        self._recount(before, child.admitted)

    def _put_in(
        self, child: Leaf | Node, world: World, masks: tuple[int, int], direction: list[int], norm: int, dominant: int
    ) -> tuple[int, str, int, Leaf | Node]:
        """Let a waiting child stand among its siblings; return its place in their order."""
        weight = child.weight
        if self.parent is None:  # what the root counts as using is never asked
            entry = child.entry = Entry(world.serial(), *masks, [], [])
        else:
            unit = weight * QUANTUM
            scaled = [unit * part // norm for part in direction] if norm else direction
            entry = child.entry = Entry(world.serial(), *masks, scaled, child.use.copy())
            self.scaled = list(map(add, self.scaled, scaled))
            self._open_use = list(map(add, self._open_use, entry.use))
        self._entries += 1
        place = (dominant * (self.factor // weight), child.name, entry.serial, child)
        heappush(self.order, place)
        if len(self.order) > 2 * self._entries + 16:
            tidy(self.order)
        return place

    def _take_out(self, child: Leaf | Node) -> int:
        """Take a child out from among its siblings; return the shapes for which it stood there."""
        entry = child.entry
        if entry is None:
            return 0
        if self.parent is not None:
            self.scaled = list(map(sub, self.scaled, entry.scaled))
            self._open_use = list(map(sub, self._open_use, entry.use))
        self._entries -= 1
        child.entry = None
        return entry.admitted

    def _recount(self, before: int, after: int) -> None:
        for bit in bits_of(before & ~after):
            self._admitting[bit] -= 1
            if not self._admitting[bit]:
                del self._admitting[bit]
                self.mask &= ~(1 << bit)
                self.lines.pop(bit, None)
                self.covered_lines.pop(bit, None)
        for bit in bits_of(after & ~before):
            self._admitting[bit] = self._admitting.get(bit, 0) + 1
            self.mask |= 1 << bit

    def _sum_up(self, world: World) -> None:
        self.admitted = self.mask
        if self.quota:
            for bit in bits_of(self.mask):
                if exceeded(self.quota, self.use, world.shapes.of_bit[bit].amounts) is not None:
                    self.admitted &= ~(1 << bit)
        if self.guaranteed:
            self._cover(world)
        elif self.coverable:
            self.covered = self.coverable = 0
        if self.parent is None:
            return
        self.full = world.ratios(self.use)
        rest = list(map(sub, self.use, self._open_use))
        self.rest = world.ratios(rest) if any(rest) else rest
        lowest = head(self.order)
        if lowest is None:
            return
        self.lowest = lowest[0]
        self.consumption = self.at_level(self.lowest)
        self.dominant = max(self.consumption, default=0)
        self.direction = self.consumption if self.dominant else self.scaled

    def _cover(self, world: World) -> None:
        self.covered = below = 0
        if self.guarantee:
            for bit in bits_of(self.admitted):
                if covers(self.guarantee, self.use, world.shapes.of_bit[bit].amounts):
                    self.covered |= 1 << bit
        for bit, line in self.covered_lines.items():
            if head(line) is not None:
                below |= 1 << bit
        if self.inner:
            for child in self.children.values():
                below |= child.coverable
        self.coverable = self.admitted & (self.covered | below)

    def at_level(self, key: int) -> list[int]:
        """Return what it counts as using with all children that wait at this level, but never more than it uses."""
        unit = self.factor * QUANTUM
        return [
            min(full, rest + key * scaled // unit)
            for full, rest, scaled in zip(self.full, self.rest, self.scaled, strict=True)
        ]


def head(heap: Heap) -> tuple[int, str, int, Leaf | Node] | None:
    """Return the first place that is still taken, if any is."""
    while heap:
        place = heap[0]
        entry = place[3].entry
        if entry is not None and entry.serial == place[2]:
            return place
        heappop(heap)
    return None


def tidy(heap: Heap) -> None:
    """Forget the places that were left."""
    heap[:] = [place for place in heap if (entry := place[3].entry) is not None and entry.serial == place[2]]
    heapify(heap)
