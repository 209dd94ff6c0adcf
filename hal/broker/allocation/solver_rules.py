"""One rule by itself: where the answer takes polynomial time, and where the choice among answers can be a good one.

Each function returns the devices, or how many units there are of what is wanted: the numbers of the proof.
"""

from __future__ import annotations

from collections.abc import Sequence

from hal.broker.allocation.matching import Shortfall, match
from hal.broker.allocation.problem import Bond, Order


def union_of(masks: Sequence[int]) -> int:
    """Return the union of sets."""
    union = 0
    for mask in masks:
        union |= mask
    return union


def largest(groups: Sequence[int]) -> list[int]:
    """Return the groups that lie in no other: what is feasible in one is feasible in what holds it."""
    found: list[int] = []
    for group in sorted(set(groups), key=int.bit_count, reverse=True):
        if group and not any(group & ~other == 0 for other in found):
            found.append(group)
    return found


def disjoint(groups: Sequence[int]) -> bool:
    """Tell whether no device is in two of them."""
    seen = 0
    for group in groups:
        if seen & group:
            return False
        seen |= group
    return True


def fullest_first(groups: Sequence[int], union: int, wanted: int, pick: Order) -> list[int]:
    """Order the groups that have enough: the one with the least to spare first; of equals the one picked first."""
    fitting = [(count, group) for group in groups if (count := (group & union).bit_count()) >= wanted]
    if len(fitting) > 1:
        fitting.sort(key=lambda pair: pair[0])
        if fitting[0][0] == fitting[1][0]:
            equal = [group for count, group in fitting if count == fitting[0][0]]
            first = pick(union & union_of(equal), 1)
            fitting.sort(key=lambda pair: (pair[0], not pair[1] & first))
    return [group for _, group in fitting]


def one_rule(
    bond: Bond,
    groups: tuple[int, ...],
    concerned: Sequence[int],
    masks: Sequence[int],
    counts: Sequence[int],
    pick: Order,
) -> tuple[list[int], list[tuple[int, ...]] | None] | int | None:
    """Answer for one rule without a search: the devices, the most that there is, or None if a search is needed."""
    if not concerned:
        return None
    if bond is Bond.SAME:
        at = same(masks, counts, groups, concerned, pick)
        return at if isinstance(at, int) else (at[0], None)
    if len(concerned) < len(masks):
        return None
    if bond is Bond.DISTINCT:
        apart = distinct(masks, counts, groups, pick)
        return apart if isinstance(apart, int) else (apart, None)
    rows = pairs([masks[n] for n in concerned], counts[concerned[0]], groups, pick)
    if rows is None or isinstance(rows, int):
        return rows
    chosen = [0] * len(masks)
    for n, column in zip(concerned, zip(*rows, strict=True), strict=True):
        chosen[n] = union_of(column)
    return chosen, rows


def same(
    masks: Sequence[int], counts: Sequence[int], groups: Sequence[int], requests: Sequence[int], pick: Order
) -> tuple[list[int], int] | int:
    """Match with ``requests`` in one group; return the devices and the group, or the most that one group holds."""
    wanted = sum([counts[i] for i in requests])
    union = union_of([masks[i] for i in requests])
    failed: list[int] = []
    narrowed = list(masks)
    for group in fullest_first(groups, union, wanted, pick):
        for i in requests:
            narrowed[i] = masks[i] & group
            if narrowed[i].bit_count() < counts[i]:
                break
        else:
            if any(group & union & ~other == 0 for other in failed):
                continue
            found = match(narrowed, counts, pick)
            if not isinstance(found, Shortfall):
                return found, group
            failed.append(group & union)
    return max([(group & union).bit_count() for group in groups], default=0)


def distinct(masks: Sequence[int], counts: Sequence[int], groups: Sequence[int], pick: Order) -> list[int] | int:
    """Match with at most one device of each group; return the devices, or how many groups there are to choose from.

    A group gives one device and serves the requests that have a device in it: so groups are matched like devices.
    """
    union = union_of(masks)
    local = [group & union for group in groups if group & union]
    reach = [0] * len(masks)
    for number, group in enumerate(local):
        for i, mask in enumerate(masks):
            if mask & group:
                reach[i] |= 1 << number

    def pick_groups(mask: int, count: int) -> int:
        taken = 0
        left = union_of([group for number, group in enumerate(local) if mask >> number & 1])
        while left and count > 0:
            first = pick(left, 1)
            number = next(number for number, group in enumerate(local) if group & first)
            taken |= 1 << number
            left &= ~local[number]
            count -= 1
        return taken

    found = match(reach, counts, pick_groups)
    if isinstance(found, Shortfall):
        return found.available
    return [
        union_of([pick(mask & group, 1) for number, group in enumerate(local) if chosen >> number & 1])
        for mask, chosen in zip(masks, found, strict=True)
    ]


