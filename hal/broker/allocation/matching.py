"""Who gets which device, as sets of bits: matching with counts.

A set of devices is an integer, one bit a device. Selectors that overlap make this a bipartite b-matching, solved
exactly by augmenting paths over the *requests* (few) instead of the devices (many). When it fails, the requests that
the search reached are Hall's violator: together they ask for more than all devices that fit any of them, which is the
proof in words of a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hal.broker.allocation.problem import Order

MANY = 32
"""From so many bits on, a prefix of the mask is halved instead of taking bit by bit."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """These requests together need ``needed`` devices, and ``available`` fit any of them."""

    requests: tuple[int, ...]
    needed: int
    available: int


def _union(masks: Sequence[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def lowest(mask: int, count: int) -> int:
    """Pick the lowest bits."""
    if count > MANY:
        return _prefix(mask, count)
    taken = 0
    while mask and count > 0:
        bit = mask & -mask
        taken |= bit
        mask ^= bit
        count -= 1
    return taken


def _prefix(mask: int, count: int) -> int:
    if mask.bit_count() <= count:
        return mask
    low, high = count, mask.bit_length()
    while low < high:
        middle = (low + high) // 2
        if (mask & ((1 << middle) - 1)).bit_count() < count:
            low = middle + 1
        else:
            high = middle
    return mask & ((1 << low) - 1)


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
