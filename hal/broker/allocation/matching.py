"""Who gets which device, as sets of bits: matching with counts, then nested places, then shared fate.

A set of devices is an integer, one bit a device. Selectors that overlap make this a bipartite b-matching, solved
exactly by augmenting paths over the *requests* (few) instead of the devices (many). When it fails, the requests that
the search reached are Hall's violator: together they ask for more than all devices that fit any of them, which is the
proof in words of a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Order = Callable[[int, int], int]
"""``pick(mask, count)``: at most ``count`` bits of the mask, the preferred ones first."""

BUDGET = 2_000


@dataclass(frozen=True, slots=True)
class Shortfall:
    """These requests together need ``needed`` devices, and ``available`` fit any of them."""

    requests: tuple[int, ...]
    needed: int
    available: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """The devices of each request, as a mask; no device twice. ``domains`` are the places chosen, by constraint."""

    masks: tuple[int, ...]
    domains: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Feasible without constraint number ``constraint``; no place has enough. ``tried`` counts the places."""

    constraint: int
    tried: int


class OutOfBudget(Exception):
    """The search was given up; nobody knows the answer."""


class Budget:
    """How many matchings may still be tried."""

    __slots__ = ("left",)

    def __init__(self, left: int = BUDGET) -> None:
        self.left = left

    def spend(self) -> None:
        """Take one; raise :class:`OutOfBudget` if there is none."""
        if self.left <= 0:
            raise OutOfBudget
        self.left -= 1


def _union(masks: Sequence[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def lowest(mask: int, count: int) -> int:
    """Pick the lowest bits."""
    taken = 0
    while mask and count > 0:
        bit = mask & -mask
        taken |= bit
        mask ^= bit
        count -= 1
    return taken


def match(masks: Sequence[int], counts: Sequence[int], pick: Order = lowest) -> list[int] | Shortfall:
    """Give request ``i`` exactly ``counts[i]`` devices out of ``masks[i]``, or prove that it cannot be done."""
    assigned = [0] * len(masks)
    used = 0
    for i in sorted(range(len(masks)), key=lambda i: (masks[i].bit_count() - counts[i], i)):
        taken = pick(masks[i] & ~used, counts[i])
        assigned[i] = taken
        used |= taken
        for _ in range(counts[i] - taken.bit_count()):
            found = _augment(i, masks, assigned, used, pick)
            if isinstance(found, tuple):
                together = _union([masks[j] for j in found])
                return Shortfall(found, sum(counts[j] for j in found), together.bit_count())
            used |= found
    return assigned


def _augment(start: int, masks: Sequence[int], assigned: list[int], used: int, pick: Order) -> int | tuple[int, ...]:
    """Free one more device for a request along a path of exchanges; return its bit, or the requests reached."""
    came: dict[int, tuple[int, int]] = {start: (-1, 0)}
    queue = [start]
    for i in queue:
        free = masks[i] & ~used
        if free:
            gained = bit = pick(free, 1)
            while i != -1:
                before, given = came[i]
                assigned[i] = (assigned[i] ^ given) | bit
                i, bit = before, given
            return gained
        for j, held in enumerate(assigned):
            if j not in came and held & masks[i]:
                came[j] = (i, pick(held & masks[i], 1))
                queue.append(j)
    return tuple(sorted(came))


def solve(
    masks: Sequence[int],
    counts: Sequence[int],
    constraints: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    *,
    fate: Sequence[int] = (),
    pick: Order = lowest,
    budget: Budget | None = None,
) -> Assignment | Shortfall | NoPlace:
    """Meet all requests under all constraints, or say what stands in the way.

    A :class:`Shortfall` whose ``available`` is enough is the fault of shared fate.

    A constraint is ``(places, requests)``: all devices of those requests lie in one of the places (masks). Places are
    tried fullest first, so that one which fits exactly is used up before an emptier one is broken into. ``fate[p]`` is
    the set of devices that cannot be given away together with device ``p``, itself included (empty: none). Raises
    :class:`OutOfBudget`; with one constraint and no shared fate the work is polynomial and the budget is not reached.
    """
    budget = budget or Budget()
    found = match(masks, counts, pick)
    if isinstance(found, Shortfall):
        return found
    if fate:
        found = _fate(list(masks), counts, fate, pick, budget)
        if isinstance(found, Shortfall):
            return Shortfall(tuple(range(len(masks))), sum(counts), _union(masks).bit_count())
    if not constraints:
        return Assignment(tuple(found))
    inner = _place(list(masks), counts, constraints, 0, (), fate, pick, budget)
    return inner if isinstance(inner, Assignment) else NoPlace(inner, len(constraints[inner][0]))


def _place(
    masks: list[int],
    counts: Sequence[int],
    constraints: Sequence[tuple[Sequence[int], Sequence[int]]],
    level: int,
    chosen: tuple[int, ...],
    fate: Sequence[int],
    pick: Order,
    budget: Budget,
) -> Assignment | int:
    """Choose a place for each constraint from ``level`` on; return the deepest constraint that could not be met."""
    places, requests = constraints[level]
    wanted = sum(counts[i] for i in requests)
    union = _union([masks[i] for i in requests])
    fitting = [place for place in places if (place & union).bit_count() >= wanted]
    fitting.sort(key=lambda place: (place & union).bit_count())
    deepest = level
    for place in fitting:
        narrowed = list(masks)
        for i in requests:
            narrowed[i] &= place
        if any(narrowed[i].bit_count() < counts[i] for i in requests):
            continue
        budget.spend()
        if level + 1 < len(constraints):
            if isinstance(match(narrowed, counts), Shortfall):
                continue
            found = _place(narrowed, counts, constraints, level + 1, (*chosen, place), fate, pick, budget)
            if isinstance(found, Assignment):
                return found
            deepest = max(deepest, found)
            continue
        last = _fate(narrowed, counts, fate, pick, budget)
        if not isinstance(last, Shortfall):
            return Assignment(tuple(last), (*chosen, place))
    return deepest


def _fate(
    masks: list[int], counts: Sequence[int], fate: Sequence[int], pick: Order, budget: Budget
) -> list[int] | Shortfall:
    """Match so that no two devices share their fate: branch on a clash, leaving out one side or the other."""
    found = match(masks, counts, pick)
    if not fate or isinstance(found, Shortfall):
        return found
    rest = used = _union(found)
    while rest:
        bit = rest & -rest
        rest ^= bit
        others = fate[bit.bit_length() - 1] & ~bit
        if others & used:
            break
    else:
        return found
    failed: Shortfall | None = None
    for excluded in (bit, others):
        budget.spend()
        answer = _fate([mask & ~excluded for mask in masks], counts, fate, pick, budget)
        if not isinstance(answer, Shortfall):
            return answer
        failed = answer
    assert failed is not None
    return failed
