"""Which of several choices is best: policies, and the order in which devices of one node are taken.

A policy looks at one state of a node and at what would be taken there; the lowest score wins, and among equal scores
the first node. Scores are worked out once for each state, so a policy may look at nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from hal.broker.allocation.facts import Layout
from hal.broker.allocation.problem import Order

Score = tuple[float, ...]


class Scene(NamedTuple):
    """What a policy is shown of a node: how it is laid out, and ``matching``, all that the claim's requests are about.

    Nodes that differ only in what the claim does not look at are one scene.
    """

    layout: Layout
    matching: int


class Policy(Protocol):
    """Chooses between nodes. Set it as ``state.policy``; None is :class:`Pack`."""

    def score(self, scene: Scene, free: int, taken: int) -> Score:
        """Return how little a choice is liked: ``free`` of the matching devices are free, ``taken`` would be taken."""
        ...

    def bound(self, scene: Scene, free: int, wanted: int) -> Score:
        """Return a score that no choice of so many devices is below: the closer, the less has to be searched."""
        ...


class Pack:
    """Against fragmentation: whole machines stay whole, then whole NUMA nodes, then the fullest node, then switches."""

    def score(self, scene: Scene, free: int, taken: int) -> Score:
        """Return (breaks a whole machine, left beside on the NUMA nodes, left on the node, switches broken)."""
        left = free & ~taken
        numa = 0
        for place in scene.layout.numa:
            if place & taken:
                numa += (place & left).bit_count()
        return (
            free == scene.matching and left != 0,
            numa,
            left.bit_count(),
            broken(scene.layout.switches, free, taken),
        )

    def bound(self, scene: Scene, free: int, wanted: int) -> Score:
        """Return the score of the best that could be, if any devices would do."""
        left = free.bit_count() - wanted
        numa = 0
        counts = [count for place in scene.layout.numa if (count := (place & free).bit_count())]
        if sum(counts) == free.bit_count() and len(counts) <= 4:
            sums = {0}
            for count in counts:
                sums |= {has + count for has in sums}
            numa = min(has for has in sums if has >= wanted) - wanted
        return (free == scene.matching and left != 0, numa, left, 0)


class Spread:
    """The emptiest node first: for serving, where neighbours are a risk and room to grow is worth more."""

    def score(self, scene: Scene, free: int, taken: int) -> Score:
        """Return what is left, the most first."""
        return (-(free & ~taken).bit_count(),)

    def bound(self, scene: Scene, free: int, wanted: int) -> Score:
        """Return the score."""
        return (wanted - free.bit_count(),)


class FirstFit:
    """The first node that will do, by number: what many schedulers do, here to be compared with."""

    def score(self, scene: Scene, free: int, taken: int) -> Score:
        """Return the same for all."""
        return (0,)

    def bound(self, scene: Scene, free: int, wanted: int) -> Score:
        """Return the score."""
        return (0,)


class BestFit:
    """The node with the fewest devices left, whatever that breaks: here to be compared with."""

    def score(self, scene: Scene, free: int, taken: int) -> Score:
        """Return what is left."""
        return ((free & ~taken).bit_count(),)

    def bound(self, scene: Scene, free: int, wanted: int) -> Score:
        """Return the score."""
        return (free.bit_count() - wanted,)


PACK = Pack()
POLICIES: dict[str, Policy] = {"pack": PACK, "spread": Spread(), "first-fit": FirstFit(), "best-fit": BestFit()}
"""The policies by the names under which they are chosen."""


def broken(switches: Sequence[int], free: int, taken: int) -> int:
    """Count the switches that were whole and now are not."""
    count = 0
    for place in switches:
        if place & free == place and place & taken and place & ~taken:
            count += 1
    return count


def lowest(mask: int, count: int) -> int:
    """Pick the lowest bits."""
    taken = 0
    while mask and count > 0:
        bit = mask & -mask
        taken |= bit
        mask ^= bit
        count -= 1
    return taken


def closest_first(layout: Layout, free: int, wanted: int, fullest: Sequence[int] = ()) -> Order:
    """Return the order in which devices of one node are taken: whole places stay whole where that is possible.

    Devices that are already given in part come first, ``fullest`` first. A place that can hold all that is wanted comes
    before one that cannot; of the former the one with the fewest free devices, of the latter the one with the most, so
    that few are broken into. NUMA nodes first, then switches within.
    """
    if not layout.numa and not layout.switches and not fullest:
        return lowest
    numa, switches = (_by_appeal(places, free, wanted) for places in (layout.numa, layout.switches))
    tiers = list(fullest)
    rest = free
    for outer in numa:
        inside = rest & outer
        rest ^= inside
        for inner in switches:
            tier = inside & inner
            if tier:
                tiers.append(tier)
                inside ^= tier
        if inside:
            tiers.append(inside)
    for inner in switches:
        tier = rest & inner
        if tier:
            tiers.append(tier)
            rest ^= tier
    tiers.append(rest)

    def pick(mask: int, count: int) -> int:
        taken = 0
        for tier in tiers:
            tier &= mask & ~taken
            if not tier:
                continue
            has = tier.bit_count()
            if has >= count:
                return taken | (tier if has == count else lowest(tier, count))
            taken |= tier
            count -= has
        return taken

    return pick


def _by_appeal(places: Sequence[int], free: int, wanted: int) -> list[int]:
    """Return the places with free devices: those that hold all that is wanted, the fullest first; then the rest."""
    if len(places) < 2:
        return list(places)
    appeals: list[tuple[int, int, int]] = []
    for number, place in enumerate(places):
        count = (place & free).bit_count()
        if count:
            appeals.append((0, count, number) if count >= wanted else (1, -count, number))
    appeals.sort()
    return [places[number] for _, _, number in appeals]
