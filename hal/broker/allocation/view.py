"""Finds the devices of a claim: quickly where nodes look alike, exactly everywhere.

Nodes fall into classes that differ in what matters to one *shape* of claim (requests and constraints, whoever asks):
which devices each selector matches and how they are wired. Within a class the free devices are one integer, the
node's state. A :class:`View` keeps, for one shape, the nodes by state, solves each state once, and keeps the states
by score, so that a claim costs what changed since the last one and not the number of devices.

A claim that must not or does not fit on one node is solved over all the nodes of a rack or of the data center.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from hal.broker.allocation.matching import Assignment, Budget, NoPlace, Order, OutOfBudget, Shortfall, lowest, match, solve
from hal.broker.allocation.places import Layout, Node
from hal.broker.state import State
from hal.model.claim import Claim, Constraint, Locality, Request, request_names

Shape = tuple[tuple[Request, ...], tuple[Constraint, ...]]
Key = tuple[int, int]
Choice = list[tuple[Node, tuple[int, ...]]]
"""For each node concerned, a mask of positions for each request."""

MOST_VIEWS = 128


@dataclass(frozen=True, slots=True)
class Place:
    """The chosen devices, and what the requests are called."""

    choice: Choice
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not: a count that falls short, or a constraint that no place can keep."""

    cause: Shortfall | NoPlace


Outcome = Place | Refusal | None
"""None: the budget ran out."""


