"""What is asked of one node without alternatives: requests and rules, and how they look on one sort of hardware."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hal.broker.allocation.choice import Positions
from hal.broker.allocation.facts import Layout, Matcher, matcher_of
from hal.broker.allocation.partitions import best_placement
from hal.broker.allocation.places import Partial
from hal.broker.allocation.problem import Assignment, Bond, Rule
from hal.broker.allocation.solver_rules import largest
from hal.broker.allocation.states import Aspect, Hardware, Situation
from hal.model.claim import FRACTION, Constraint, Locality, Request, Share
from hal.model.kind import Kind

ON_ONE_NODE = (Locality.NODE, Locality.NUMA, Locality.PCI_SWITCH)
"""Levels whose places never reach beyond a node."""


@dataclass(frozen=True)
class Plain:
    """One way to read a claim: an alternative chosen for each request, and the constraints that are kept.

    ``rules`` are the constraints with their numbers in the claim, ``concerned`` the numbers of the requests of each.
    """

    requests: tuple[Request, ...]
    rules: tuple[tuple[int, Constraint], ...]
    concerned: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    @property
    def bonds(self) -> tuple[Bond, ...]:
        """What each rule asks."""
        return tuple(
            Bond.DISTINCT if rule.distinct else Bond.PAIRS if rule.pairwise else Bond.SAME for _, rule in self.rules
        )

    @property
    def loose(self) -> bool:
        """True if what is given in part, or borne, matters."""
        return any(r.tolerate or r.share is Share.SHARED or r.profile for r in self.requests)

    def aspects(self) -> frozenset[Aspect]:
        """Return what tells nodes apart under this reading."""
        found: set[Aspect] = set()
        for request in self.requests:
            matcher = matcher_of(request)
            if not is_bare(matcher):
                found.add(("matching", matcher))
            if self.loose:
                found.add(("fit", request.tolerate))
            if request.share is Share.SHARED:
                found.add(("capacity", tuple(sorted(request.capacity))))
            if request.profile:
                found.add(("placements", ""))
        for _, rule in self.rules:
            what = rule.same or rule.distinct
            if what not in (*ON_ONE_NODE, Locality.RACK):
                found.add(("groups", what))
        return frozenset(found)

    def node_rule(self) -> int | None:
        """Return the number of a constraint that by itself puts all devices on one node, or None."""
        everything = len(self.requests)
        for (number, rule), concerned in zip(self.rules, self.concerned, strict=True):
            if rule.same in ON_ONE_NODE and not rule.pairwise and len(concerned) == everything:
                return number
        return None


def is_bare(matcher: Matcher) -> bool:
    """True if a kind is all that was asked."""
    return not (matcher[1] or matcher[2] or matcher[3] or matcher[4])


class Facts:
    """How one reading looks on one sort of hardware."""

    __slots__ = (
        "_places", "capacities", "counts", "layout", "masks", "matching", "plain", "rules", "tables", "total", "union"
    )  # fmt: skip

    def __init__(self, plain: Plain, hardware: Hardware) -> None:
        self.plain = plain
        self.layout: Layout = hardware.layout
        self.matching = tuple(_matching(request, hardware) for request in plain.requests)
        if plain.loose:
            fits = [hardware.values["fit", request.tolerate] for request in plain.requests]
            self.masks = tuple(mask & fit for mask, fit in zip(self.matching, fits, strict=True))
        else:
            self.masks = self.matching
        self.union = 0
        for mask in self.masks:
            self.union |= mask
        self.counts = tuple(
            mask.bit_count() if request.count == "all" else request.count
            for mask, request in zip(self.matching, plain.requests, strict=True)
        )
        self.total = sum(self.counts)
        self.rules = tuple(
            Rule(bond, groups_of(rule, hardware), concerned)
            for (_, rule), bond, concerned in zip(plain.rules, plain.bonds, plain.concerned, strict=True)
        )
        self._places = tuple([rule.groups if rule.bond is Bond.SAME else largest(rule.groups) for rule in self.rules])
        self.tables: tuple[object, ...] = hardware.values.get(("placements", ""), ())
        self.capacities: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {
            about: value for (what, about), value in hardware.values.items() if what == "capacity"
        }

    def available(self, situation: Situation) -> tuple[int, ...]:
        """Return what each request could take: of a request for all each of them, or nothing."""
        free = situation.free
        found: list[int] = []
        for request, mask, matching in zip(self.plain.requests, self.masks, self.matching, strict=True):
            here = mask & free
            if situation.partial and (request.profile or request.share is Share.SHARED):
                for entry in situation.partial:
                    bit = 1 << entry[0]
                    # Who shares a device as a whole may have one that nobody has, though parts of it exist.
                    if bit & mask and not (bit & here and not request.profile):
                        here = here | bit if self._has_room(request, entry) else here & ~bit
            if request.count == "all" and here != matching:
                here = 0
            found.append(here)
        return tuple(found)

    def might(self, free: int) -> bool:
        """Return False if some rule by itself certainly cannot be kept with these devices free: cheaper than solving.

        For readings in which no device is given in part.
        """
        for rule, places in zip(self.rules, self._places, strict=True):
            asked = [(self.masks[i] & free, self.counts[i]) for i in rule.requests]
            if rule.bond is Bond.SAME:
                if not any(all((mask & place).bit_count() >= count for mask, count in asked) for place in places):
                    return False
            elif rule.bond is Bond.PAIRS:
                tuples = sum([min([(mask & place).bit_count() for mask, _ in asked]) for place in places])
                if tuples < asked[0][1]:
                    return False
        return True

    def _has_room(self, request: Request, entry: tuple[int, tuple[tuple[str, int], ...], tuple[str, ...]]) -> bool:
        position, uses, parts = entry
        if request.profile:
            return not uses and placement(self.tables[position], parts, request.profile) is not None
        if parts:
            return False
        names = tuple(sorted(request.capacity))
        used = dict(uses)
        whole = self.capacities[names][position]
        return all(used.get(name, 0) + request.capacity[name] <= has for name, has in zip(names, whole, strict=True))

    def part(self, situation: Situation, request: int, position: int) -> str:
        """Return the part that a request gets of a device: ``profile@first slice``."""
        taken = next((entry[2] for entry in situation.partial if entry[0] == position), ())
        profile = self.plain.requests[request].profile
        start = placement(self.tables[position], taken, profile)
        assert start is not None
        return f"{profile}@{start}"


def _matching(request: Request, hardware: Hardware) -> int:
    matcher = matcher_of(request)
    if not is_bare(matcher):
        found: int = hardware.values["matching", matcher]
        return found
    return of_kind(hardware.layout.kinds, request.kind)


@lru_cache(maxsize=4096)
def of_kind(kinds: tuple[Kind, ...], kind: Kind) -> int:
    """Return the positions of one kind."""
    return sum(1 << position for position, found in enumerate(kinds) if found is kind)


def groups_of(rule: Constraint, hardware: Hardware) -> tuple[int, ...]:
    """Return the groups of a rule on this hardware."""
    what = rule.same or rule.distinct
    layout = hardware.layout
    everything = ((1 << len(layout.kinds)) - 1,)
    if what == Locality.NODE:
        return everything
    if what == Locality.RACK:
        return everything if layout.racked else ()
    if what == Locality.NUMA:
        return layout.numa
    if what == Locality.PCI_SWITCH:
        return layout.nearest if rule.distinct else layout.switches
    groups: tuple[int, ...] = hardware.values["groups", what]
    return groups


@lru_cache(maxsize=65536)
def placement(table: object, taken: tuple[str, ...], profile: str) -> int | None:
    """Return the best first slice for a part beside others on one device, or None."""
    return best_placement(table, taken, profile)


def rank_parts(partial: Partial) -> list[int]:
    """Return the devices that are given in part, as bits, the fullest first."""

    def fullness(entry: tuple[int, tuple[tuple[str, int], ...], tuple[str, ...]]) -> tuple[int, int, int]:
        _, uses, parts = entry
        thousandths = max((amount for name, amount in uses if name == FRACTION), default=0)
        return (-thousandths, -sum(amount for _, amount in uses) - len(parts), entry[0])

    return [1 << entry[0] for entry in sorted(partial, key=fullness)]


def in_order(plain: Plain, found: Assignment) -> Positions:
    """Return the positions of each request; the n-th of paired requests are those that share a place."""
    order = [positions_of(mask) for mask in found.masks]
    if not found.pairs:
        return tuple(order)
    placed: set[int] = set()
    rules = [who for who, bond in zip(plain.concerned, plain.bonds, strict=True) if bond is Bond.PAIRS]
    for requests, tuples in zip(rules, found.pairs, strict=True):
        rows = [[bit.bit_length() - 1 for bit in row] for row in tuples]
        before = next((k for k, request in enumerate(requests) if request in placed), None)
        if before is None:
            rows.sort()
        else:
            rows.sort(key=lambda row, k=before, of=order[requests[before]]: of.index(row[k]))  # type: ignore[misc]
        for k, request in enumerate(requests):
            if request not in placed:
                order[request] = tuple([row[k] for row in rows])
                placed.add(request)
    return tuple(order)


def positions_of(mask: int) -> tuple[int, ...]:
    """Return the positions of the bits of a mask, ascending."""
    found = []
    while mask:
        bit = mask & -mask
        mask ^= bit
        found.append(bit.bit_length() - 1)
    return tuple(found)
