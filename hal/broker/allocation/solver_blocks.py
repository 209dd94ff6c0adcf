"""What a search asks of sets of devices: blocks, classes of devices that are alike, trees of one look, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hal.broker.allocation.problem import Order
from hal.broker.allocation.solver_rules import split, union_of

Masks = tuple[int, ...]
Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of bundle: ``per[n]`` devices of slot ``slots[n]``; each of ``binds`` is (groups, the slots in one)."""

    slots: tuple[int, ...]
    per: tuple[int, ...]
    binds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


def enough(kind: Kind, masks: Masks, wanted: int) -> bool:
    """Tell whether the pairs of one kind could be formed if nobody else were there: a matching of the two sides."""
    binds = [groups for groups, slots in kind.binds if len(slots) == 2]
    if len(kind.slots) != 2 or max(kind.per) > 1 or not binds:
        return True
    left, right = (masks[slot] for slot in kind.slots)
    near = {}
    for bit in split(left):
        near[bit] = right & ~bit
        for groups in binds:
            near[bit] &= union_of([group for group in groups if group & bit])
    mate: dict[int, int] = {}

    def augment(bit: int, seen: list[int]) -> bool:
        free = near[bit] & ~seen[0]
        while free:
            other = free & -free
            seen[0] |= other
            if other not in mate or augment(mate[other], seen):
                mate[other] = bit
                return True
            free &= ~seen[0]
        return False

    formed = 0
    for bit in near:
        formed += augment(bit, [0])
        if formed >= wanted:
            return True
    return False


def blocks_of(
    masks: Masks, rules: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], clashes: list[tuple[int, int]]
) -> list[int]:
    """Join what groups or fate hold together."""
    blocks: list[int] = []
    joints = [bit | others for bit, others in clashes]
    for groups, slots in rules:
        union = union_of([masks[slot] for slot in slots])
        joints += [group & union for group in groups if group & union]
    for joint in joints:
        apart = [block for block in blocks if not block & joint]
        if len(apart) < len(blocks):
            joint |= union_of([block for block in blocks if block & joint])
        blocks = [*apart, joint]
    return blocks


def classes(mask: int, cuts: Sequence[int], pick: Order) -> list[int]:
    """Part a set into devices that none of the cuts tells apart; the class of the preferred device comes first."""
    classes = [mask] if mask else []
    for cut in cuts:
        if cut & mask:
            classes = [part for whole in classes for part in (whole & cut, whole & ~cut) if part]
    if len(classes) > 1:
        first = pick(mask, 1)
        classes.sort(key=lambda part: not part & first)
    return classes


def undominated(numbers: Sequence[Numbers]) -> list[Numbers]:
    """Drop what serves no more than another does, and what serves nothing; the largest sum comes first."""
    found: list[Numbers] = []
    for one in sorted(set(numbers), key=lambda one: (sum(one), one), reverse=True):
        if any(one) and not any(all(map(int.__le__, one, other)) for other in found):
            found.append(one)
    return found


def look(root: int, partners: dict[int, int], masks: Masks) -> object:
    """Return what the trees have in common that can stand for each other: a root and leaves; None for deeper ones."""
    leaves = split(partners[root])
    if any(partners.get(leaf) != root for leaf in leaves):
        return None
    return (_members(root, masks), tuple(sorted([_members(leaf, masks) for leaf in leaves])))


def _members(bit: int, masks: Masks) -> tuple[bool, ...]:
    return tuple([bool(mask & bit) for mask in masks])
