"""What all nodes together have for one reading of a claim, kept up to date from the nodes that changed.

Where rules ask for no more than pairs within a node, and no device fits two requests, the nodes do not depend on each
other: what each could give to every *part* of the claim adds up, and a claim fits exactly if the sums are enough. Then
counting decides over all nodes, and only the few that give something are looked at.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from hal.broker.allocation.facts import Layout
from hal.broker.allocation.look import Look
from hal.broker.allocation.plain import ON_ONE_NODE, Facts, Plain
from hal.broker.allocation.problem import Bond, Conflict
from hal.broker.allocation.states import Situation
from hal.model.claim import Share

if TYPE_CHECKING:
    from hal.broker.state import State

MOST_RACKS = 8
"""Of how many racks with enough for the first part it is looked whether they have enough for the others."""
MOST_KNOWN = 65536


class Part(NamedTuple):
    """Requests that go together: one alone (``rule`` is None), or those of a rule of pairs, by its number."""

    requests: tuple[int, ...]
    rule: int | None
    wanted: int


class Worth(NamedTuple):
    """What a node could give: devices to each request, then of those the ones that a rule lets in; to each part."""

    devices: tuple[int, ...]
    inside: tuple[int, ...]
    parts: tuple[int, ...]
    apart: bool


def parts_of(plain: Plain) -> tuple[Part, ...] | None:
    """Return the parts of a claim that can be counted node by node, None if a rule reaches further."""
    if any(r.count == "all" or r.share is Share.SHARED or r.profile for r in plain.requests):
        return None
    found: list[Part] = []
    bound: set[int] = set()
    for number, ((_, rule), bond, who) in enumerate(zip(plain.rules, plain.bonds, plain.concerned, strict=True)):
        if bond is not Bond.PAIRS or rule.same not in ON_ONE_NODE or bound.intersection(who) or not who:
            return None
        bound.update(who)
        found.append(Part(tuple(who), number, int(plain.requests[who[0]].count)))
    found += [Part((i,), None, int(r.count)) for i, r in enumerate(plain.requests) if i not in bound]
    return tuple(found)


class Tally:
    """The worth of each node, of each rack, and of all."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self.parts = parts_of(look.plain)
        self.seen = -1
        self.nodes = 0
        requests = len(look.plain.requests)
        self.devices = [0] * requests
        self.inside = [0] * requests
        self.sums = [0] * len(self.parts or ())
        self.tangled = 0
        """How many nodes cannot be counted by themselves: their devices fit several requests, or share their fate."""
        self._worth: list[Worth | None] = []
        self._racks: dict[str, list[int]] = {}
        self._members: dict[str, dict[int, None]] = {}
        self._by_sum: list[tuple[int, str]] = []
        self._rack: list[str | None] = []
        self._versions: list[int] = []
        self._buckets: list[dict[int, list[int]]] = [{} for _ in self.sums]
        self._known: dict[int, tuple[Situation, Worth]] = {}
        self._outer: dict[int, tuple[tuple[int, ...], ...] | None] = {}
        self._nothing = Worth((0,) * requests, (0,) * requests, (0,) * len(self.sums), True)

    @property
    def counts(self) -> bool:
        """True if the nodes do not depend on each other, so that counting decides."""
        return self.parts is not None and not self.tangled

    # --- keeping up

    def refresh(self, state: State) -> None:
        """Look at the nodes that changed since the last time."""
        touched = state.touched
        reached = state.forgotten_touches + len(touched)
        if self.seen == reached:
            return
        more = len(state.nodes) - len(self._worth)
        if more:
            self._worth.extend([None] * more)
            self._rack.extend([None] * more)
            self._versions.extend([-1] * more)
        start = self.seen - state.forgotten_touches
        changed: Iterable[int] = range(len(state.nodes))
        if self.seen >= 0 and start >= 0:
            changed = dict.fromkeys(touched[start:])
        self.seen = reached
        where, nodes, versions = self.look.table.where, state.nodes, self._versions
        for index in changed:
            situation = where[index]
            if situation is None:
                continue
            if versions[index] != nodes[index].version:
                versions[index] = nodes[index].version
                self._move(index, nodes[index].rack)
            worth = self.worth(situation)
            before = self._worth[index]
            if worth is not before:
                self._change(index, before, worth)

    def _move(self, index: int, rack: str | None) -> None:
        """Put a node into a rack."""
        before = self._rack[index]
        if before == rack:
            return
        worth = self._worth[index]
        if before is not None:
            del self._members[before][index]
            if worth is not None:
                self._add(before, worth.parts, -1)
        self._rack[index] = rack
        if rack is not None:
            self._members.setdefault(rack, {})[index] = None
            if worth is not None:
                self._add(rack, worth.parts, 1)

    def _change(self, index: int, before: Worth | None, worth: Worth) -> None:
        self._worth[index] = worth
        if before is None:
            self.nodes += 1
            before = self._nothing
        self.tangled += before.apart - worth.apart
        for i, (old, new) in enumerate(zip(before.devices, worth.devices, strict=True)):
            self.devices[i] += new - old
        for i, (old, new) in enumerate(zip(before.inside, worth.inside, strict=True)):
            self.inside[i] += new - old
        if before.parts == worth.parts:
            return
        for part, (old, new) in enumerate(zip(before.parts, worth.parts, strict=True)):
            self.sums[part] += new - old
            if new and new != old:
                heapq.heappush(self._buckets[part].setdefault(new, []), index)
        rack = self._rack[index]
        if rack is not None:
            self._add(rack, tuple([new - old for old, new in zip(before.parts, worth.parts, strict=True)]), 1)

    def _add(self, rack: str, parts: tuple[int, ...], sign: int) -> None:
        if not parts:
            return
        sums = self._racks.get(rack)
        if sums is None:
            sums = self._racks[rack] = [0] * len(parts)
            insort(self._by_sum, (0, rack))
        first = sums[0]
        for part, amount in enumerate(parts):
            sums[part] += sign * amount
        if sums[0] != first:
            del self._by_sum[bisect_left(self._by_sum, (first, rack))]
            insort(self._by_sum, (sums[0], rack))

    # --- what one node is worth

    def worth(self, situation: Situation) -> Worth:
        """Return what a node in this situation could give."""
        known = self._known.get(situation.number)
        if known is not None and known[0] is situation:
            return known[1]
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        found = self._worth_of(situation)
        self._known[situation.number] = (situation, found)
        return found

    def _worth_of(self, situation: Situation) -> Worth:
        facts = self.look.facts(situation)
        masks = facts.available(situation)
        devices = tuple([mask.bit_count() for mask in masks])
        if self.parts is None:
            return Worth(devices, devices, (), True)
        number = situation.hardware.number
        if number not in self._outer:
            self._outer[number] = _outermost(facts, self.parts)
        outer = self._outer[number]
        if outer is None:
            return Worth(devices, devices, self._nothing.parts, False)
        inside = list(devices)
        gives: list[int] = []
        for part, groups in zip(self.parts, outer, strict=True):
            if part.rule is None:
                gives.append(devices[part.requests[0]])
                continue
            rows = [[(masks[i] & group).bit_count() for i in part.requests] for group in groups]
            gives.append(sum([min(row) for row in rows]))
            for n, i in enumerate(part.requests):
                inside[i] = sum([row[n] for row in rows])
        return Worth(devices, tuple(inside), tuple(gives), True)

    # --- answers

    def short(self) -> Conflict | None:
        """Return the proof that there is too little of something, rules by their number in the reading, or None.

        Only of what counting decides; the smallest proof as :func:`~hal.broker.allocation.solver.solve` would give it.
        """
        assert self.parts is not None
        for part, has in zip(self.parts, self.sums, strict=True):
            if has >= part.wanted or part.rule is None:
                continue
            for i in part.requests:
                if self.inside[i] < part.wanted:
                    return Conflict((i,), (part.rule,), part.wanted, self.inside[i])
            if len(part.requests) <= 2:
                return Conflict(part.requests, (part.rule,), part.wanted, has)
        return None

    def enough(self) -> bool:
        """True if the claim can be met."""
        return all(has >= part.wanted for part, has in zip(self.parts or (), self.sums, strict=True))

    def givers(self) -> list[int]:
        """Return a few nodes that have enough together, in one rack if that will do; call if there is :meth:`enough`.

        Of the racks that will do the one with the least to spare; of the nodes those with the most, and for the rest
        the one that fits best.
        """
        assert self.parts is not None
        first = self.parts[0].wanted
        at = bisect_left(self._by_sum, (first, ""))
        for _, rack in self._by_sum[at : at + MOST_RACKS]:
            if all(has >= part.wanted for part, has in zip(self.parts, self._racks[rack], strict=True)):
                return self._chosen(rack)
        return self._chosen(None)

    def _chosen(self, rack: str | None) -> list[int]:
        chosen: dict[int, None] = {}
        for number, part in enumerate(self.parts or ()):
            left = part.wanted
            for index in chosen:
                left -= self._gives(index, number)
            while left > 0:
                index = self._next(number, left, rack, chosen)
                chosen[index] = None
                left -= self._gives(index, number)
        return list(chosen)

    def _gives(self, index: int, part: int) -> int:
        worth = self._worth[index]
        return worth.parts[part] if worth is not None else 0

    def _next(self, part: int, left: int, rack: str | None, chosen: Mapping[int, None]) -> int:
        """Return the node with just enough of a part, or the one with the most."""
        if rack is not None:
            seats = [(self._gives(i, part), i) for i in self._members[rack] if i not in chosen]
            fitting = [seat for seat in seats if seat[0] >= left]
            return min(fitting)[1] if fitting else min(seats, key=lambda seat: (-seat[0], seat[1]))[1]
        buckets = self._buckets[part]
        amounts = sorted(buckets)
        for amount in [*(a for a in amounts if a >= left), *reversed([a for a in amounts if a < left])]:
            index = self._first(part, amount, chosen)
            if index is not None:
                return index
        raise AssertionError("the sums say that there is enough")

    def _first(self, part: int, amount: int, chosen: Mapping[int, None]) -> int | None:
        """Return the lowest node that gives so much of a part."""
        heap = self._buckets[part][amount]
        aside: list[int] = []
        found: int | None = None
        while heap:
            index = heapq.heappop(heap)
            if self._gives(index, part) != amount or (aside and aside[-1] == index):
                continue  # it was, once
            aside.append(index)
            if index not in chosen:
                found = index
                break
        for index in aside:
            heapq.heappush(heap, index)
        if not heap:
            del self._buckets[part][amount]
        return found


def tally_of(state: State, look: Look) -> Tally:
    """Return what all nodes have for a reading, up to date."""
    tally = look.rooms.get("tally")
    if not isinstance(tally, Tally):
        tally = look.rooms["tally"] = Tally(look)
    tally.refresh(state)
    return tally


def _outermost(facts: Facts, parts: tuple[Part, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Return the outermost groups of each part on one sort of hardware, None if its devices cannot be counted so."""
    union = 0
    for mask in facts.masks:
        if union & mask:
            return None
        union |= mask
    if _share_fate(facts.layout, union):
        return None
    found: list[tuple[int, ...]] = []
    for part in parts:
        outer: list[int] = []
        groups = facts.rules[part.rule].groups if part.rule is not None else ()
        for group in sorted({group & union for group in groups}, key=int.bit_count, reverse=True):
            if any(group & other for other in outer):
                if not any(group & ~other == 0 for other in outer):
                    return None
                continue
            if group:
                outer.append(group)
        found.append(tuple(outer))
    return tuple(found)


def _share_fate(layout: Layout, union: int) -> bool:
    return any(union >> p & 1 and (family & union).bit_count() > 1 for p, family in enumerate(layout.fate))
