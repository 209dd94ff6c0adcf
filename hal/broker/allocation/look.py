"""All nodes as one reading of a claim sees them: each situation is solved once, and the situations are kept by score.

A claim then costs what changed since the last one, and not the number of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush, heapreplace
from typing import TYPE_CHECKING

import msgspec

from hal.broker.allocation.choice import Cause, Choice, Positions
from hal.broker.allocation.places import Partial
from hal.broker.allocation.plain import Facts, Plain, in_order, rank_parts
from hal.broker.allocation.problem import Assignment, Bond, Budget, Exhausted, OutOfBudget, Problem, Purse, Rule
from hal.broker.allocation.scoring import BestFit, FirstFit, Pack, Policy, Scene, Score, closest_first
from hal.broker.allocation.solver import solve
from hal.broker.allocation.states import Situation, Table
from hal.model.claim import Share

if TYPE_CHECKING:
    from hal.broker.state import State

Memory = tuple[int, int, Partial]
MOST_SOLVED = 200_000
MOST_ENTRIES = 100_000
STEPS = 20_000
"""How many steps of search one situation of a node is worth."""


class Solved(msgspec.Struct, frozen=True, gc=False):
    """The devices that are best taken in one situation; ``taken`` is all of them."""

    score: Score
    masks: tuple[int, ...]
    order: Positions
    partitions: tuple[tuple[int, int, str], ...]
    taken: int


Entry = tuple[Score, int, int, int, Situation, Solved | None]
"""A situation in the queue: by its score (a bound while it is not solved), then hardware, what is free, number."""


class Look:
    """One reading of a claim over one table of situations, with the nodes' answers by score.

    ``starved``: since the last :meth:`refresh` some situation was not solved, because the decision had searched enough.
    """

    def __init__(self, plain: Plain, table: Table, policy: Policy, purse: Purse) -> None:
        self.plain = plain
        self.purse = purse
        self.starved = False
        self.table = table
        self.policy = policy
        self.answered: tuple[int, Cause] | None = None
        self.rooms: dict[object, object] = {}
        self.in_part = any(r.share is Share.SHARED or r.profile for r in plain.requests)
        self._by_number = isinstance(policy, FirstFit)
        self._facts: dict[int, Facts] = {}
        self._solved: dict[Memory, Solved | None] = {}
        self._entries: dict[int, Entry | None] = {}
        self._scores: dict[Score, Score] = {}
        self._unknown: set[Memory] = set()
        self._packed: dict[Memory, tuple[list[Solved], bool]] = {}
        self._heap: list[Entry] = []
        self._queued: set[int] = set()
        self._born = -1

    def refresh(self, state: State) -> None:
        """Look at the situations that came into being since the last time."""
        self.starved = False
        table = self.table
        table.refresh(state)
        births = table.births
        born = self._born
        reached = table.forgotten_births + len(births)
        if born == reached:
            return
        self._born = reached
        start = born - table.forgotten_births
        fresh = births[start:] if born >= 0 and start >= 0 else table.alive()
        heap, queued, entries = self._heap, self._queued, self._entries
        for situation in fresh:
            number = situation.number
            if number in queued or not situation.live:  # one that is gone again is born anew when it comes back
                continue
            try:
                entry = entries[number]
            except KeyError:
                entry = self._first_seen(situation)
            if entry is not None:
                queued.add(number)
                heappush(heap, entry)

    def _first_seen(self, situation: Situation) -> Entry | None:
        """Return the place of a situation in the queue: solved where that is cheap to ask for, else by its bound."""
        if self.in_part:
            try:
                return self._settled(situation)
            except Exhausted:
                self.starved = True  # the first to be looked at next time
                return (), situation.hardware.number, situation.free, situation.number, situation, None
        facts = self._facts.get(situation.hardware.number) or self.facts(situation)
        free = situation.free & facts.union
        if free.bit_count() < facts.total or not facts.might(free):
            return self._enter(situation, None, None)
        # To solve it is put off until it may be the best: most situations never are.
        return self._enter(situation, self.policy.bound(Scene(facts.layout, facts.union), free, facts.total), None)

    def _enter(self, situation: Situation, score: Score | None, solved: Solved | None) -> Entry | None:
        """Remember where a situation stands in the queue; without a score there is nothing to be had in it."""
        entries, entry = self._entries, None
        if len(entries) >= MOST_ENTRIES:
            entries.clear()
            self._scores.clear()
        if score is not None:
            score = self._scores.setdefault(score, score)  # the same one is compared faster than an equal one
            entry = (score, situation.hardware.number, situation.free, situation.number, situation, solved)
        entries[situation.number] = entry
        return entry

    def _settled(self, situation: Situation) -> Entry | None:
        solved = self._answer(situation)
        return self._enter(situation, None if solved is None else solved.score, solved)

    def best(self) -> tuple[int, Solved] | None:
        """Return the node and the devices of the best situation there is, or None."""
        if self._by_number:
            return self.best_but({})
        heap, where = self._heap, self.table.where
        aside: list[Entry] | None = None
        found: tuple[int, Solved] | None = None
        while heap:
            entry = heap[0]
            situation = entry[4]
            if situation.live:
                solved = entry[5]
                if solved is None:
                    try:
                        known = self._settled(situation)
                    except Exhausted:
                        self.starved = True
                        aside = aside or []
                        aside.append(heappop(heap))
                        continue
                    if known is not None:
                        heapreplace(heap, known)
                        continue
                else:
                    index = situation.heap[0]
                    if where[index] is not situation:
                        first = situation.first(where)
                        assert first is not None
                        index = first
                    found = index, solved
                    break
            heappop(heap)
            self._queued.discard(entry[3])
        if aside:
            for entry in aside:
                heappush(heap, entry)
        return found

    def best_but(self, changed: Mapping[int, Situation]) -> tuple[int, Solved] | None:
        """Return the best as if some nodes were in other situations."""
        found: tuple[Score, int, int, int, Solved] | None = None
        if changed or self._by_number:
            for bound, hardware, free, _, situation, known in sorted(self._heap, key=lambda entry: entry[:4]):
                if found is not None and not self._by_number and bound > found[0]:
                    break
                index = situation.first(self.table.where)
                if index is not None and index in changed:
                    left = (i for i in situation.members(self.table.where) if i not in changed)
                    index = next(left, None)
                solved = known or (self.solve(situation) if index is not None else None)
                if index is None or solved is None:
                    continue
                score = solved.score
                key = (score, index, 0, 0) if self._by_number else (score, hardware, free, index)
                if found is None or key < found[:4]:
                    found = (*key, solved)
        for index, situation in changed.items():
            answer = self.solve(situation)
            if answer is not None:
                key = (answer.score, situation.hardware.number, situation.free, index)
                if self._by_number:
                    key = (answer.score, index, 0, 0)
                if found is None or key < found[:4]:
                    found = (*key, answer)
        if found is None:
            return None
        return found[1] if self._by_number else found[3], found[4]

    # --- one situation

    def facts(self, situation: Situation) -> Facts:
        """Return how the reading looks on the hardware of a situation."""
        number = situation.hardware.number
        facts = self._facts.get(number)
        if facts is None:
            facts = self._facts[number] = Facts(self.plain, situation.hardware)
        return facts

    def memory(self, situation: Situation) -> Memory:
        """Return what of a situation matters under this reading."""
        facts = self.facts(situation)
        partial = situation.partial
        if partial:
            partial = tuple(entry for entry in partial if facts.union >> entry[0] & 1) if self.in_part else ()
        return situation.hardware.number, situation.free & facts.union, partial

    def solve(self, situation: Situation) -> Solved | None:
        """Return the devices that are best taken in a situation, None if there are not enough or nobody knows."""
        try:
            return self._answer(situation)
        except Exhausted:
            self.starved = True
            return None

    def _answer(self, situation: Situation) -> Solved | None:
        facts = self._facts.get(situation.hardware.number)
        if facts is None:
            facts = self.facts(situation)
        if situation.partial:
            memory = self.memory(situation)
        else:
            memory = (situation.hardware.number, situation.free & facts.union, ())
        solved = self._solved
        if memory in solved:
            return solved[memory]
        if len(solved) >= MOST_SOLVED:
            solved.clear()
            self._packed.clear()
        try:
            answer = self._work_out(facts, situation)
        except Exhausted:
            raise
        except OutOfBudget:
            self._unknown.add(memory)
            answer = None
        solved[memory] = answer
        return answer

    def is_unknown(self, situation: Situation) -> bool:
        """True if the search was given up on this situation."""
        return bool(self._unknown) and self.memory(situation) in self._unknown

    def any_unknown(self) -> bool:
        """True if the search was given up on the situation of some node, or never begun."""
        return self.starved or (bool(self._unknown) and any(map(self.is_unknown, self.table.alive())))

    def _work_out(self, facts: Facts, situation: Situation) -> Solved | None:
        if situation.free.bit_count() + len(situation.partial) < facts.total:
            return None
        masks = facts.available(situation)
        for mask, count in zip(masks, facts.counts, strict=True):
            if not 0 < count <= mask.bit_count():
                return None
        layout, free = facts.layout, situation.free & facts.union
        fullest = rank_parts(situation.partial) if self.in_part and situation.partial else ()
        pick = closest_first(layout, free, facts.total, fullest)
        if len(masks) == 1 and not facts.rules and not layout.fate:
            found = Assignment((pick(masks[0], facts.counts[0]),))
        else:
            problem = Problem(masks, facts.counts, facts.rules, layout.fate)
            answer = solve(problem, pick, Budget(STEPS, self.purse), minimal=False)
            if not isinstance(answer, Assignment):
                return None
            found = answer
        return self.solution(situation, found.masks, in_order(self.plain, found))

    def solution(self, situation: Situation, masks: tuple[int, ...], order: Positions) -> Solved:
        """Return a choice in a situation with its score."""
        facts = self.facts(situation)
        taken = 0
        for mask in masks:
            taken |= mask
        free = situation.free & facts.union
        score = self.policy.score(Scene(facts.layout, facts.union), free, taken & free)
        partitions: tuple[tuple[int, int, str], ...] = ()
        if self.in_part:
            partitions = tuple(
                (number, position, facts.part(situation, number, position))
                for number, request in enumerate(self.plain.requests)
                if request.profile
                for position in order[number]
            )
            if isinstance(self.policy, Pack | BestFit):
                score = (*self._part_score(facts, situation, masks), *score)
        return Solved(score, masks, order, partitions, taken)

    def _part_score(self, facts: Facts, situation: Situation, masks: tuple[int, ...]) -> Score:
        """Whole devices that are broken into, then how empty the others are left."""
        fresh = 0
        room = 0
        for mask, request in zip(masks, self.plain.requests, strict=True):
            if request.profile or request.share is Share.SHARED:
                fresh += (mask & situation.free).bit_count()
                for position, uses, parts in situation.partial:
                    if mask >> position & 1:
                        room -= sum(amount for _, amount in uses) + len(parts)
        return fresh, room

    # --- several replicas in one situation

    def packed(self, situation: Situation, most: int) -> tuple[list[Solved], bool]:
        """Return the devices of as many replicas as fit (``most`` are enough), and whether more certainly do not."""
        memory = self.memory(situation)
        known = self._packed.get(memory)
        if known is not None and (len(known[0]) >= most or known[1]):
            return known
        found = self._pack(situation, most)
        if self.starved:
            return found[0], False
        self._packed[memory] = found
        return found

    def _pack(self, situation: Situation, most: int) -> tuple[list[Solved], bool]:
        facts = self.facts(situation)
        found: list[Solved] = []
        rest = situation
        while len(found) < most:
            solved = self.solve(rest)
            if solved is None:
                break
            found.append(solved)
            rest = self.after(rest, solved)
        if len(found) >= most:
            return found, False
        available = facts.available(situation)
        if not all(facts.counts):
            return found, True
        if any(request.count == "all" for request in self.plain.requests) and found:
            return found, True
        bound = min(mask.bit_count() // count for mask, count in zip(available, facts.counts, strict=True))
        while len(found) < min(bound, most):
            try:
                together = self._together(facts, situation, available, len(found) + 1)
            except OutOfBudget as error:
                self.starved = self.starved or isinstance(error, Exhausted)
                return found, False
            if together is None:
                break
            found = together
        return found, True

    def after(self, situation: Situation, solved: Solved) -> Situation:
        """Return what is left when a choice was taken: none of its devices is given to the same claim again."""
        taken = solved.taken
        gone = taken
        for position, family in enumerate(situation.hardware.layout.fate):
            if taken >> position & 1:
                gone |= family
        partial = tuple(entry for entry in situation.partial if not gone >> entry[0] & 1)
        return Situation(0, situation.hardware, situation.free & ~gone, partial)

    def _together(
        self, facts: Facts, situation: Situation, available: tuple[int, ...], replicas: int
    ) -> list[Solved] | None:
        """Solve several replicas as one problem: taken one after the other they may stand in each other's way."""
        each = len(available)
        rules = tuple(
            Rule(rule.bond, rule.groups, tuple([i + replica * each for i in rule.requests]))
            for replica in range(replicas)
            for rule in facts.rules
        )
        problem = Problem(available * replicas, facts.counts * replicas, rules, facts.layout.fate)
        answer = solve(problem, budget=Budget(STEPS, self.purse), minimal=False)
        if not isinstance(answer, Assignment):
            return None
        pairs = sum(bond is Bond.PAIRS for bond in self.plain.bonds)
        found: list[Solved] = []
        for replica in range(replicas):
            masks = answer.masks[replica * each : (replica + 1) * each]
            own = Assignment(masks, (), answer.pairs[replica * pairs : (replica + 1) * pairs])
            found.append(self.solution(situation, masks, in_order(self.plain, own)))
        return found

    def choice(self, state: State, index: int, solved: Solved, replica: int = 0) -> Choice:
        """Return a solution on a node."""
        return Choice(state.nodes[index], solved.masks, solved.order, replica, solved.partitions, self.in_part)
