"""Nodes by state, in buckets: equal hardware with equal devices free is one situation, however many nodes are in it.

What makes hardware equal depends on what is asked: by kind alone most nodes are the same, a selector tells some apart.
So there is a table for each set of aspects that claims look at; claims that look at the same share one. A table is
brought up to date from ``state.touched``, and tells its readers which situations came into being.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from hal.broker.allocation.facts import Layout, capacity_of
from hal.broker.allocation.places import Node, Partial

if TYPE_CHECKING:
    from hal.broker.state import State

Aspect = tuple[str, Any]
MOST_SITUATIONS = 100_000
MOST_TABLES = 64
FEW = 16
"""So few changes are not worth a look for doubles."""
TABLES = "tables"
"""Where the tables are in ``state.views``."""


class Hardware:
    """What the nodes of one sort have in common: the layout, and each aspect's value."""

    __slots__ = ("layout", "number", "situations", "values")

    def __init__(self, number: int, layout: Layout, values: dict[Aspect, Any]) -> None:
        self.number = number
        self.layout = layout
        self.values = values
        self.situations: dict[int | tuple[int, Partial], Situation] = {}


class Situation:
    """Nodes of one sort of hardware with the same devices free: a heap of their numbers, stale ones among them.

    ``live`` counts those that are truly in it. ``free`` are positions that nobody has; in tables that look at what is
    given in part, or at conditions borne, it leaves out whether they are fit.
    """

    __slots__ = ("free", "hardware", "heap", "live", "number", "partial", "queued")

    def __init__(self, number: int, hardware: Hardware, free: int, partial: Partial) -> None:
        self.number = number
        self.hardware = hardware
        self.free = free
        self.partial = partial
        self.live = 0
        self.heap: list[int] = []
        self.queued: set[int] = set()

    def first(self, where: Sequence[Situation | None]) -> int | None:
        """Return the lowest number of the nodes in it, or None."""
        heap = self.heap
        while heap:
            index = heap[0]
            if where[index] is self:
                return index
            heappop(heap)
            self.queued.discard(index)
        return None

    def members(self, where: Sequence[Situation | None]) -> list[int]:
        """Return the numbers of all nodes in it."""
        return sorted(index for index in self.queued if where[index] is self)


class Table:
    """The situation of each node, for all claims that look at the same ``aspects``.

    ``loose``: what is given in part, and what is free but unfit, is told apart. ``empty``: as if nothing were held.
    """

    def __init__(self, aspects: frozenset[Aspect], loose: bool, empty: bool = False) -> None:
        self.aspects = tuple(sorted(aspects, key=repr))
        self.loose = loose
        self.empty = empty
        self.seen = -1
        self.where: list[Situation | None] = []
        self.births: list[Situation] = []
        self.forgotten_births = 0
        self._versions: list[int] = []
        self._hardware: list[Hardware | None] = []
        self._sorts: dict[tuple[Any, ...], Hardware] = {}
        self._made = 0
        self._known = 0

    def refresh(self, state: State) -> None:
        """Look at the nodes that changed since the last time."""
        if state.dirty:
            state.settle()
        touched = state.touched
        reached = state.forgotten_touches + len(touched)
        seen = self.seen
        if seen == reached:
            return
        nodes = state.nodes
        if len(self.where) < len(nodes):
            more = len(nodes) - len(self.where)
            self.where.extend([None] * more)
            self._versions.extend([-1] * more)
            self._hardware.extend([None] * more)
        self.seen = reached
        start = seen - state.forgotten_touches
        if seen < 0 or start < 0:
            self._move(nodes, range(len(nodes)))
        elif reached - seen <= FEW:
            self._move(nodes, touched[start:])  # a node that comes twice has nothing new to tell
        else:
            self._move(nodes, dict.fromkeys(touched[start:]))
        if self._known > MOST_SITUATIONS + 4 * len(nodes):
            self._prune()

    def _move(self, nodes: Sequence[Node], changed: Iterable[int]) -> None:
        where, versions, hardwares = self.where, self._versions, self._hardware
        special = self.loose or self.empty
        for index in changed:
            node = nodes[index]
            if versions[index] != node.version:
                hardwares[index] = self._sort(node)
                versions[index] = node.version
            elif self.empty:
                continue
            hardware = hardwares[index]
            if hardware is None:
                continue
            if special:
                situation = (
                    self.as_if(node, *node.emptied())
                    if self.empty
                    else self._situation(hardware, node.open, node.partial)
                )
            else:
                found = hardware.situations.get(node.free)
                situation = found if found is not None else self._situation(hardware, node.free, ())
            before = where[index]
            if situation is before:
                continue
            where[index] = situation
            if before is not None:
                before.live -= 1
            queued = situation.queued
            if index not in queued:
                queued.add(index)
                heappush(situation.heap, index)
            live = situation.live
            situation.live = live + 1
            if not live:
                births = self.births
                births.append(situation)
                if len(births) > 4096 + 4 * len(where):
                    self.forgotten_births += len(births)
                    births.clear()

    def _sort(self, node: Node) -> Hardware:
        values = {aspect: value_of(aspect, node) for aspect in self.aspects}
        key = (node.layout, *values.values())
        found = self._sorts.get(key)
        if found is None:
            self._made += 1
            found = self._sorts[key] = Hardware(self._made, node.layout, values)
        return found

    def _situation(self, hardware: Hardware, free: int, partial: Partial) -> Situation:
        key = (free, partial) if self.loose else free
        found = hardware.situations.get(key)
        if found is None:
            self._made += 1
            self._known += 1
            found = hardware.situations[key] = Situation(self._made, hardware, free, partial)
        return found

    def as_if(self, node: Node, open_: int, partial: Partial) -> Situation:
        """Return the situation that a node would be in if it were free like this; nobody is put into it."""
        hardware = self._hardware[node.index]
        assert hardware is not None
        return (
            self._situation(hardware, open_, partial) if self.loose else self._situation(hardware, node.fit & open_, ())
        )

    def alive(self) -> list[Situation]:
        """Return the situations that some node is in."""
        return [s for hardware in self._sorts.values() for s in hardware.situations.values() if s.live]

    def _prune(self) -> None:
        """Forget situations that no node is in, and hardware that is no more."""
        self._known = 0
        present = {id(hardware) for hardware in self._hardware}
        self._sorts = {key: hardware for key, hardware in self._sorts.items() if id(hardware) in present}
        for hardware in self._sorts.values():
            hardware.situations = {key: s for key, s in hardware.situations.items() if s.live}
            self._known += len(hardware.situations)


def value_of(aspect: Aspect, node: Node) -> Any:
    """Return what a node has to say to one aspect: nodes with equal values are equal under it."""
    what, about = aspect
    match what:
        case "matching":
            return node.matching_by(about)
        case "fit":
            return node.fit_for(about)
        case "groups":
            return node.domains(about)
        case "capacity":
            return tuple(tuple(capacity_of(device, name) for name in about) for device in node.devices)
        case _:
            return tuple(device.value("partition_placements") for device in node.devices)


def table_of(state: State, aspects: frozenset[Aspect], loose: bool, empty: bool = False) -> Table:
    """Return the table for these aspects, made when it is first asked for."""
    tables: dict[tuple[frozenset[Aspect], bool, bool], Table] = state.views.setdefault(TABLES, {})
    table = tables.get((aspects, loose, empty))
    if table is None:
        while len(tables) >= MOST_TABLES:
            del tables[next(iter(tables))]
        table = tables[aspects, loose, empty] = Table(aspects, loose, empty)
    return table
