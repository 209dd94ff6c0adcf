"""Is there room: now, later, if all were free, beside what a gang has already; and whom to ask to make some.

Choosing whom to ask is exact for what it promises: each candidate is a *burden* (an elastic lease's spare replica, or
a whole lease), burdens are ordered by how hard they are to bear, and the burdens left over after leaving out one after
the other from the hardest on, wherever there still is room without it, are the least hard ones in that order. More free
devices never make less room, so one pass is enough.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from hal.broker.accounts import amounts_of, demand_of
from hal.broker.allocation.choice import Outcome, Place, Refusal, given
from hal.broker.allocation.facts import capacity_of
from hal.broker.allocation.partitions import fits_beside
from hal.broker.allocation.view import View, allocate, allocate_if, domain_of
from hal.broker.index import NODE
from hal.broker.lifecycle import STAYING
from hal.broker.state import State
from hal.model.claim import Claim, Constraint, Gather, Locality, Preempt
from hal.model.lease import AllocatedDevice, Lease

MOST_NODES = 64
"""On how many machines room is looked for by asking holders to leave."""
MOST_BURDENS = 64
"""How many burdens are weighed one by one; of more, only those in the way of the place that the allocator prefers."""


def room(state: State, asked: Claim, now: float, view: View | None = None) -> Outcome:
    """Look for room now. A claim with a duration may use what is kept for others that start after its end."""
    found = allocate(state, asked, view)
    if not isinstance(found, Refusal) or not state.kept:
        return found
    mine = state.waiting[asked.id].kept if asked.id in state.kept else ()
    unkept = [device.id for device in mine]
    if asked.duration_seconds is not None:
        end = now + asked.duration_seconds
        for entry in (state.waiting[claim_id] for claim_id in state.kept):
            if entry.starts_at is not None and entry.starts_at >= end:
                unkept += [device.id for device in entry.kept if len(state.reserved[device.id]) == 1]
    return allocate_if(state, asked, unkept=frozenset(unkept)) if unkept else found


def room_ever(state: State, asked: Claim) -> Outcome:
    """Look for room as if nothing were held or kept."""
    return allocate_if(state, asked, empty=True)


def room_at(state: State, asked: Claim, start_at: float, now: float) -> Outcome:
    """Look for devices that are known to be free from a time on, for as long as the claim lasts."""
    end = float("inf") if asked.duration_seconds is None else start_at + asked.duration_seconds
    freed: list[AllocatedDevice] = []
    for lease in state.leases.values():
        if lease.ends_at is not None and lease.ends_at <= start_at:
            freed += lease.devices
    unkept: list[str] = []
    barred: list[str] = []
    for entry in (state.waiting[claim_id] for claim_id in state.kept):
        begin = entry.starts_at if entry.starts_at is not None else now
        lasts = entry.claim.duration_seconds
        over = float("inf") if lasts is None else begin + lasts
        (unkept if over <= start_at or begin >= end else barred).extend(device.id for device in entry.kept)
    return allocate_if(state, asked, freed=freed, unkept=frozenset(unkept), barred=frozenset(barred))


def room_for_more(
    state: State, lease: Lease, asked: Claim, more: int, now: float
) -> tuple[AllocatedDevice, ...] | Refusal | None:
    """Look for more replicas beside those that a lease has, one after the other, as its gang wants them to lie."""
    single = msgspec.structs.replace(
        asked,
        replicas=1,
        max_replicas=None,
        gang=None,
        constraints=(*asked.constraints, Constraint(same=Locality.NODE.value)),
    )
    found: list[AllocatedDevice] = []
    taken = {device.replica for device in lease.devices}
    spare = (number for number in range(len(taken) + more) if number not in taken)
    for replica in (next(spare) for _ in range(more)):
        nodes = _allowed_nodes(state, asked, (*lease.devices, *found))
        outcome = allocate_if(state, single, nodes=nodes, barred=frozenset(device.id for device in found))
        if not isinstance(outcome, Place):
            return outcome
        found += [msgspec.structs.replace(device, replica=replica) for device in given(outcome, 0)]
    return tuple(found)


def _allowed_nodes(state: State, asked: Claim, has: Iterable[AllocatedDevice]) -> frozenset[str] | None:
    """Return on which nodes another replica may lie, None for all."""
    gang = asked.gang
    if gang is None:
        return None
    most = gang.most if gang.most is not None else 1 if gang.how is Gather.SPREAD else None
    if gang.how is not Gather.ONE and most is None:
        return None
    replicas: dict[str, set[int]] = {}
    for device in has:
        node = state.node(device.node)
        place = domain_of(node, gang.over) if node is not None else None
        if place is not None:
            replicas.setdefault(place, set()).add(device.replica)
    allowed: set[str] = set()
    for node in state.nodes:
        place = domain_of(node, gang.over)
        if place is None or (gang.how is Gather.ONE and place not in replicas):
            continue
        if most is None or len(replicas.get(place, ())) < most:
            allowed.add(node.name)
    return frozenset(allowed)


# --- what is kept


def is_usable(state: State, device: AllocatedDevice) -> bool:
    """Return whether a device is fit and not cordoned, whoever has it."""
    known = state.devices.get(device.id)
    node = state.node(known.location.node) if known is not None else None
    if node is None or device.id not in node.place or NODE + node.name in state.cordons:
        return False
    return bool(node.fit >> node.place[device.id] & 1) and device.id not in state.cordons


def is_open(state: State, device: AllocatedDevice) -> bool:
    """Return whether nobody else has what is kept: the whole of a device, a share in it or a part of it."""
    node = state.node(state.devices[device.id].location.node)
    if node is None:
        return False
    position = node.place[device.id]
    open_, partial = node.what_if((), (), (device.id,))
    if open_ >> position & 1:
        return True
    for place, uses, parts in partial:
        if place == position and device.uses:
            used = dict(uses)
            known = node.devices[position]
            return all(used.get(name, 0) + more <= capacity_of(known, name) for name, more in device.uses.items())
        if place == position and device.partition:
            return fits_beside(node.devices[position], device.partition, parts)
    return False


# --- making room


@dataclass(frozen=True, slots=True)
class Burden:
    """Something that would have to go: spare replicas of an elastic lease, or (``replicas`` empty) a whole lease."""

    key: tuple[object, ...]
    lease: Lease
    replicas: tuple[int, ...]
    devices: tuple[AllocatedDevice, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who has to go, and which devices are kept then."""

    burdens: tuple[Burden, ...]
    devices: tuple[AllocatedDevice, ...]


