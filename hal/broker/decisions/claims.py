"""Decisions about claims: granted at once, kept for later, put in the queue, refused, or made larger and smaller."""

from __future__ import annotations

import msgspec

from hal.broker import command as c
from hal.broker import record as r
from hal.broker.accounts import WHOLE, billed, demand_of
from hal.broker.allocation.choice import Place, Refusal, given
from hal.broker.allocation.explain import refusal_text
from hal.broker.allocation.places import selector_of
from hal.broker.allocation.view import known_view
from hal.broker.decisions.devices import Decision
from hal.broker.decisions.leases import find
from hal.broker.decisions.room import room, room_at, room_ever, room_for_more
from hal.broker.fair.limits import LimitReached, QuotaExceeded
from hal.broker.lifecycle import LIVE, ended
from hal.broker.state import State
from hal.errors import ClaimError
from hal.model.claim import Claim, Preempt
from hal.model.claim_check import check_claim, check_holder
from hal.model.lease import AllocatedDevice, Lease, LeaseState
from hal.model.tenant import ancestry
from hal.model.words import are, counted

STEPS = 20_000
"""What is said of a search that was given up."""


def claim(state: State, command: c.ClaimDevices, now: float) -> Decision:
    """Grant the claim, queue it, or say why not; the same claim again gets the same answer."""
    asked = command.claim
    before = state.claims.get(asked.id)
    if before is not None:
        return [], _again(state, before, asked)
    view = known_view(state, asked)
    if view is not None:
        check_holder(asked)  # the rest was checked when the shape was first seen
    else:
        check_claim(asked)
        _compile(asked)
    if asked.start_at is not None and asked.start_at > now:
        return _later(state, asked, asked.start_at, now)
    limit = state.fair.admit(asked.tenant, waiting=False)
    why = ""
    if limit is not None:
        why = limit_text(limit)
    else:
        outcome = room(state, asked, now, view)
        if outcome is None:
            return [], c.Undecided(STEPS)
        if isinstance(outcome, Place):
            lease = lease_of(state, asked, outcome, now)
            over = over_quota(state, asked.tenant, lease.devices)
            if over is None:
                return [r.LeaseGranted(at=now, claim=asked, lease=lease)], c.Granted(lease)
            why = over
        else:
            why = refusal_text(state, asked, outcome)
    if not waits(asked):
        return [], c.Refused(why)
    return _queue(state, asked, why, now)


def waits(asked: Claim) -> bool:
    """Return whether a claim that finds no room goes to the queue; making room by preemption takes time, too."""
    return asked.wait or asked.preempt is not Preempt.NEVER


def _compile(asked: Claim) -> None:
    """Refuse selectors that do not compile before anything else is looked at."""
    for request in asked.requests:
        for choice in (request, *request.or_else):
            selector_of(choice.where)
            if choice.cel:
                from hal.model.cel import compile_cel

                for text in choice.cel:
                    compile_cel(text)


def _queue(state: State, asked: Claim, why: str, now: float) -> Decision:
    limit = state.fair.admit(asked.tenant, waiting=True)
    if limit is not None:
        return [], c.Refused(f"{why}; and it cannot wait: {limit_text(limit)}")
    ever = room_ever(state, asked)
    if isinstance(ever, Refusal):
        return [], c.Refused(f"it could not be granted even if every fit device were free: {why}")
    never = _beyond_quota(state, asked)
    if never is not None:
        return [], c.Refused(f"it could never be granted: {never}")
    answer = c.Queued(position=len(state.waiting) + 1, why=why)
    return [r.ClaimQueued(at=now, claim=asked)], answer


def _beyond_quota(state: State, asked: Claim) -> str | None:
    """Return which quota a claim exceeds by itself, whatever else is used."""
    for path in ancestry(asked.tenant):
        tenant = state.tenants.get(path)
        for resource, amount in demand_of(asked).items():
            quota = tenant.quota.get(resource) if tenant is not None else None
            if quota is not None and amount > quota * WHOLE:
                wanted = amount / WHOLE
                return f"the quota of {path or 'everybody'} is {quota} {resource}, {wanted:g} {are(wanted)} asked"
    return None