class _Bucket:
    """The nodes in one state: a heap of their numbers, with stale ones dropped as they come up."""

    __slots__ = ("heap", "queued")

    def __init__(self) -> None:
        self.heap: list[int] = []
        self.queued: set[int] = set()

    def add(self, index: int) -> None:
        if index not in self.queued:
            self.queued.add(index)
            heapq.heappush(self.heap, index)

    def first(self, keys: list[Key | None], key: Key) -> int | None:
        while self.heap:
            index = self.heap[0]
            if keys[index] == key:
                return index
            heapq.heappop(self.heap)
            self.queued.discard(index)
        return None


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the nodes of one class have in common."""

    layout: Layout
    masks: tuple[int, ...]
    union: int
    constraints: list[tuple[tuple[int, ...], tuple[int, ...]]]


class View:
    """All nodes as one shape of claim sees them."""

    def __init__(self, shape: Shape) -> None:
        self.requests, self.constraints = shape
        self.counts = tuple(request.count for request in self.requests)
        self.total = sum(self.counts)
        self.names = request_names(self.requests)
        self.concerned = tuple(_concerned(constraint, self.names) for constraint in self.constraints)
        self.covering = -1
        for number, constraint in enumerate(self.constraints):
            if constraint.same is not Locality.RACK and len(self.concerned[number]) == len(self.requests):
                self.covering = number
        self.one_node = self.covering >= 0
        self.seen = -1
        self.answered: tuple[int, Refusal] | None = None
        self.told: tuple[int, Shortfall | NoPlace, str] | None = None
        self.keys: list[Key | None] = []
        self._versions: list[int] = []
        self._class: list[int] = []
        self._classes: dict[tuple[Layout, bool, tuple[int, ...]], int] = {}
        self._facts: list[_Facts] = []
        self._unknown: set[Key] = set()
        self._buckets: dict[Key, _Bucket] = {}
        self._solved: dict[Key, tuple[tuple[int, ...], Assignment] | None] = {}
        self._states: list[tuple[tuple[int, ...], Key]] = []
        self._queued: set[Key] = set()

    def refresh(self, state: State) -> None:
        """Look at the nodes that changed since the last time."""
        state.settle()
        reached = state.forgotten_touches + len(state.touched)
        if self.seen == reached:
            return
        if state.nodes and len(self.keys) < len(state.nodes):
            more = len(state.nodes) - len(self.keys)
            self.keys.extend([None] * more)
            self._versions.extend([-1] * more)
            self._class.extend([-1] * more)
        start = self.seen - state.forgotten_touches
        changed: Sequence[int] = state.touched[start:] if start >= 0 else range(len(state.nodes))
        self.seen = reached
        for index in changed:
            self._update(state.nodes[index])

    def _update(self, node: Node) -> None:
        index = node.index
        if self._versions[index] != node.version:
            masks = tuple(node.matching(request) for request in self.requests)
            identity = (node.layout, node.rack is not None, masks)
            number = self._classes.get(identity)
            if number is None:
                number = self._classes[identity] = len(self._facts)
                union = 0
                for mask in masks:
                    union |= mask
                constraints = [
                    (node.domains(constraint.same), concerned)
                    for constraint, concerned in zip(self.constraints, self.concerned, strict=True)
                ]
                # Relatives of what matches decide nothing but through ``free``, so only the matching bits matter.
                self._facts.append(_Facts(node.layout, masks, union, constraints))
            self._class[index] = number
            self._versions[index] = node.version
        number = self._class[index]
        key = (number, node.free & self._facts[number].union)
        if key != self.keys[index]:
            self.keys[index] = key
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = _Bucket()
            bucket.add(index)
            self._offer(key)

    def _offer(self, key: Key) -> None:
        if key in self._queued:
            return
        if key not in self._solved:
            self._solved[key] = self._solve(key)
        solved = self._solved[key]
        if solved is not None:
            self._queued.add(key)
            heapq.heappush(self._states, (solved[0], key))

    def _solve(self, key: Key) -> tuple[tuple[int, ...], Assignment] | None:
        facts = self._facts[key[0]]
        layout, free = facts.layout, key[1]
        if free.bit_count() < self.total:
            return None
        narrowed = [mask & free for mask in facts.masks]
        pick = closest_first(layout, free, self.total)
        try:
            found = solve(narrowed, self.counts, facts.constraints, fate=layout[0], pick=pick)
        except OutOfBudget:
            self._unknown.add(key)
            return None
        if not isinstance(found, Assignment):
            return None
        taken = 0
        for mask in found.masks:
            taken |= mask
        left = [(place & free & ~taken).bit_count() for place in found.domains]
        return (*left, free.bit_count() - self.total, _broken(layout[2], free, taken)), found

    @property
    def undecided(self) -> bool:
        """True if the search was given up on the state of some node."""
        return bool(self._unknown) and any(key in self._unknown for key in self.keys)

    def best(self) -> tuple[int, Assignment] | None:
        """Return the node and the devices of the best state there is, or None."""
        while self._states:
            key = self._states[0][1]
            bucket = self._buckets.get(key)
            index = bucket.first(self.keys, key) if bucket is not None else None
            if index is not None:
                solved = self._solved[key]
                assert solved is not None
                return index, solved[1]
            heapq.heappop(self._states)
            self._queued.discard(key)
            self._buckets.pop(key, None)
        return None


def allocate(state: State, claim: Claim, view: View | None = None) -> Outcome:
    """Choose the devices of a claim, or say why there are none. Changes nothing but the views, which are memory."""
    if view is None:
        view = view_of(state, (claim.requests, claim.constraints))
    else:
        view.refresh(state)
    found = view.best()
    if found is not None:
        index, assignment = found
        return Place([(state.nodes[index], assignment.masks)], view.names)
    if view.answered is not None and view.answered[0] == view.seen:
        return view.answered[1]
    try:
        outcome = _allocate_wide(state, view)
    except OutOfBudget:
        return None
    if isinstance(outcome, Refusal):
        view.answered = (view.seen, outcome)
    return outcome


def view_of(state: State, shape: Shape) -> View:
    """Return the view of a shape, up to date."""
    views: dict[Shape, View] = state.views
    view = views.get(shape)
    if view is None:
        while len(views) >= MOST_VIEWS:
            del views[next(iter(views))]
        view = views[shape] = View(shape)
    view.refresh(state)
    return view


def _allocate_wide(state: State, view: View) -> Outcome:
    """No single node will do: look at racks or the whole data center, unless one node is what was asked for."""
    budget = Budget()
    everywhere = Wide(state.nodes, view)
    shortfall = everywhere.total_shortfall()
    if shortfall is not None:
        return Refusal(shortfall)
    if view.one_node:
        if view.undecided:
            raise OutOfBudget
        which = view.covering
        return Refusal(NoPlace(which, len(everywhere.places(view.constraints[which].same))))
    found = everywhere.solve(budget)
    if isinstance(found, Assignment):
        return Place(everywhere.choice(found), view.names)
    return Refusal(found)


class Wide:
    """Many nodes as one universe of devices, their bits side by side."""

    def __init__(self, nodes: Sequence[Node], view: View) -> None:
        self.view = view
        self.shifts: list[tuple[Node, int]] = []
        self.masks = [0] * len(view.requests)
        pieces: list[list[tuple[int, int]]] = [[] for _ in view.requests]
        shift = 0
        for node in sorted(nodes, key=lambda node: (node.free.bit_count(), node.index)):
            masks = [node.matching(request) & node.free for request in view.requests]
            if any(masks):
                self.shifts.append((node, shift))
                for i, mask in enumerate(masks):
                    pieces[i].append((mask, shift))
                shift += len(node.devices)
        self.bits = shift
        self.masks = [_joined(parts, shift) for parts in pieces]

    def total_shortfall(self) -> Shortfall | None:
        """Return the shortfall that no constraint is to blame for, if there is one."""
        found = match(self.masks, self.view.counts, lowest)
        return found if isinstance(found, Shortfall) else None

    def places(self, level: Locality) -> list[int]:
        """Return all places of one level in this universe."""
        racks: dict[str, int] = {}
        found: list[int] = []
        for node, shift in self.shifts:
            for place in node.domains(level):
                if level is Locality.RACK:
                    assert node.rack is not None
                    racks[node.rack] = racks.get(node.rack, 0) | place << shift
                else:
                    found.append(place << shift)
        return [*racks.values()] if level is Locality.RACK else found

    def fate(self) -> list[int]:
        """Return shared fate over the universe, empty if there is none."""
        if all(node.loners for node, _ in self.shifts):
            return []
        return [mask << shift for node, shift in self.shifts for mask in node.fate]

    def solve(self, budget: Budget) -> Assignment | Shortfall | NoPlace:
        """Solve over everything; raises :class:`OutOfBudget`."""
        view = self.view
        constraints = [(self.places(c.same), r) for c, r in zip(view.constraints, view.concerned, strict=True)]
        return solve(self.masks, view.counts, constraints, fate=self.fate(), budget=budget)

    def choice(self, assignment: Assignment) -> Choice:
        """Return the assignment node by node."""
        found: Choice = []
        for node, shift in self.shifts:
            window = (1 << len(node.devices)) - 1
            masks = tuple(mask >> shift & window for mask in assignment.masks)
            if any(masks):
                found.append((node, masks))
        return found


def _joined(parts: Sequence[tuple[int, int]], bits: int) -> int:
    """Put masks side by side; in bytes, since shifting large numbers one by one is quadratic."""
    if bits <= 4096:
        joined = 0
        for mask, shift in parts:
            joined |= mask << shift
        return joined
    buffer = bytearray(bits // 8 + 16)
    for mask, shift in parts:
        if mask:
            first = shift // 8
            piece = mask << (shift % 8)
            length = (piece.bit_length() + 7) // 8
            if first + length > len(buffer):
                buffer.extend(bytes(first + length - len(buffer)))
            old = int.from_bytes(buffer[first : first + length], "little")
            buffer[first : first + length] = (old | piece).to_bytes(length, "little")
    return int.from_bytes(buffer, "little")


def closest_first(layout: Layout, free: int, wanted: int) -> Order:
    """Return the order in which devices of one node are taken: whole places stay whole where that is possible.

    A place that can hold all that is wanted comes before one that cannot; of the former the fullest, of the latter
    the emptiest, so that few are broken into. NUMA nodes first, then switches within.
    """
    rank: dict[int, tuple[tuple[int, int, int], ...]] = {}
    rest = free
    while rest:
        bit = rest & -rest
        rest ^= bit
        rank[bit] = tuple(_appeal(places, bit, free, wanted) for places in layout[1:])
    order = sorted(rank, key=lambda bit: (rank[bit], bit))

    def pick(mask: int, count: int) -> int:
        taken = 0
        for bit in order:
            if count <= 0:
                break
            if bit & mask:
                taken |= bit
                count -= 1
        return taken

    return pick


def _appeal(places: Sequence[int], bit: int, free: int, wanted: int) -> tuple[int, int, int]:
    best = (2, 0, 0)
    for number, place in enumerate(places):
        if place & bit:
            count = (place & free).bit_count()
            best = min(best, (0, count, number) if count >= wanted else (1, -count, number))
    return best


def _broken(switches: Sequence[int], free: int, taken: int) -> int:
    """Count the switches that were whole and now are not: the last word between equal states."""
    return sum(1 for place in switches if place & free == place and place & taken and place & ~taken)


def _concerned(constraint: Constraint, names: Sequence[str]) -> tuple[int, ...]:
    if not constraint.requests:
        return tuple(range(len(names)))
    return tuple(i for i, name in enumerate(names) if name in constraint.requests)