def plan_room(state: State, asked: Claim, now: float) -> Plan | None:
    """Find the least hard burdens whose going makes room for a claim; None if there is no such way."""
    burdens = _burdens(state, asked, now)
    if not burdens:
        return None
    everywhere = _fits(state, asked, burdens)
    if everywhere is None:
        return None
    best: tuple[tuple[object, ...], Plan] | None = None
    for nodes in _scopes(state, asked, burdens, everywhere):
        plan = _least(state, asked, [b for b in burdens if nodes is None or _touches(b, nodes)], nodes)
        if plan is not None:
            hardness = tuple(burden.key for burden in sorted(plan.burdens, key=_hardest, reverse=True))
            if best is None or hardness < best[0]:
                best = (hardness, plan)
    return best[1] if best is not None else None


def _hardest(burden: Burden) -> tuple[object, ...]:
    return burden.key


def _burdens(state: State, asked: Claim, now: float) -> list[Burden]:
    kinds = {choice.kind for request in asked.requests for choice in (request, *request.or_else)}
    reclaims = state.fair.below_guarantee(asked.tenant, _with_kept(state, asked))
    found: list[Burden] = []
    for lease_id in state.elastic:
        lease = state.leases[lease_id]
        if lease.state not in STAYING or lease.leaving or lease.priority > asked.priority or lease.elastic is None:
            continue
        here = sorted({device.replica for device in lease.devices})
        for replica in here[lease.elastic[0] :]:
            devices = tuple(device for device in lease.devices if device.replica == replica)
            if any(device.kind in kinds for device in devices):
                found.append(Burden((0, *_hardness(state, lease, devices, now), -replica), lease, (replica,), devices))
    if asked.preempt is Preempt.NEVER and not reclaims:
        return found
    for lease in state.leases.values():
        if lease.state not in STAYING or lease.leaving or not any(device.kind in kinds for device in lease.devices):
            continue
        lower = asked.preempt is Preempt.LOWER and lease.priority < asked.priority
        borrowed = (
            reclaims
            and lease.priority <= asked.priority
            and state.fair.is_borrowing(lease.tenant, amounts_of(lease.devices))
        )
        if lower or borrowed:
            found.append(Burden((1, *_hardness(state, lease, lease.devices, now)), lease, (), lease.devices))
    return found