def _later(state: State, asked: Claim, start_at: float, now: float) -> Decision:
    """Keep devices for a claim that starts in the future."""
    limit = state.fair.admit(asked.tenant, waiting=True)
    if limit is not None:
        return [], c.Refused(limit_text(limit))
    outcome = room_at(state, asked, start_at, now)
    if outcome is None:
        return [], c.Undecided(STEPS)
    if isinstance(outcome, Refusal):
        why = refusal_text(state, asked, outcome)
        return [], c.Refused(f"no devices are known to be free from then on: {why}")
    devices = billed(given(outcome, 0), state.devices)
    over = over_quota(state, asked.tenant, devices)
    if over is not None:
        return [], c.Refused(over)
    why = "it starts later"
    records: list[r.AnyRecord] = [
        r.ClaimQueued(at=now, claim=asked),
        r.ClaimKept(at=now, claim=asked.id, devices=devices, starts_at=start_at, why=why),
    ]
    return records, c.Queued(position=len(state.waiting) + 1, starts_at=start_at, why=why)


def lease_of(state: State, asked: Claim, place: Place | tuple[AllocatedDevice, ...], now: float) -> Lease:
    """Return the lease that a claim gets with these devices, under a new fence."""
    devices = place if isinstance(place, tuple) else billed(given(place, 0), state.devices)
    ends_at = None if asked.duration_seconds is None else now + asked.duration_seconds
    expires_at = now + asked.ttl_seconds
    return Lease(
        id=asked.id,
        tenant=asked.tenant,
        devices=devices,
        fence=state.fence + 1,
        granted_at=now,
        expires_at=expires_at if ends_at is None else min(expires_at, ends_at),
        ttl_seconds=asked.ttl_seconds,
        priority=asked.priority,
        ends_at=ends_at,
        elastic=None if asked.max_replicas is None else (asked.replicas, asked.max_replicas),
    )


def lease_of_nothing(asked: Claim, why: str, now: float) -> Lease:
    """Return what stands for a claim that was never granted: a lease that is over and had no devices."""
    return Lease(
        id=asked.id,
        tenant=asked.tenant,
        devices=(),
        fence=0,
        granted_at=now,
        expires_at=now,
        ttl_seconds=asked.ttl_seconds,
        state=LeaseState.ENDED,
        why_ended=why,
        ended_at=now,
        priority=asked.priority,
    )


def over_quota(state: State, tenant: str, devices: tuple[AllocatedDevice, ...]) -> str | None:
    """Return whose quota stands against giving a tenant these devices, or None."""
    excess = state.fair.verdict(tenant, state.amounts(devices))
    return None if excess is None else quota_text(excess)


def limit_text(limit: LimitReached) -> str:
    """Return which limit on the number of claims is reached."""
    has = counted(limit.limit, limit.what.removesuffix("s"))
    return f"{limit.path or 'everybody'} has {has} already, which is its limit"


def quota_text(excess: QuotaExceeded) -> str:
    """Return what a quota says, in words and in whole devices."""
    used, asked, quota = (amount / WHOLE for amount in (excess.used, excess.asked, excess.quota))
    whose = excess.path or "the whole"
    return f"{whose} uses {used:g} of its quota of {quota:g} {excess.resource}, and {asked:g} more {are(asked)} asked"


