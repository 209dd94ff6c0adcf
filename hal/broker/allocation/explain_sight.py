"""How the devices look to one request alone: how many there are, fit and are free, kept up to date by what changed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from hal.broker.allocation.plain import Facts, Plain, of_kind
from hal.broker.allocation.states import Hardware, Situation, Table, table_of
from hal.model.claim import Request
from hal.model.device import Device

if TYPE_CHECKING:
    from hal.broker.state import State

SIGHTS = "sights"
"""Where the sights are in ``state.views``."""
MOST_SIGHTS = 64


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
        if before[2]:
            del self._by_free[before[2]][index]
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
        return max((free for free, nodes in self._by_free.items() if nodes), default=0)

    def refused(self, state: State) -> Iterator[Device]:
        """Yield the allocatable devices of the kind that cannot be given now."""
        for index in self._refused:
            situation, node = self._table.where[index], state.nodes[index]
            if situation is None:
                continue
            facts = self.facts(situation)
            rest = of_kind(facts.layout.kinds, self.request.kind) & ~facts.available(situation)[0]
            while rest:
                bit = rest & -rest
                rest ^= bit
                yield node.devices[bit.bit_length() - 1]


def sight_of(state: State, request: Request) -> Sight:
    """Return how one request looks now."""
    state.settle()
    count = 1 if request.count == "all" else request.count
    if request.or_else or request.name or count != 1 or request.count == "all" or request.cost:
        request = msgspec.structs.replace(request, or_else=(), name="", count=1, cost=0.0)
    sights: dict[Request, Sight] = state.views.setdefault(SIGHTS, {})
    sight = sights.get(request)
    if sight is None:
        while len(sights) >= MOST_SIGHTS:
            del sights[next(iter(sights))]
        sight = sights[request] = Sight(state, request)
    sight.refresh(state)
    return sight
