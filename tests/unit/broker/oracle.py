"""What a claim may be given, by trying everything. Written from the docstrings of ``hal.model.claim`` alone.

Nothing of ``hal.broker`` is used here. A :class:`World` is plain values: devices, who holds what, what is cordoned,
what each selector means (as a Python function), and how each device may be parted. :func:`best` enumerates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations, product
from typing import NamedTuple

from hal.model.claim import FRACTION, Claim, Constraint, Gather, Locality, Request, Share, request_names
from hal.model.device import Device
from hal.model.health import Presence, Severity, Status
from tests.unit.broker.oracle_values import Take, World

BAD = (Severity.DEGRADED, Severity.CRITICAL, Severity.FATAL)


# --- one device and one request


def fits(world: World, request: Request, device: Device) -> bool:
    """Is it what was asked for, whoever has it and however it is?"""
    if device.kind is not request.kind or not device.allocatable:
        return False
    if any(world.meaning[text](device) is not True for text in (request.where, *request.cel) if text):
        return False
    if request.profile and request.profile not in world.profiles.get(device.id, {}):
        return False
    return all(_capacity(device, name) >= amount for name, amount in request.capacity.items())


def _capacity(device: Device, name: str) -> int:
    return 1000 if name == FRACTION else device.capacity.get(name, 0)


def is_well(world: World, request: Request, device: Device) -> bool:
    """May it be handed out to somebody who tolerates what this request does?"""
    family = {device.id, *(world.devices[i].id for i in world.families[world.number[device.id]])}
    if family & world.cordoned or f"node:{device.location.node}" in world.cordoned:
        return False
    line = world.line(device)
    if line[-1].parent is not None:
        return False
    for one in line:
        if one.presence is not Presence.PRESENT:
            return False
        for found in one.conditions:
            bad = found.status is Status.UNKNOWN or (found.status is Status.TRUE and found.severity in BAD)
            if bad and found.type not in request.tolerate:
                return False
    return True


def takes(world: World, request: Request, number: int) -> list[Take]:
    """The ways in which a device could be given to a request now."""
    known = world.taken_ways.get((request, number))
    if known is None:
        known = world.taken_ways[request, number] = _takes(world, request, number)
    return known


def _takes(world: World, request: Request, number: int) -> list[Take]:
    device = world.devices[number]
    if not fits(world, request, device) or not is_well(world, request, device):
        return []
    if request.profile:
        slices, starts = world.profiles[device.id][request.profile]
        # No device is given twice to one claim, so where the part starts makes no difference to the others.
        ways = [Take(number, (), ((1 << slices) - 1) << start) for start in starts]
        return [way for way in ways if is_free(world, way)][:1]
    take = Take(number, tuple(sorted(request.capacity.items())) if request.share is Share.SHARED else ())
    return [take] if is_free(world, take) else []


def is_free(world: World, take: Take, beside: Sequence[Take] = ()) -> bool:
    """Does nobody's hold, nor what is taken beside it, stand in the way?"""
    parts = {i for i in world.families[take.device] if take.slices and _is_part_of(world, i, take.device)}
    if any(relative in world.held for relative in world.families[take.device] - parts):
        return False
    if any(take.slices & world.made[world.devices[part].id] for part in parts):
        return False
    used: dict[str, int] = dict(take.uses)
    for hold in world.held.get(take.device, []):
        mask = ((1 << hold.slices) - 1) << hold.first
        if not _go_together(take, Take(take.device, tuple(hold.uses.items()), mask)):
            return False
        for name, amount in hold.uses.items():
            used[name] = used.get(name, 0) + amount
    for other in beside:
        if other.device in world.families[take.device]:
            return False
        if other.device == take.device:
            if not _go_together(take, other):
                return False
            for name, amount in other.uses:
                used[name] = used.get(name, 0) + amount
    device = world.devices[take.device]
    return all(amount <= _capacity(device, name) for name, amount in used.items())


def _is_part_of(world: World, part: int, whole: int) -> bool:
    return world.devices[part].id in world.made and world.devices[part].parent == world.devices[whole].id


def _go_together(one: Take, other: Take) -> bool:
    if one.uses and other.uses:
        return True
    return bool(one.slices and other.slices and not one.slices & other.slices)


# --- one replica