def _again(state: State, before: Claim, asked: Claim) -> c.Answer:
    if before != asked:
        raise ClaimError(
            "this id was used for a different claim",
            device=asked.id,
            during="claim",
            hint="take a fresh id, or leave it out to have one made",
        )
    lease = state.leases.get(asked.id)
    if lease is not None and lease.state in LIVE:
        return c.Granted(lease)
    entry = state.waiting.get(asked.id)
    if entry is not None:
        return c.Queued(position=position_of(state, asked.id), starts_at=entry.starts_at, why=entry.why)
    why = state.left.get(asked.id)
    if why is not None:
        return c.Refused(f"the claim {asked.id} waited before and left the queue: {why}; take a fresh id")
    over = lease or state.ended[asked.id]
    return c.Refused(f"the claim {asked.id} was granted before and is over: {over.why_ended}; take a fresh id")


def position_of(state: State, claim_id: str) -> int:
    """Return where a waiting claim stands, from 1: those for which devices are kept come first."""
    if claim_id in state.kept:
        return list(state.kept).index(claim_id) + 1
    for number, waiting in enumerate(state.fair.order(len(state.waiting)), 1):
        if waiting == claim_id:
            return len(state.kept) + number
    return len(state.waiting)


def resize(state: State, command: c.Resize, now: float) -> Decision:
    """Let an elastic lease have more replicas, or fewer."""
    lease = find(state, command.lease, command.tenant, "resize")
    if lease.state not in LIVE or lease.expires_at <= now:
        raise ended(lease, "resize")
    fewest, most = lease.elastic or (lease.replicas, lease.replicas)
    if not fewest <= command.replicas <= most or lease.elastic is None:
        bounds = f"{fewest} to {most}" if lease.elastic is not None else f"{most}, it is not elastic"
        raise ClaimError(
            f"{counted(command.replicas, 'replica')}, it may have {bounds}",
            device=lease.id,
            during="resize",
            hint="claim with replicas and max_replicas",
        )
    here = sorted({device.replica for device in lease.devices} - set(lease.leaving))
    # What the agent asks for, who could not prepare what was new, is not what the holder wants.
    said: list[r.AnyRecord] = []
    if not command.leaving and command.replicas != (lease.wanted or most):
        said.append(r.LeaseResized(at=now, lease=lease.id, wanted=command.replicas))
        lease = msgspec.structs.replace(lease, wanted=command.replicas)
    if command.replicas == len(here):
        return said, c.Done(lease)
    if command.replicas < len(here):
        leaving = command.leaving or tuple(here[command.replicas :])
        if not set(leaving) <= set(here) or len(here) - len(leaving) != command.replicas:
            raise ClaimError("it has no such replicas, or not so many are left", device=lease.id, during="resize")
        record = r.LeaseNoticed(at=now, lease=lease.id, leave_by=now, why="resized by its holder", leaving=leaving)
        answer = c.Done(msgspec.structs.replace(lease, leaving=(*lease.leaving, *leaving), leave_by=now))
        return [*said, record], answer
    if lease.leaving or lease.state is LeaseState.DRAINING:
        return [], c.Refused("replicas of it were told to leave; ask again when they are gone")
    if lease.state is not LeaseState.PREPARED:
        return [], c.Refused("what it has is still being prepared; ask again when it is")
    records, grown = grow(state, lease, command.replicas - len(here), now)
    return ([*said, *records] if records else []), grown


def grow(state: State, lease: Lease, more: int, now: float) -> Decision:
    """Give a lease that many more replicas, all or none, under a fence of their own."""
    asked = state.claims[lease.id]
    found = room_for_more(state, lease, asked, more, now)
    if found is None:
        return [], c.Undecided(STEPS)
    if isinstance(found, Refusal):
        return [], c.Refused(refusal_text(state, asked, found))
    fence = state.fence + 1
    devices = tuple(msgspec.structs.replace(device, fence=fence) for device in billed(found, state.devices))
    over = over_quota(state, lease.tenant, devices)
    if over is not None:
        return [], c.Refused(over)
    record = r.LeaseGrown(at=now, lease=lease.id, devices=devices, fence=fence)
    return [record], c.Done(msgspec.structs.replace(lease, devices=(*lease.devices, *devices)))
