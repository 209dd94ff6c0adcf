"""The exact search for what no single rule explains: bundles placed block by block, with what failed remembered.

What is wanted becomes *bundles*: one device (a request without a rule), one of each request (a pair), or all of several
requests (a rule of ``SAME``). Devices that a group, or their fate, holds together form a *block*; between blocks only
numbers matter. So each block is asked which numbers of bundles it can serve at most, and the blocks are added up with
every sum tried once. Inside one block that one group covers, a matching answers; where groups cross, devices are
tried, one of each kind that no mask, group or fate tells apart. Forests of shared fate fall apart into smaller blocks
as soon as their root is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hal.broker.allocation.matching import Shortfall, match
from hal.broker.allocation.problem import Budget, Order, OutOfBudget
from hal.broker.allocation.solver_blocks import (
    Kind,
    Masks,
    Numbers,
    blocks_of,
    classes,
    enough,
    look,
    undominated,
)
from hal.broker.allocation.solver_rules import split, union_of, used_up

MOST_KINDS_ADDED = 3
"""With more kinds of bundles than this, shared fate is tried tree by tree instead of added up by its trees."""

MOST_LOOKS_TRIED = 3
"""Trees of at most so many looks are tried one by one at once: those that look alike are tried together."""

DEEPEST = 600
"""How many blocks may be used one after the other before the search is given up (Python's stack has an end)."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One bundle's devices by slot; bundles of one device each come together as one."""

    kind: int
    masks: Masks


class Search:
    """One search over bundles: :meth:`place` answers, and remembers what it could not do."""

    def __init__(
        self,
        kinds: Sequence[Kind],
        distinct: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
        family: dict[int, int],
        pick: Order,
        budget: Budget,
    ) -> None:
        self.kinds = kinds
        self.distinct = distinct
        self.family = family
        self.pick = pick
        self.budget = budget
        self._failed: set[tuple[Masks, Numbers]] = set()
        self._options: dict[object, list[Numbers]] = {}
        self._alike_trees: bool | None = None
        self._slots = sum(len(kind.slots) for kind in kinds)

    def place(self, masks: Masks, left: Numbers) -> list[Placed] | None:
        """Place ``left[k]`` bundles of each kind on ``masks[s]`` for each slot; raises :class:`OutOfBudget`."""
        needs = self._needs(left)
        masks = tuple([mask if need else 0 for mask, need in zip(masks, needs, strict=True)])
        if (masks, left) in self._failed:
            return None
        self.budget.spend()
        matched = match(masks, needs, self.pick)
        found = None if isinstance(matched, Shortfall) else self._ruled(masks, left, needs, matched)
        if found is None:
            self._failed.add((masks, left))
        return found

    def _needs(self, left: Numbers) -> list[int]:
        needs = [0] * self._slots
        for kind, number in zip(self.kinds, left, strict=True):
            for slot, per in zip(kind.slots, kind.per, strict=True):
                needs[slot] = number * per
        return needs

    def _ruled(self, masks: Masks, left: Numbers, needs: list[int], matched: list[int]) -> list[Placed] | None:
        """Place under the rules that still matter, knowing that numbers alone do not forbid it."""
        union = union_of(masks)
        binds = [bind for kind, number in zip(self.kinds, left, strict=True) if number for bind in kind.binds]
        apart = [rule for rule in self.distinct if sum([needs[slot] for slot in rule[1]]) > 1]
        clashes = [(bit, other) for bit, others in self.family.items() if bit & union and (other := others & union)]
        if not binds and not apart:
            used = union_of(matched)
            if not any(bit & used and others & used for bit, others in clashes):
                return self._taken(matched, left)
        kinds = [number for number, wanted in enumerate(left) if wanted]
        if clashes and (len(kinds) > MOST_KINDS_ADDED or (not (binds or apart) and self._look_alike(masks, clashes))):
            return self._tree_by_tree(masks, left, clashes, union_of(matched), bool(binds or apart))
        blocks = blocks_of(masks, binds + apart, clashes)
        free = union & ~union_of(blocks)
        if len(blocks) + bool(free) > 1:
            # The fullest first, and last what is bound to nothing: a matching fills in what is missing there.
            blocks.sort(key=lambda block: (block.bit_count(), block))
            parts = [tuple([mask & block for mask in masks]) for block in ([*blocks, free] if free else blocks)]
            if len(kinds) == 1:
                return self._alike(parts, kinds[0], left)
            return self._across(parts, left)
        if clashes:
            bit, others = max(clashes, key=lambda clash: clash[1].bit_count())
            for excluded in (others, bit):
                found = self.place(tuple([mask & ~excluded for mask in masks]), left)
                if found is not None:
                    return found
            return None
        crossing = [
            bind for bind in binds if not any(union_of([masks[s] for s in bind[1]]) & ~group == 0 for group in bind[0])
        ]
        if not crossing and not apart:
            return self._taken(matched, left)
        if any(wanted and not enough(kind, masks, wanted) for kind, wanted in zip(self.kinds, left, strict=True)):
            return None
        return self._devices(masks, left, crossing, apart)

    def _taken(self, matched: list[int], left: Numbers) -> list[Placed]:
        """Make bundles of the devices of each slot, where any devices of one slot do as well as others."""
        placed: list[Placed] = []
        for number, (kind, wanted) in enumerate(zip(self.kinds, left, strict=True)):
            rest = [matched[slot] for slot in kind.slots]
            if not wanted:
                continue
            if not kind.binds:
                placed.append(Placed(number, tuple(rest)))
                continue
            if len(kind.binds) == 1 and max(kind.per) == 1:
                union = union_of(rest)
                for group in sorted({group & union for group in kind.binds[0][0]}, key=int.bit_count):
                    near = [split(mask & group) for mask in rest]
                    for bits in zip(*near, strict=False):
                        placed.append(Placed(number, bits))
                        rest = [mask ^ bit for mask, bit in zip(rest, bits, strict=True)]
                continue
            rows = [split(mask) for mask in rest]
            for copy in range(wanted):
                bundle = [union_of(row[copy * per : (copy + 1) * per]) for row, per in zip(rows, kind.per, strict=True)]
                placed.append(Placed(number, tuple(bundle)))
        return placed

    def _look_alike(self, masks: Masks, clashes: list[tuple[int, int]]) -> bool:
        if self._alike_trees is None:
            partners = dict(clashes)
            looks = {look(bit, partners, masks) for bit, others in clashes if others & (others - 1)}
            self._alike_trees = None not in looks and len(looks) <= MOST_LOOKS_TRIED
        return self._alike_trees

    def _tree_by_tree(
        self, masks: Masks, left: Numbers, clashes: list[tuple[int, int]], used: int, ruled: bool
    ) -> list[Placed] | None:
        """Use the root of a tree, or leave it out; trees of one look are left out together if the first one fails."""
        partners = dict(clashes)
        violated = [clash for clash in clashes if clash[0] & used and clash[1] & used]
        bit, others = max(violated or clashes, key=lambda clash: clash[1].bit_count())
        found = self.place(tuple([mask & ~others for mask in masks]), left)
        if found is not None:
            return found
        seen = None if ruled else look(bit, partners, masks)
        excluded = bit
        if seen is not None:
            for root in partners:
                if look(root, partners, masks) == seen:
                    excluded |= root
        return self.place(tuple([mask & ~excluded for mask in masks]), left)

    def _alike(self, parts: list[Masks], kind: int, left: Numbers) -> list[Placed] | None:
        """Add up the blocks where only one kind of bundle is left: each serves as many as it can."""
        wanted = left[kind]
        tier: list[tuple[int, int]] = []
        by_block: dict[int, tuple[Masks, list[Placed]]] = {}
        for part in parts:
            most, found = self._most(part, [0] * len(left), kind, wanted)
            if most:
                block = union_of(part)
                by_block[block] = part, found
                tier.append((block, most))
        if sum([most for _, most in tier]) < wanted:
            return None
        placed: list[Placed] = []
        holds = dict(tier)
        for block, number in used_up(tier, wanted, union_of(list(by_block)), self.pick):
            part, found = by_block[block]
            if number < holds[block]:
                found = self.place(part, tuple([number if other == kind else 0 for other in range(len(left))])) or []
            placed += found
        return placed

    def _most(self, part: Masks, numbers: list[int], kind: int, limit: int) -> tuple[int, list[Placed]]:
        """Return how many bundles of a kind, ``limit`` at most, a block serves beside the other numbers, and where."""
        shape = self.kinds[kind]
        bound = min([part[slot].bit_count() // per for slot, per in zip(shape.slots, shape.per, strict=True)])
        low, high = 0, min(bound, limit)
        first = high
        where: list[Placed] = []
        while low < high:
            # Mostly a block serves all that there is room for; only if not is halving needed.
            middle = high if high == first else (low + high + 1) // 2
            numbers[kind] = middle
            found = self.place(part, tuple(numbers))
            if found is not None:
                low, where = middle, found
            else:
                high = middle - 1
        numbers[kind] = 0
        return low, where

    def _across(self, parts: list[Masks], left: Numbers) -> list[Placed] | None:
        """Add up the blocks: each with the most that it can serve, in every trade-off between the kinds."""
        last = len(parts) - 1
        from_here = list(parts)
        for at in range(last - 1, -1, -1):
            from_here[at] = tuple(map(int.__or__, parts[at], from_here[at + 1]))
        failed: set[tuple[int, Numbers]] = set()

        def add_up(at: int, rest: Numbers, depth: int) -> list[Placed] | None:
            while True:
                if not any(rest):
                    return []
                if at == last:
                    return self.place(parts[last], rest)
                if (at, rest) in failed:
                    return None
                if isinstance(match(from_here[at], self._needs(rest)), Shortfall):
                    failed.add((at, rest))
                    return None
                options = self._options_of(parts[at], left)
                clipped = undominated([tuple(map(min, option, rest)) for option in options])
                if clipped:
                    break
                at += 1
            if depth > DEEPEST:
                raise OutOfBudget
            self.budget.spend()
            for option in clipped:
                after = add_up(at + 1, tuple([a - b for a, b in zip(rest, option, strict=True)]), depth + 1)
                if after is not None:
                    return (self.place(parts[at], option) or []) + after
            failed.add((at, rest))
            return None

        return add_up(0, left, 0)

    def _options_of(self, part: Masks, limits: Numbers) -> list[Numbers]:
        """Return the numbers of bundles that a block can serve and that no other such numbers exceed."""
        key = self._look_of(part, limits)
        known = self._options.get(key)
        if known is not None:
            return known
        found: list[Numbers] = []
        kinds = [number for number, limit in enumerate(limits) if limit]
        numbers = [0] * len(limits)

        def extend(at: int) -> None:
            kind = kinds[at]
            most, _ = self._most(part, numbers, kind, limits[kind])
            if at == len(kinds) - 1:
                numbers[kind] = most
                found.append(tuple(numbers))
            else:
                for number in range(most, -1, -1):
                    numbers[kind] = number
                    extend(at + 1)
            numbers[kind] = 0

        extend(0)
        self._options[key] = found = undominated(found)
        return found

    def _look_of(self, part: Masks, limits: Numbers) -> object:
        """Return what blocks have in common that serve the same numbers: they differ by a shift of all bits."""
        block = union_of(part)
        shift = (block & -block).bit_length() - 1 if block else 0
        return (
            limits,
            tuple([mask >> shift for mask in part]),
            tuple(
                [
                    tuple([(group & block) >> shift for group in groups if group & block])
                    for groups, _ in (*(bind for kind in self.kinds for bind in kind.binds), *self.distinct)
                ]
            ),
            tuple([(bit >> shift, (others & block) >> shift) for bit, others in self.family.items() if bit & block]),
        )

    def _devices(
        self,
        masks: Masks,
        left: Numbers,
        crossing: list[tuple[tuple[int, ...], tuple[int, ...]]],
        apart: list[tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> list[Placed] | None:
        """Try devices for one bundle that groups make hard to place, and the others after it."""
        hard = {slot for _, slots in (*crossing, *apart) for slot in slots}
        number = min(
            [number for number, wanted in enumerate(left) if wanted and hard.intersection(self.kinds[number].slots)],
            key=lambda n: (min([masks[slot].bit_count() for slot in self.kinds[n].slots]) - left[n], n),
        )
        cuts = list({mask for mask in masks if mask})
        cuts += [
            group for kind, wanted in zip(self.kinds, left, strict=True) if wanted for b in kind.binds for group in b[0]
        ]
        cuts += [group for groups, _ in apart for group in groups]
        rest = tuple([wanted - (other == number) for other, wanted in enumerate(left)])
        for bits, remaining in self._bundles(self.kinds[number], 0, (), masks, apart, cuts):
            if (remaining, rest) in self._failed:
                continue
            found = self.place(remaining, rest)
            if found is not None:
                return [Placed(number, bits), *found]
        return None

    def _bundles(
        self,
        kind: Kind,
        at: int,
        bits: tuple[int, ...],
        masks: Masks,
        apart: list[tuple[tuple[int, ...], tuple[int, ...]]],
        cuts: list[int],
    ) -> Iterator[tuple[tuple[int, ...], Masks]]:
        """Yield the devices of one bundle, and what they leave; of devices that are alike the first."""
        if at == len(kind.slots):
            yield bits, masks
            return
        slot = kind.slots[at]
        allowed = masks[slot]
        for groups, slots in kind.binds:
            if slot in slots:
                chosen = union_of([bit for other, bit in zip(kind.slots, bits, strict=False) if other in slots])
                allowed &= union_of([group for group in groups if chosen & ~group == 0])
        for alike in classes(allowed, cuts, self.pick):
            bit = self.pick(alike, 1)
            after = [mask & ~bit for mask in masks]
            for groups, slots in apart:
                if slot in slots:
                    group = next((group for group in groups if group & bit), 0)
                    for other in slots:
                        after[other] &= ~group
            yield from self._bundles(kind, at + 1, (*bits, bit), tuple(after), apart, cuts)