def _with_kept(state: State, asked: Claim) -> dict[str, int]:
    """Return what a claim asks for and what is kept for others of its organisation, which is as good as used."""
    amounts = demand_of(asked)
    whose = asked.tenant.partition("/")[0]
    for entry in (state.waiting[claim_id] for claim_id in state.kept):
        if entry.claim.tenant.partition("/")[0] == whose:
            for kind, amount in amounts_of(entry.kept).items():
                amounts[kind] = amounts.get(kind, 0) + amount
    return amounts


def _hardness(state: State, lease: Lease, devices: tuple[AllocatedDevice, ...], now: float) -> tuple[object, ...]:
    lost = (now - lease.granted_at) * len(devices)
    return (*state.fair.victim_key(lease.tenant, lease.priority, lost, amounts_of(devices)), lease.id)


def _fits(state: State, asked: Claim, burdens: Collection[Burden], nodes: frozenset[str] | None = None) -> Place | None:
    freed = {(b.lease.id, device.slot): device for b in burdens for device in b.devices}
    found = allocate_if(state, asked, freed=list(freed.values()), nodes=nodes)
    return found if isinstance(found, Place) else None


def _scopes(state: State, asked: Claim, burdens: Sequence[Burden], everywhere: Place) -> list[frozenset[str] | None]:
    """Return where to look: one node at a time where one holds the whole claim, else everywhere at once."""
    if len({choice.node.name for choice in everywhere.choices}) > 1:
        return [None]
    nodes: dict[str, list[tuple[object, ...]]] = {}
    for burden in burdens:
        for name in {device.node for device in burden.devices}:
            nodes.setdefault(name, []).append(burden.key)
    names = sorted(nodes, key=lambda name: (sorted(nodes[name]), name))[:MOST_NODES]
    here = everywhere.choices[0].node.name
    return [frozenset({name}) for name in dict.fromkeys((here, *names))]


def _touches(burden: Burden, nodes: frozenset[str]) -> bool:
    return any(device.node in nodes for device in burden.devices)


def _least(state: State, asked: Claim, burdens: list[Burden], nodes: frozenset[str] | None) -> Plan | None:
    needed = sorted(burdens, key=_hardest)
    place = _fits(state, asked, needed, nodes)
    if place is None:
        return None
    if len(needed) > MOST_BURDENS:
        touched = _in_the_way(needed, place)
        if _fits(state, asked, touched, nodes) is not None:
            needed = touched
    for burden in sorted(needed, key=_hardest, reverse=True):
        without = [other for other in needed if other is not burden]
        found = _fits(state, asked, without, nodes)
        if found is not None:
            needed, place = without, found
    # A whole lease that goes takes its replicas with it.
    whole = {burden.lease.id for burden in needed if not burden.replicas}
    left = tuple(b for b in needed if not b.replicas or b.lease.id not in whole)
    return Plan(left, given(place, 0))


def _in_the_way(burdens: Iterable[Burden], place: Place) -> list[Burden]:
    wanted = {device.id for device in given(place, 0)}
    return [burden for burden in burdens if any(device.id in wanted for device in burden.devices)]
