"""From requests and rules to bundles: what a search places, and whose its devices are."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hal.broker.allocation.matching import Shortfall, match
from hal.broker.allocation.problem import Bond, Budget, Order
from hal.broker.allocation.solver_blocks import Kind
from hal.broker.allocation.solver_rules import disjoint, families, fullest_first, one_rule, split, union_of
from hal.broker.allocation.solver_search import Search

Bound = tuple[Bond, tuple[int, ...], tuple[int, ...]]
"""A rule as bond, groups and the requests it concerns."""
Answer = tuple[list[int], dict[int, list[tuple[int, ...]]]]
"""The devices of each request, and the tuples of each rule of pairs by its number."""


@dataclass(slots=True)
class _Bundle:
    """Devices that go together: of each member a request and how many; which rules bind it; how many such."""

    requests: tuple[int, ...]
    per: tuple[int, ...]
    rules: tuple[int, ...]
    copies: int


def search(
    masks: Sequence[int],
    counts: Sequence[int],
    rules: Sequence[Bound],
    fate: Sequence[int],
    pick: Order,
    budget: Budget,
) -> Answer | None:
    """Search for the devices of all requests under all rules; raises :class:`OutOfBudget`."""
    narrowed = [mask if count else 0 for mask, count in zip(masks, counts, strict=True)]
    for _, groups, requests in rules:
        inside = union_of(groups)
        for i in requests:
            narrowed[i] &= inside
    alone = _alone(narrowed, rules)
    outer = [
        number
        for number, (bond, groups, requests) in enumerate(rules)
        if bond is Bond.SAME and number not in alone and not _covered(union_of([narrowed[i] for i in requests]), groups)
    ]
    return _Choice(counts, rules, fate, pick, budget, alone).choose(narrowed, outer)


def _covered(union: int, groups: Sequence[int]) -> bool:
    return not union or any(union & ~group == 0 for group in groups)


def _alone(masks: Sequence[int], rules: Sequence[Bound]) -> list[int]:
    """Return rules of ``SAME`` that can be bundles: two or more, disjoint groups, requests that no other rule binds."""
    same = [number for number, rule in enumerate(rules) if rule[0] is Bond.SAME and rule[2]]
    if len(same) < 2:
        return []
    apart = sum([len(rule[2]) for rule in rules]) == len({i for rule in rules for i in rule[2]})
    if apart and len(same) == len(rules) and len({rule[1] for rule in rules}) == 1 and disjoint(rules[0][1]):
        return same
    found = []
    joints = {group for _, groups, _ in rules for group in groups}
    for number in same:
        _, groups, requests = rules[number]
        if any(set(requests) & set(other[2]) for at, other in enumerate(rules) if at != number):
            continue
        union = union_of([masks[i] for i in requests])
        if all(any(joint & union & ~group == 0 for group in groups) for joint in joints):
            found.append(number)
    return found if _unlinked([rules[number] for number in found], rules, masks) else []


def _unlinked(same: Sequence[Bound], rules: Sequence[Bound], masks: Sequence[int]) -> bool:
    """Tell whether no chain of groups joins what one group of these rules does not hold."""
    joints: set[int] = set()
    for _, groups, requests in rules:
        reach = union_of([masks[i] for i in requests])
        joints.update([group & reach for group in groups if group & reach])
    blocks: list[int] = []
    for joint in joints:
        meeting = [block for block in blocks if block & joint]
        blocks = [*(block for block in blocks if not block & joint), joint | union_of(meeting)]
    return all(
        any(block & union & ~group == 0 for group in groups)
        for _, groups, requests in same
        for union in (union_of([masks[i] for i in requests]),)
        for block in blocks
        if block & union
    )


class _Choice:
    """Groups chosen for the rules of ``SAME`` that meet other rules, one after the other; the rest is searched."""

    def __init__(
        self,
        counts: Sequence[int],
        rules: Sequence[Bound],
        fate: Sequence[int],
        pick: Order,
        budget: Budget,
        alone: Sequence[int],
    ) -> None:
        self.counts = counts
        self.rules = rules
        self.fate = fate
        self.pick = pick
        self.budget = budget
        self.alone = alone
        self._failed: set[tuple[int, tuple[int, ...]]] = set()

    def choose(self, masks: list[int], outer: Sequence[int]) -> Answer | None:
        """Choose a group for the first of these rules, and go on."""
        if not outer:
            return self._placed(masks)
        key = (len(outer), tuple(masks))
        if key in self._failed:
            return None
        _, groups, requests = self.rules[outer[0]]
        union = union_of([masks[i] for i in requests])
        wanted = sum([self.counts[i] for i in requests])
        for group in fullest_first(groups, union, wanted, self.pick):
            self.budget.spend()
            narrowed = [mask & group if i in requests else mask for i, mask in enumerate(masks)]
            if isinstance(match(narrowed, self.counts, self.pick), Shortfall):
                continue
            found = self.choose(narrowed, outer[1:])
            if found is not None:
                return found
        self._failed.add(key)
        return None

    def _placed(self, masks: list[int]) -> Answer | None:
        if not self.fate:
            # Rules of SAME are kept by now, but those that are bundles.
            open_rules = [
                number for number, rule in enumerate(self.rules) if rule[2] and rule[0] is not Bond.SAME
            ] + list(self.alone)
            if len(open_rules) == 1:
                number = open_rules[0]
                bond, groups, requests = self.rules[number]
                answer = one_rule(bond, groups, requests, masks, self.counts, self.pick)
                if isinstance(answer, int):
                    return None
                if answer is not None:
                    return answer[0], {} if answer[1] is None else {number: answer[1]}
        bundles = _bundles(self.counts, self.rules, self.alone)
        apart = [number for number, rule in enumerate(self.rules) if rule[0] is Bond.DISTINCT and rule[2]]
        member = [tuple([number for number in apart if i in self.rules[number][2]]) for i in range(len(masks))]
        kinds: list[Kind] = []
        owners: list[list[_Bundle]] = []
        seen: dict[object, int] = {}
        slots: list[int] = []
        marks: list[tuple[int, ...]] = []
        for bundle in bundles:
            looks = [(masks[i], per, member[i]) for i, per in zip(bundle.requests, bundle.per, strict=True)]
            if len(bundle.rules) == 1:
                order = sorted(range(len(looks)), key=looks.__getitem__)
                bundle.requests = tuple([bundle.requests[n] for n in order])
                bundle.per = tuple([bundle.per[n] for n in order])
                looks = [looks[n] for n in order]
            # Several rules may bind members unlike: then the bundle is its own kind.
            own = bundle.rules if len(bundle.rules) > 1 else tuple([self.rules[number][1] for number in bundle.rules])
            key = (tuple(looks), own)
            at = seen.get(key)
            if at is not None:
                owners[at].append(bundle)
                continue
            seen[key] = len(kinds)
            first = len(slots)
            numbers = {i: first + n for n, i in enumerate(bundle.requests)}
            slots += [masks[i] for i in bundle.requests]
            marks += [member[i] for i in bundle.requests]
            binds = tuple([(self.rules[n][1], tuple([numbers[i] for i in self.rules[n][2]])) for n in bundle.rules])
            kinds.append(Kind(tuple(numbers.values()), bundle.per, binds))
            owners.append([bundle])
        distinct = [
            (self.rules[number][1], tuple([slot for slot, mark in enumerate(marks) if number in mark]))
            for number in apart
        ]
        family = families(self.fate, union_of(masks))
        left = tuple([sum([bundle.copies for bundle in owned]) for owned in owners])
        placed = Search(kinds, distinct, family, self.pick, self.budget).place(tuple(slots), left)
        if placed is None:
            return None
        return self._owned(len(masks), owners, [(one.kind, one.masks) for one in placed])

    def _owned(self, many: int, owners: list[list[_Bundle]], placed: Sequence[tuple[int, tuple[int, ...]]]) -> Answer:
        """Give what was placed to the requests that asked for it, those of one kind one after the other."""
        found = [0] * many
        tuples: dict[int, list[tuple[int, ...]]] = {}
        waiting = [deque([bundle for bundle in owned for _ in range(bundle.copies)]) for owned in owners]
        for kind, given in placed:
            single = owners[kind][0].per == (1,)
            for row in [(bit,) for bit in split(given[0])] if single else [given]:
                bundle = waiting[kind].popleft()
                for i, mask in zip(bundle.requests, row, strict=True):
                    found[i] |= mask
                for number in bundle.rules:
                    bond, _, requests = self.rules[number]
                    if bond is Bond.PAIRS:
                        of = dict(zip(bundle.requests, row, strict=True))
                        tuples.setdefault(number, []).append(tuple([of[i] for i in requests]))
        return found, tuples


def _bundles(counts: Sequence[int], rules: Sequence[Bound], alone: Sequence[int]) -> list[_Bundle]:
    """Return the bundles: rules of pairs that share requests make one bundle together."""
    bundles = [_Bundle(rules[n][2], tuple([counts[i] for i in rules[n][2]]), (n,), 1) for n in alone]
    joined: list[tuple[list[int], list[int]]] = []
    for number, (bond, _, requests) in enumerate(rules):
        if bond is not Bond.PAIRS or not requests:
            continue
        together, numbers = list(requests), [number]
        for others, theirs in [pair for pair in joined if set(pair[0]) & set(requests)]:
            joined.remove((others, theirs))
            together += [i for i in others if i not in together]
            numbers += theirs
        joined.append((together, numbers))
    for together, numbers in joined:
        order = tuple(sorted(together))
        bundles.append(_Bundle(order, (1,) * len(order), tuple(sorted(numbers)), counts[order[0]]))
    taken = {i for bundle in bundles for i in bundle.requests}
    bundles += [_Bundle((i,), (1,), (), count) for i, count in enumerate(counts) if i not in taken and count]
    return bundles