class Found(NamedTuple):
    """One way to meet a replica: what it costs, and for each request what it is given, in order."""

    cost: float
    groups: tuple[tuple[Take, ...], ...]

    @property
    def all(self) -> list[Take]:
        return [take for group in self.groups for take in group]


def kept(world: World, constraint: Constraint, groups: Sequence[Sequence[Take]]) -> bool:
    """Does the constraint hold among the devices of the requests that it is about (of as many as are there)?"""
    what = constraint.same or constraint.distinct
    known = world.known_places(what)
    places = [[known[take.device] for take in group] for group in groups]
    flat = [place for group in places for place in group]
    if not all(flat):
        return False
    if constraint.distinct:
        return len({place[-1] for place in flat}) == len(flat)
    if constraint.pairwise:
        return all(_common(row) for row in zip(*places, strict=True)) if places else True
    return _common(flat)


def _common(places: Sequence[tuple[object, ...]]) -> bool:
    return not places or bool(set(places[0]).intersection(*places[1:]))


def concerned(claim: Claim) -> list[tuple[int, ...]]:
    names = request_names(claim.requests)
    return [
        tuple(i for i, name in enumerate(names) if not constraint.requests or name in constraint.requests)
        for constraint in claim.constraints
    ]


def replicas(world: World, claim: Claim, pool: Sequence[int], limit: Callable[[], float]) -> Iterator[Found]:
    """Every way to meet one replica with the devices of a pool that costs less than ``limit()`` says by then."""
    about = concerned(claim)
    ordered = {i for c, who in zip(claim.constraints, about, strict=True) if c.pairwise for i in who[1:]}
    options = [
        [
            Option(choice.cost, group, *world.marks(group))
            for choice in (request, *request.or_else)
            for group in _ways(world, choice, pool, i in ordered)
        ]
        for i, request in enumerate(claim.requests)
    ]
    alone = [number for number, who in enumerate(about) if len(who) == 1]
    for i, found in enumerate(options):
        mine = [claim.constraints[number] for number in alone if about[number] == (i,)]
        broken = [c for c in mine if c.weight is None]
        options[i] = [o for o in found if all(kept(world, c, [o.group]) for c in broken)]
    ready = [[number for number, who in enumerate(about) if i in who] for i in range(len(claim.requests))]

    def extend(
        groups: tuple[tuple[Take, ...], ...], cost: float, taboo: int, broken: frozenset[int]
    ) -> Iterator[Found]:
        i = len(groups)
        if i == len(claim.requests):
            yield Found(cost, groups)
            return
        for option in options[i]:
            if option.taken & taboo or cost + option.cost >= limit():
                continue
            fresh, more, lost = (*groups, option.group), cost + option.cost, set(broken)
            for number in ready[i]:
                constraint = claim.constraints[number]
                if number in lost or kept(world, constraint, [fresh[j] for j in about[number] if j <= i]):
                    continue
                lost.add(number)
                more += float("inf") if constraint.weight is None else constraint.weight
            if more < limit():
                yield from extend(fresh, more, taboo | option.taboo, frozenset(lost))

    yield from extend((), 0.0, 0, frozenset())


class Option(NamedTuple):
    """One way to meet one request: the devices as bits, and all that cannot be given beside them."""

    cost: float
    group: tuple[Take, ...]
    taken: int
    taboo: int


def _ways(world: World, choice: Request, pool: Sequence[int], ordered: bool) -> Iterator[tuple[Take, ...]]:
    """Every group of devices, none twice, that meets one request."""
    free = {number: found[0] for number in pool if (found := takes(world, choice, number))}
    wanted: list[tuple[list[Take], int]] = []
    if choice.count == "all":
        for node in sorted({world.devices[number].location.node for number in pool}):
            everything = [
                number
                for number, device in enumerate(world.devices)
                if device.location.node == node and fits(world, choice, device)
            ]
            if everything and all(number in free for number in everything):
                wanted.append(([free[number] for number in everything], len(everything)))
    else:
        wanted.append((list(free.values()), choice.count))
    for everyone, count in wanted:
        for group in (permutations if ordered else combinations)(everyone, count):
            if not any(b.device in world.families[a.device] for a, b in combinations(group, 2)):
                yield group


# --- the whole claim


class Best(NamedTuple):
    """The most replicas that fit (at least those asked for), their least cost, and the fewest places at that cost."""

    replicas: int
    cost: float
    places: int