def pairs(masks: Sequence[int], wanted: int, groups: Sequence[int], pick: Order) -> list[tuple[int, ...]] | int | None:
    """Form so many tuples of one device out of each mask, each in one group; return them, or how many there are.

    None if this is no such simple case: masks that overlap, or groups that cross. Tuples are formed in the smallest
    groups first, so that they are near; among groups of one height those that are used up exactly come first.
    """
    union = union_of(masks)
    if not disjoint(masks):
        return None
    inside = groups
    for mask in masks:
        inside = [group for group in inside if group & mask]
    local = sorted({group & union: None for group in inside}, key=int.bit_count)
    flat = disjoint(local)
    if not flat and not disjoint(largest(local)):
        return None
    left = list(masks)
    tiers: list[list[tuple[int, int]]] = []
    heights: list[tuple[int, int]] = []
    total = 0
    for group in local:
        count = min([(mask & group).bit_count() for mask in left])
        if not count:
            continue
        total += count
        height = 0 if flat else 1 + max([height for other, height in heights if other & group], default=-1)
        heights.append((group, height))
        while len(tiers) <= height:
            tiers.append([])
        tiers[height].append((group, count))
        if not flat:
            left = [mask ^ _lowest(mask & group, count) for mask in left]
    if total < wanted:
        return total
    left = list(masks)
    found: list[tuple[int, ...]] = []
    for tier in tiers:
        need = wanted - len(found)
        if not need:
            break
        for group, count in used_up(tier, need, union, pick):
            bits = []
            for i, mask in enumerate(left):
                taken = pick(mask & group, count)
                left[i] ^= taken
                bits.append(split(taken))
            found.extend(zip(*bits, strict=True))
    return found


def used_up(tier: Sequence[tuple[int, int]], need: int, union: int, pick: Order) -> list[tuple[int, int]]:
    """Take ``need`` units out of groups that hold so many each: groups used up exactly first, then few, then full."""
    if sum([count for _, count in tier]) <= need:
        return list(tier)
    fits = min([count for _, count in tier if count >= need], default=0)
    if fits != need:
        exact = _exactly(tier, need)
        if exact is not None:
            return exact
    if fits:
        single = [group for group, count in tier if count == fits]
        first = pick(union & union_of(single), 1) if len(single) > 1 else 0
        return [(next((group for group in single if group & first), single[0]), need)]
    chosen: list[tuple[int, int]] = []
    spare: list[tuple[int, int]] = []
    for group, count in sorted(tier, key=lambda pair: -pair[1]):
        if count <= need:
            chosen.append((group, count))
            need -= count
        else:
            spare.append((group, count))
    # All that is left over holds more than is missing: otherwise a set would have fitted exactly.
    return [*chosen, (spare[-1][0], need)] if need else chosen


def _exactly(tier: Sequence[tuple[int, int]], need: int) -> list[tuple[int, int]] | None:
    """Return groups that hold exactly ``need`` together, large ones first; None if there are none."""
    # Read from the end: large ones first, and of equals the earlier.
    ordered = [tier[n] for n in sorted(range(len(tier)), key=lambda n: (tier[n][1], -n))]
    sums = [1]
    for _, count in ordered:
        sums.append((sums[-1] | sums[-1] << count) & ((2 << need) - 1))
    if not sums[-1] >> need & 1:
        return None
    chosen: list[tuple[int, int]] = []
    for number in range(len(ordered) - 1, -1, -1):
        group, count = ordered[number]
        if count <= need and sums[number] >> (need - count) & 1:
            chosen.append((group, count))
            need -= count
    return chosen


def families(fate: Sequence[int], union: int) -> dict[int, int]:
    """Return the other devices of the set that share the fate of a device, for those that have such."""
    found: dict[int, int] = {}
    rest = union & ((1 << len(fate)) - 1)
    while rest:
        bit = rest & -rest
        rest ^= bit
        others = fate[bit.bit_length() - 1] & union & ~bit
        if others:
            found[bit] = others
    return found


def split(mask: int) -> list[int]:
    """Return the bits of a mask, the lowest first."""
    bits = []
    while mask:
        bit = mask & -mask
        bits.append(bit)
        mask ^= bit
    return bits


def _lowest(mask: int, count: int) -> int:
    rest = mask
    for _ in range(count):
        rest &= rest - 1
    return mask ^ rest
