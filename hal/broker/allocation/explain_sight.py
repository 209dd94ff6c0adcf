"""How the devices look to one request alone: how many there are, fit and are free, kept up to date by what changed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from hal.broker.allocation.explain_reasons import why_never, why_not, why_taken
from hal.broker.allocation.places import Node
from hal.broker.allocation.plain import Facts, Plain, of_kind
from hal.broker.allocation.states import Hardware, Situation, Table, table_of
from hal.model.claim import Request
from hal.model.device import Device

if TYPE_CHECKING:
    from hal.broker.state import State

SIGHTS = "sights"
"""Where the sights are in ``state.views``."""
MOST_SIGHTS = 64
MOST_FLAWS = 4096


_NONE = (0, 0, 0, False)


class Sight:
    """One request (its alternatives aside) over all nodes.

    ``there`` counts the devices of its kind, ``matching`` those that are what was asked for, ``free`` those that could
    be given now. ``fated`` counts the nodes where devices share their fate.
    """

    def __init__(self, state: State, request: Request) -> None:
        self.request = request
        self.plain = Plain((request,), (), (), ("it",))
        self.there = self.matching = self.free = self.fated = 0
        self._seen = -1
        self._facts: dict[Hardware, Facts] = {}
        self._counts: list[tuple[int, int, int, bool]] = []
        self._refused: dict[int, None] = {}
        self._by_free: dict[int, dict[int, None]] = {}
        self._most: int | None = None
        self._racks: Racks | None = None
        self._flaws: dict[str, tuple[int, str | None]] = {}
        self._aspects = self.plain.aspects()
        self._table: Table = table_of(state, self._aspects, self.plain.loose)

    def refresh(self, state: State) -> None:
        """Look at the nodes that changed since the last time."""
        if state.forgotten_touches + len(state.touched) == self._seen:
            return
        table = table_of(state, self._aspects, self.plain.loose)
        if table is not self._table:
            self._table, self._seen = table, -1
            self._facts.clear()
        table.refresh(state)
        reached = state.forgotten_touches + len(state.touched)
        self._counts.extend([_NONE] * (len(state.nodes) - len(self._counts)))
        start = self._seen - state.forgotten_touches
        every = self._seen < 0 or start < 0
        self._seen = reached
        for index in range(len(state.nodes)) if every else dict.fromkeys(state.touched[start:]):
            self._update(index)
            if self._racks is not None:
                self._racks.update(index, state.nodes[index].rack, self._counts[index][2])

    def _update(self, index: int) -> None:
        situation = self._table.where[index]
        counts = _NONE if situation is None else self._count(situation)
        before = self._counts[index]
        if counts == before:
            return
        self._counts[index] = counts
        self.there += counts[0] - before[0]
        self.matching += counts[1] - before[1]
        self.free += counts[2] - before[2]
        self.fated += counts[3] - before[3]
        self._most = None
        if before[2]:
            del self._by_free[before[2]][index]
            if not self._by_free[before[2]]:
                del self._by_free[before[2]]
        if counts[2]:
            self._by_free.setdefault(counts[2], {})[index] = None
        if counts[0] > counts[2]:
            self._refused[index] = None
        else:
            self._refused.pop(index, None)

    def _count(self, situation: Situation) -> tuple[int, int, int, bool]:
        facts = self.facts(situation)
        kind = of_kind(facts.layout.kinds, self.request.kind)
        free = facts.available(situation)[0]
        return kind.bit_count(), facts.matching[0].bit_count(), free.bit_count(), bool(facts.layout.fate)

    def facts(self, situation: Situation) -> Facts:
        """Return how the request looks on the hardware of a situation."""
        facts = self._facts.get(situation.hardware)
        if facts is None:
            if len(self._facts) > 4096:
                self._facts.clear()
            facts = self._facts[situation.hardware] = Facts(self.plain, situation.hardware)
        return facts

    def fullest(self, most: int) -> list[int]:
        """Return the numbers of a few nodes with as many free devices as any."""
        found: list[int] = []
        for free in sorted(self._by_free, reverse=True):
            found += islice(self._by_free[free], most - len(found))
            if len(found) >= most:
                break
        return found

    @property
    def most_on_a_node(self) -> int:
        """The most free devices that one node has."""
        if self._most is None:
            self._most = max(self._by_free, default=0)
        return self._most

    def most_in_a_rack(self, state: State) -> int:
        """The most free devices that one rack has; a node of which the rack is not known is one by itself."""
        if self._racks is None:
            self._racks = Racks()
            for index, counts in enumerate(self._counts):
                self._racks.update(index, state.nodes[index].rack, counts[2])
        return max(self._racks.most, self.most_on_a_node)

    def refused(self, state: State) -> Iterator[tuple[Device, str]]:
        """Yield the allocatable devices of the kind that cannot be given now, and why."""
        for index in self._refused:
            situation, node = self._table.where[index], state.nodes[index]
            if situation is None:
                continue
            facts = self.facts(situation)
            rest = of_kind(facts.layout.kinds, self.request.kind) & ~facts.available(situation)[0]
            while rest:
                bit = rest & -rest
                rest ^= bit
                device = node.devices[bit.bit_length() - 1]
                yield device, self._why(state, node, device) or "it is not free"

    def _why(self, state: State, node: Node, device: Device) -> str | None:
        if state.cordons:
            return why_not(state, self.request, device)
        # What a device is by itself is known until the node's devices change; who has it is looked up.
        known = self._flaws.get(device.id)
        if known is None or known[0] != node.version:
            if len(self._flaws) >= MOST_FLAWS:
                self._flaws.clear()
            known = self._flaws[device.id] = node.version, why_never(state, self.request, device)
        return known[1] or why_taken(state, self.request, device)


class Racks:
    """How many free devices each rack has, counted from its nodes."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[str, int]] = {}
        self._free: dict[str, int] = {}
        self._counts: dict[int, int] = {}

    @property
    def most(self) -> int:
        """The most that one rack has."""
        return max(self._counts, default=0)

    def update(self, index: int, rack: str | None, free: int) -> None:
        """Count a node anew."""
        before = self._of.pop(index, None)
        if before is not None:
            self._add(before[0], -before[1])
        if rack is not None and free:
            self._of[index] = rack, free
            self._add(rack, free)

    def _add(self, rack: str, more: int) -> None:
        before = self._free.get(rack, 0)
        self._free[rack] = after = before + more
        if before:
            self._counts[before] -= 1
            if not self._counts[before]:
                del self._counts[before]
        if after:
            self._counts[after] = self._counts.get(after, 0) + 1


def sight_of(state: State, request: Request) -> Sight:
    """Return how one request looks now."""
    state.settle()
    sights: dict[object, Sight] = state.views.setdefault(SIGHTS, {})
    capacity = tuple(request.capacity.items()) if request.capacity else ()
    key = (
        request.kind.value,
        request.where,
        request.cel,
        capacity,
        request.share.value,
        request.profile,
        request.tolerate,
    )
    sight = sights.get(key)
    if sight is None:
        while len(sights) >= MOST_SIGHTS:
            del sights[next(iter(sights))]
        alone = msgspec.structs.replace(request, or_else=(), name="", count=1, cost=0.0)
        sight = sights[key] = Sight(state, alone)
    sight.refresh(state)
    return sight
