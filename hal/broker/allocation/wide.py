"""One replica on several nodes: a rack or all nodes as one universe of devices, their bits side by side."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from hal.broker.allocation.choice import Cause, Choice
from hal.broker.allocation.facts import Key
from hal.broker.allocation.look import Look
from hal.broker.allocation.plain import positions_of
from hal.broker.allocation.problem import Assignment, Bond, Budget, Conflict, OutOfBudget, Problem, Rule
from hal.broker.allocation.scoring import lowest
from hal.broker.allocation.solver import solve
from hal.broker.allocation.states import Situation
from hal.broker.allocation.tally import Tally
from hal.model.claim import Constraint, Locality

if TYPE_CHECKING:
    from hal.broker.state import State

STEPS = 200_000
MOST_RACKS = 4
"""In how many racks of their own a claim is tried before all nodes are taken together."""
MOST_RICH = 32
"""Among how many of the nodes with the most to give a claim is tried before all nodes are taken."""
MOST_WHOLE = 256
"""How many nodes are tried for requests that take all devices of one."""


class Universe:
    """The devices of some nodes that a reading of a claim could take, side by side, the nodes with the most first."""

    def __init__(self, state: State, look: Look, members: Sequence[tuple[int, Situation]]) -> None:
        self.state = state
        self.look = look
        seats: list[tuple[int, int, Situation, tuple[int, ...]]] = []
        for index, situation in members:
            masks = look.facts(situation).available(situation)
            if any(masks):
                most = sum(mask.bit_count() for mask in masks)
                seats.append((-most, index, situation, masks))
        seats.sort(key=lambda seat: seat[:2])
        self.seats: list[tuple[int, int, Situation]] = []
        pieces: list[list[tuple[int, int]]] = [[] for _ in look.plain.requests]
        shift = 0
        for _, index, situation, masks in seats:
            self.seats.append((index, shift, situation))
            for i, mask in enumerate(masks):
                pieces[i].append((mask, shift))
            shift += len(situation.hardware.layout.kinds)
        self.masks = tuple(joined(parts, shift) for parts in pieces)

    def groups(self, rule: Constraint) -> tuple[int, ...]:
        """Return the groups of a rule: those of one name on several nodes are one."""
        what = rule.same or rule.distinct
        pieces: dict[Key, list[tuple[int, int]]] = {}
        for index, shift, _ in self.seats:
            node = self.state.nodes[index]
            if what == Locality.PCI_SWITCH and rule.distinct:
                found: Mapping[Key, int] = {(index, n): mask for n, mask in enumerate(node.layout.nearest)}
            else:
                found = node.groups(what)
            for key, mask in found.items():
                pieces.setdefault(key, []).append((mask, shift))
        end = self._end()
        return tuple(parts[0][0] << parts[0][1] if len(parts) == 1 else joined(parts, end) for parts in pieces.values())

    def _end(self) -> int:
        if not self.seats:
            return 0
        _, shift, situation = self.seats[-1]
        return shift + len(situation.hardware.layout.kinds)

    def fate(self) -> tuple[int, ...]:
        """Return who shares the fate of whom, empty if nobody does."""
        if not any(situation.hardware.layout.fate for _, _, situation in self.seats):
            return ()
        found: list[int] = []
        for _, shift, situation in self.seats:
            layout = situation.hardware.layout
            own = layout.fate or tuple(1 << position for position in range(len(layout.kinds)))
            found += [mask << shift for mask in own]
        return tuple(found)

    def problem(self) -> Problem:
        """Return the whole as one choice. A request for all is left out of it: its count is 0."""
        plain = self.look.plain
        counts = tuple(0 if request.count == "all" else request.count for request in plain.requests)
        rules = tuple(
            Rule(bond, self.groups(rule), who)
            for (_, rule), bond, who in zip(plain.rules, plain.bonds, plain.concerned, strict=True)
        )
        return Problem(self.masks, counts, rules, self.fate())

    def solve(self, budget: Budget, minimal: bool) -> Assignment | Conflict:
        """Solve over everything; raises :class:`OutOfBudget`."""
        problem = self.problem()
        whole = [i for i, request in enumerate(self.look.plain.requests) if request.count == "all"]
        if not whole:
            return solve(problem, lowest, budget, minimal=minimal)
        for tried, chosen in enumerate(product(*[self._whole(i) for i in whole])):
            if tried >= MOST_WHOLE:
                raise OutOfBudget
            masks, counts = list(problem.masks), list(problem.counts)
            for i, mask in zip(whole, chosen, strict=True):
                masks[i], counts[i] = mask, mask.bit_count()
            answer = solve(
                Problem(tuple(masks), tuple(counts), problem.rules, problem.fate), lowest, budget, minimal=minimal
            )
            if isinstance(answer, Assignment):
                return answer
        # A proof against each way to choose those nodes, but no smaller one against all of them is known.
        return Conflict(tuple(range(len(problem.counts))), tuple(range(len(problem.rules))))

    def _whole(self, request: int) -> Iterator[int]:
        """Yield what each node that has them all free would give to a request for all."""
        for _, shift, situation in self.seats:
            facts = self.look.facts(situation)
            mask = self.masks[request] >> shift & facts.matching[request]
            if mask and mask == facts.matching[request]:
                yield mask << shift

    def choices(self, found: Assignment) -> tuple[Choice, ...]:
        """Return the assignment node by node; where pairs lie across nodes, pair by pair."""
        order: list[Sequence[int]] = [positions_of(mask) for mask in found.masks]
        plain = self.look.plain
        pairs = [who for who, bond in zip(plain.concerned, plain.bonds, strict=True) if bond is Bond.PAIRS]
        if not pairs:
            return self._by_node(order)
        placed: set[int] = set()
        for requests, tuples in zip(pairs, found.pairs, strict=True):
            rows = sorted([bit.bit_length() - 1 for bit in row] for row in tuples)
            for k, request in enumerate(requests):
                if request in placed:
                    place = {bit: number for number, bit in enumerate(order[request])}
                    rows.sort(key=lambda row, k=k, place=place: place[row[k]])  # type: ignore[misc]
                    break
            for k, request in enumerate(requests):
                if request not in placed:
                    placed.add(request)
                    order[request] = [row[k] for row in rows]
        if not placed.issuperset(range(len(order))) or len({len(each) for each in order}) > 1:
            longest = max(map(len, order))
            steps = [[each[j : j + 1] for each in order] for j in range(longest)]
        else:
            steps = [[[bit] for bit in row] for row in zip(*order, strict=True)]
        return tuple(choice for step in steps for choice in self._by_node(step))

    def _by_node(self, order: Sequence[Sequence[int]]) -> tuple[Choice, ...]:
        mine: dict[int, list[list[int]]] = {}
        shifts = [shift for _, shift, _ in self.seats]
        for request, bits in enumerate(order):
            for bit in bits:
                seat = bisect_right(shifts, bit) - 1
                mine.setdefault(seat, [[] for _ in order])[request].append(bit - self.seats[seat][1])
        found: list[Choice] = []
        for seat, positions in sorted(mine.items()):
            index, _, situation = self.seats[seat]
            facts = self.look.facts(situation)
            partitions = tuple(
                (number, position, facts.part(situation, number, position))
                for number, request in enumerate(self.look.plain.requests)
                if request.profile
                for position in positions[number]
            )
            masks = tuple(sum(1 << position for position in each) for each in positions)
            chosen = tuple(tuple(each) for each in positions)
            found.append(Choice(self.state.nodes[index], masks, chosen, 0, partitions, self.look.in_part))
        return tuple(found)


def solve_counted(state: State, look: Look, tally: Tally) -> tuple[Choice, ...] | Cause | None:
    """Choose over all nodes where counting decides; None: the proof has to be looked for."""
    if not tally.enough():
        return tally.short()
    where = look.table.where
    members = [(index, situation) for index in tally.givers() if (situation := where[index]) is not None]
    universe = Universe(state, look, members)
    try:
        answer = universe.solve(Budget(STEPS, look.purse), minimal=False)
    except OutOfBudget:
        return None
    return universe.choices(answer) if isinstance(answer, Assignment) else None


def solve_wide(state: State, look: Look, members: Sequence[tuple[int, Situation]]) -> tuple[Choice, ...] | Cause:
    """Choose over several nodes: within one rack if that will do, then anywhere. Raises :class:`OutOfBudget`."""
    budget = Budget(STEPS, look.purse)
    for rack in _racks(state, look, members):
        universe = Universe(state, look, rack)
        try:
            answer = universe.solve(Budget(STEPS // 100, look.purse), minimal=False)
        except OutOfBudget:
            continue
        if isinstance(answer, Assignment):
            return universe.choices(answer)
    few = _richest(look, members)
    if len(few) < len(members):  # a yes needs few nodes, a no needs them all
        universe = Universe(state, look, few)
        try:
            answer = universe.solve(Budget(STEPS // 100, look.purse), minimal=False)
        except OutOfBudget:
            pass
        else:
            if isinstance(answer, Assignment):
                return universe.choices(answer)
    universe = Universe(state, look, members)
    answer = universe.solve(budget, minimal=True)
    return universe.choices(answer) if isinstance(answer, Assignment) else answer


def _richest(look: Look, members: Sequence[tuple[int, Situation]]) -> list[tuple[int, Situation]]:
    """Return the few nodes with the most to give to the request that has least of it."""
    known: dict[int, int] = {}
    seats: list[tuple[int, int, Situation]] = []
    for index, situation in members:
        least = known.get(situation.number)
        if least is None:
            least = known[situation.number] = min(m.bit_count() for m in look.facts(situation).available(situation))
        seats.append((-least, index, situation))
    return [(index, situation) for _, index, situation in heapq.nsmallest(MOST_RICH, seats, key=lambda seat: seat[:2])]


def _racks(state: State, look: Look, members: Sequence[tuple[int, Situation]]) -> list[list[tuple[int, Situation]]]:
    """Return the few racks that have enough of everything, those with the least to spare first."""
    racks: dict[str, list[tuple[int, Situation]]] = {}
    for index, situation in members:
        rack = state.nodes[index].rack
        if rack is not None:
            racks.setdefault(rack, []).append((index, situation))
    if len(racks) < 2:
        return []
    wanted = [1 if request.count == "all" else request.count for request in look.plain.requests]
    known: dict[int, tuple[int, ...]] = {}
    fitting: list[tuple[int, str]] = []
    for rack, nodes in racks.items():
        sums = [0] * len(wanted)
        for _, situation in nodes:
            counts = known.get(situation.number)
            if counts is None:
                counts = known[situation.number] = tuple(
                    m.bit_count() for m in look.facts(situation).available(situation)
                )
            for i, count in enumerate(counts):
                sums[i] += count
        if all(has >= want for has, want in zip(sums, wanted, strict=True)):
            fitting.append((sum(sums), rack))
    return [racks[rack] for _, rack in sorted(fitting)[:MOST_RACKS]]


def joined(parts: Sequence[tuple[int, int]], bits: int) -> int:
    """Put masks side by side; in bytes, since shifting large numbers one by one is quadratic."""
    if bits <= 4096:
        found = 0
        for mask, shift in parts:
            found |= mask << shift
        return found
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
