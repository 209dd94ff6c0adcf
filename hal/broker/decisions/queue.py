"""The queue, one step at a time: who waits is served in the order of fairness, and nobody waits for ever.

Each :class:`~hal.broker.command.Schedule` does the first of these that can be done:

1. a claim for which devices are kept gets them when the last of them comes free;
2. the next claim in the order of :class:`~hal.broker.fair.tree.FairTree` for which there is room is granted;
3. the claims at the head of that order, for which there is none, may ask others to make room: spare replicas of
   elastic leases go first, then holders of a lower priority (if the claim preempts), then borrowers (if the claim's
   tenant is below its guarantee); the devices are kept for it from then on;
4. a claim that has been at the head for :data:`PATIENCE_SECONDS` gets devices kept as they come free, those of which
   it is known that they come free first; smaller claims go on in the gaps (backfill) only if they end before;
5. when nobody waits, the elastic lease whose tenant has least of its share grows by one replica.
"""

from __future__ import annotations

from hal.broker import command as c
from hal.broker import record as r
from hal.broker.accounts import billed, demand_of
from hal.broker.allocation.choice import Place, given
from hal.broker.allocation.view import allocate_if
from hal.broker.decisions.claims import grow, lease_of, over_quota
from hal.broker.decisions.devices import Decision
from hal.broker.decisions.room import Plan, is_open, is_usable, plan_room, room
from hal.broker.snapshot import Entry
from hal.broker.state import State
from hal.model.lease import LeaseState
from hal.model.words import counted

PATIENCE_SECONDS = 60.0
"""How long the first in the queue is passed over before devices are kept for it."""
HEADS = 8
"""How many of the first in the queue may ask others to make room."""


def schedule(state: State, command: c.Schedule, now: float) -> Decision:
    """Do the next thing that the queue asks for."""
    state.settle()
    for claim_id in state.kept:
        found = _serve_kept(state, state.waiting[claim_id], now)
        if found is not None:
            return found
    granted = _serve_next(state, now)
    if granted is not None:
        return granted
    for position, claim_id in enumerate(state.fair.order(HEADS)):
        entry = state.waiting[claim_id]
        if state.fair.verdict(entry.claim.tenant, demand_of(entry.claim)) is not None:
            continue
        plan = plan_room(state, entry.claim, now)
        if plan is not None:
            return _make_room(state, entry, plan, now)
        if position == 0 and now - entry.since >= PATIENCE_SECONDS:
            kept = _keep(state, entry, now)
            if kept is not None:
                return kept
    return _grow(state, now)


def _serve_kept(state: State, entry: Entry, now: float) -> Decision | None:
    """Grant a claim its devices when all are free, or give them up when one can never be."""
    claim = entry.claim
    if claim.start_at is not None and claim.start_at > now:
        return None
    if not entry.kept:
        return _reopen(entry, "its time has come", now)
    broken = [device.name for device in entry.kept if not is_usable(state, device)]
    if broken:
        return _reopen(entry, f"{', '.join(broken)} cannot be given any more", now)
    if not all(is_open(state, device) for device in entry.kept):
        return _grant(state, entry, now)  # whoever was to leave has not yet, but there may be room elsewhere by now
    if over_quota(state, claim.tenant, entry.kept) is not None:
        return None
    lease = lease_of(state, claim, entry.kept, now)
    return [r.LeaseGranted(at=now, claim=claim, lease=lease)], c.Granted(lease)


def _reopen(entry: Entry, why: str, now: float) -> Decision:
    return [r.ClaimKept(at=now, claim=entry.claim.id, devices=(), starts_at=None, why=why)], c.Done()


def _serve_next(state: State, now: float) -> Decision | None:
    """Grant the next claim for which there is room and quota."""
    rooms: dict[object, Place | None] = {}

    def feasible(group: object) -> bool:
        if group not in rooms:
            found = room(state, state.samples[group], now)
            rooms[group] = found if isinstance(found, Place) else None
        return rooms[group] is not None

    claim_id = state.fair.next(feasible)
    return None if claim_id is None else _grant(state, state.waiting[claim_id], now)


def _grant(state: State, entry: Entry, now: float) -> Decision | None:
    place = room(state, entry.claim, now)
    if not isinstance(place, Place):
        return None
    lease = lease_of(state, entry.claim, place, now)
    if over_quota(state, entry.claim.tenant, lease.devices) is not None:
        return None
    return [r.LeaseGranted(at=now, claim=entry.claim, lease=lease)], c.Granted(lease)


def _make_room(state: State, entry: Entry, plan: Plan, now: float) -> Decision:
    """Tell those in the way to leave, each within its own grace, and keep the devices."""
    records: list[r.AnyRecord] = []
    claim = entry.claim
    leaving: dict[str, list[int]] = {}
    for burden in plan.burdens:
        leaving.setdefault(burden.lease.id, []).extend(burden.replicas)
    for lease_id, replicas in leaving.items():
        grace = state.claims[lease_id].grace_seconds
        why = f"its devices are needed for {claim.id} (priority {claim.priority})"
        records.append(
            r.LeaseNoticed(at=now, lease=lease_id, leave_by=now + grace, why=why, leaving=tuple(sorted(replicas)))
        )
    devices = billed(plan.devices, state.devices)
    why = "it waits for " + ", ".join(leaving) + " to leave"
    records.append(r.ClaimKept(at=now, claim=claim.id, devices=devices, starts_at=None, why=why))
    return records, c.Done(leases=tuple(state.leases[lease_id] for lease_id in leaving))


def _keep(state: State, entry: Entry, now: float) -> Decision | None:
    """Keep devices for the claim that has waited too long: where they are known to come free first."""
    claim = entry.claim
    ends = sorted({lease.ends_at for lease in state.leases.values() if lease.ends_at is not None})
    low, high = 0, len(ends)
    place: Place | None = None
    while low < high:  # the earliest end with which there is room
        middle = (low + high) // 2
        ending = [x for x in state.leases.values() if x.ends_at is not None and x.ends_at <= ends[middle]]
        found = allocate_if(state, claim, freed=[device for lease in ending for device in lease.devices])
        if isinstance(found, Place):
            place, high = found, middle
        else:
            low = middle + 1
    starts_at = ends[low] if place is not None else None
    if place is None:
        found = allocate_if(state, claim, freed=[d for lease in state.leases.values() for d in lease.devices])
        if not isinstance(found, Place):
            return None
        place = found
    devices = billed(given(place, 0), state.devices)
    if over_quota(state, claim.tenant, devices) is not None:
        return None
    why = f"it has waited {counted(round(now - entry.since), 'second')}; these are kept for it as they come free"
    return [r.ClaimKept(at=now, claim=claim.id, devices=devices, starts_at=starts_at, why=why)], c.Done()


def _grow(state: State, now: float) -> Decision:
    """Let an elastic lease have one replica more, if nobody waits who could use the room."""
    if state.fair.order(1):
        return [], c.Done()
    hungry = []
    for lease_id in state.elastic:
        lease = state.leases[lease_id]
        if (
            lease.state is LeaseState.PREPARED
            and not lease.leaving
            and lease.elastic
            and lease.replicas < (lease.wanted or lease.elastic[1])
        ):
            hungry.append((state.fair.over_share(lease.tenant), -lease.priority, lease.granted_at, lease_id))
    for *_, lease_id in sorted(hungry):
        records, answer = grow(state, state.leases[lease_id], 1, now)
        if records:
            return records, answer
    return [], c.Done()