def best(world: World, claim: Claim) -> Best | None:
    """Return the best that there is for a claim, or None if it cannot be met."""
    most = claim.max_replicas or claim.replicas
    if claim.replicas == 1 and most == 1 and claim.gang is None:
        least = _least(world, claim, range(len(world.devices)))
        return None if least is None else Best(1, least, 1)
    return next(iter(gang(world, claim)), None)


def _least(world: World, claim: Claim, pool: Sequence[int]) -> float | None:
    costs = [float("inf")]
    for found in replicas(world, claim, pool, lambda: costs[-1]):
        costs.append(found.cost)
        if not found.cost:
            break
    return costs[-1] if len(costs) > 1 else None


def gang(world: World, claim: Claim) -> Iterator[Best]:
    """Every cost with its number of places that no other beats in both, for as many replicas as there is room for."""
    nodes = sorted({device.location.node for device in world.devices})
    most = claim.max_replicas or claim.replicas
    rooms = [_room(world, claim, node, most) for node in nodes]
    spots = [_place_of(world, claim, node) for node in nodes]
    for number in range(most, claim.replicas - 1, -1):
        found: set[tuple[float, int]] = set()
        for counts in product(*[range(min(number, len(room) - 1) + 1) for room in rooms]):
            if sum(counts) == number and _lies_right(claim, counts, spots):
                cost = sum(room[count] for room, count in zip(rooms, counts, strict=True))
                used = {spot for spot, count in zip(spots, counts, strict=True) if count}
                found.add((cost, len(used)))
        if found:
            for cost, places in sorted(found):
                if not any(c <= cost and p <= places and (c, p) != (cost, places) for c, p in found):
                    yield Best(number, cost, places)
            return


def _place_of(world: World, claim: Claim, node: str) -> object:
    # A machine is joined by the fabric of what it has to give.
    here = [device for device in world.devices if device.location.node == node and device.allocatable]
    over = claim.gang.over if claim.gang is not None else Locality.NODE
    return next((place for device in here for place in world.places(device, over)), None)


def _lies_right(claim: Claim, counts: Sequence[int], spots: Sequence[object]) -> bool:
    if claim.gang is None:
        return True
    inside: dict[object, int] = {}
    for count, spot in zip(counts, spots, strict=True):
        if count and spot is None:
            return False
        if count:
            inside[spot] = inside.get(spot, 0) + count
    most = claim.gang.most or (1 if claim.gang.how is Gather.SPREAD else sum(counts))
    return max(inside.values()) <= most and (claim.gang.how is not Gather.ONE or len(inside) == 1)


def gang_is_right(world: World, claim: Claim, nodes: Sequence[str]) -> bool:
    """Do replicas on these nodes lie as the gang must?"""
    names = sorted(set(nodes))
    spots = [_place_of(world, claim, node) for node in names]
    return _lies_right(claim, [nodes.count(name) for name in names], spots)


def places_of(world: World, claim: Claim, nodes: Sequence[str]) -> int:
    """In how many places of the gang's level do these nodes lie?"""
    return len({_place_of(world, claim, node) for node in nodes})


def _room(world: World, claim: Claim, node: str, most: int) -> list[float]:
    """The least cost of 0, 1, 2... replicas on one node, as far as they fit."""
    pool = [number for number, device in enumerate(world.devices) if device.location.node == node]
    ways: dict[tuple[int, int], float] = {}
    for found in replicas(world, claim, pool, lambda: float("inf")):
        key = world.marks(found.all)
        ways[key] = min(found.cost, ways.get(key, found.cost))
    options = sorted(ways.items(), key=lambda option: option[1])
    costs = [0.0]
    for count in range(1, most + 1):
        least = _least_packing(options, count, 0, 0, float("inf"))
        if least == float("inf"):
            break
        costs.append(least)
    return costs


def _least_packing(
    options: Sequence[tuple[tuple[int, int], float]], count: int, start: int, taboo: int, limit: float
) -> float:
    """The least cost of so many of the options side by side, cheapest first, or the limit if none is below it."""
    if count == 0:
        return min(0.0, limit)
    for at in range(start, len(options)):
        (taken, more), cost = options[at]
        if cost * count >= limit:
            break
        if not taken & taboo:
            rest = _least_packing(options, count - 1, at + 1, taboo | more, limit - cost)
            limit = min(limit, cost + rest)
    return limit
