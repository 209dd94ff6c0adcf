"""The decisions: ``decide(state, command, now)`` returns records and an answer, and changes nothing.

=============  ==========================================  =====================================================
state          means                                       next
=============  ==========================================  =====================================================
bound          committed; the agent prepares               prepared, suspect, releasing
prepared       every device is ready for the holder        suspect, releasing
suspect        expired; the holder may still be there      releasing, ended (with proof)
releasing      its end is decided; the agent takes back    ended (with proof)
ended          each device is free, or fenced              (none)
=============  ==========================================  =====================================================

A device that is free was never held, or its last holder is proven to have let go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hal.broker import command as c
from hal.broker import record as r
from hal.broker.allocation.view import Place, View, allocate
from hal.broker.allocation.explain import refusal_text
from hal.broker.allocation.matching import BUDGET
from hal.broker.allocation.places import ancestors, selector_of
from hal.broker.state import State, has_expired
from hal.errors import ClaimError, DeviceBusy, DeviceNotFound, LeaseEnded, LeaseNotFound, StaleFence
from hal.model.claim import Claim
from hal.model.claim_check import check_claim, check_holder, check_ttl
from hal.model.device import Device
from hal.model.health import Action, Condition, Presence, Status
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice, Lease, LeaseState

AGENT = "hal-agent"
"""The source of conditions that the broker's own agent saw; they outlive an observation until they expire."""
FENCES_A_SECOND = 1_000_000

Decision = tuple[Sequence[r.AnyRecord], c.Answer]
_REBOOT_MENDS = (Action.RESTART_APP, Action.RESET, Action.DRAIN_RESET, Action.REBOOT)
_LIVE = (LeaseState.BOUND, LeaseState.PREPARED)
_ENDING = (LeaseState.SUSPECT, LeaseState.RELEASING)


def decide(state: State, command: c.AnyCommand, now: float) -> Decision:
    """Return what to write down, and the answer that holds once it is written.

    Raises :class:`~hal.errors.ClaimError`, :class:`~hal.errors.LeaseNotFound`, :class:`~hal.errors.LeaseEnded` and
    :class:`~hal.errors.StaleFence` for commands that make no sense in this state.
    """
    return _DECIDE[type(command)](state, command, now)


def _begin(state: State, command: c.Begin, now: float) -> Decision:
    records: list[r.AnyRecord] = []
    if state.revision == 0:
        # A journal that was lost and begun anew must not give a fence again: the time is above all it can have given.
        records.append(r.JournalBegun(at=now, fence=int(now) * FENCES_A_SECOND))
    if command.boot_id == state.boot_id:
        return records, c.Done()
    records.append(r.BootSeen(at=now, boot_id=command.boot_id, clock_offset_seconds=command.clock_offset_seconds))
    if not state.boot_id:
        return records, c.Done()
    proof = f"the machine was booted since (boot id {command.boot_id}, it was {state.boot_id})"
    for lease in state.leases.values():
        own = {d.id: "a DPU's own cores do not stop with the host" for d in lease.devices if d.kind is Kind.DPU}
        freed = tuple(device.id for device in lease.devices if device.id not in own)
        records.append(r.LeaseEnded(at=now, lease=lease.id, freed=freed, fenced=own, proof=proof))
    for device_id, fenced in state.fenced.items():
        if fenced.device.kind is not Kind.DPU:
            records.append(r.DeviceFreed(at=now, device=device_id, proof=proof))
    for device in state.devices.values():
        if any(condition.latched for condition in device.conditions) and not _boots_by_itself(device, state):
            records.append(r.DeviceSeen(at=now, device=_rebooted(device)))
    return records, c.Done()


def _boots_by_itself(device: Device, state: State) -> bool:
    family = (device, *ancestors(device, state.devices))
    return any(isinstance(member, Device) and member.kind is Kind.DPU for member in family)


def _rebooted(device: Device) -> Device:
    """A reboot is the repair that some evidence asks for: the next look, and no memory, says whether it passed."""
    conditions = tuple(
        msgspec.structs.replace(condition, latched=False) if condition.action in _REBOOT_MENDS else condition
        for condition in device.conditions
    )
    return msgspec.structs.replace(device, conditions=conditions)


def _observe(state: State, command: c.Observe, now: float) -> Decision:
    records: list[r.AnyRecord] = []
    here: set[str] = set()
    for device in command.devices:
        if device.id in here:
            continue  # two findings of one identity: the first stands, or each look would undo the other
        here.add(device.id)
        before = state.devices.get(device.id)
        if before is not None and (before == device or _settled(before) == _settled(device)):
            continue
        kept = _kept(before, device, now) if before is not None else ()
        fresh = msgspec.structs.replace(device, conditions=(*device.conditions, *kept)) if kept else device
        if before is None or _settled(before) != _settled(fresh):
            records.append(r.DeviceSeen(at=now, device=fresh))
    if command.complete:
        for device_id, device in state.devices.items():
            if device_id in here or device.driver in command.silent:
                continue
            if device_id not in state.holders and not any(condition.latched for condition in device.conditions):
                records.append(r.DeviceForgotten(at=now, device=device_id))
            elif device.presence is not Presence.MISSING:
                lost = msgspec.structs.replace(device, presence=Presence.MISSING)
                records.append(r.DeviceSeen(at=now, device=lost))
    return records, c.Done()


def _kept(before: Device, device: Device, now: float) -> tuple[Condition, ...]:
    """Return what is known of a device and does not go because a look no longer shows it.

    That is what the agent saw, until it expires, and latched evidence, until a repair.
    """
    latched = {(condition.type, condition.code) for condition in device.conditions if _is_latched(condition)}
    return tuple(
        condition
        for condition in before.conditions
        if (
            (condition.type, condition.code) not in latched
            if _is_latched(condition)
            else condition.source == AGENT and condition.expires_at is not None and condition.expires_at > now
        )
        and condition not in device.conditions
    )


def _is_latched(condition: Condition) -> bool:
    return condition.latched and condition.status is Status.TRUE


def _settled(device: Device) -> Device:
    """Return the device without what changes at every look: how often and how lately a condition was seen."""
    if not device.conditions:
        return device
    conditions = tuple(
        msgspec.structs.replace(condition, first_seen_at=0.0, last_seen_at=0.0, count=0)
        for condition in device.conditions
    )
    return msgspec.structs.replace(device, conditions=conditions)


def _claim(state: State, command: c.ClaimDevices, now: float) -> Decision:
    claim = command.claim
    before = state.claims.get(claim.id)
    if before is not None:
        return (), _again(state, before, claim)
    view: View | None = state.views.get((claim.requests, claim.constraints))
    if view is not None:
        check_holder(claim)  # the rest was checked when the shape was first seen
    else:
        check_claim(claim)
        for request in claim.requests:
            selector_of(request.where)
    outcome = allocate(state, claim, view)
    if outcome is None:
        return (), c.Undecided(BUDGET)
    if not isinstance(outcome, Place):
        return (), c.Refused(refusal_text(state, claim, outcome.cause))
    lease = Lease(
        id=claim.id,
        tenant=claim.tenant,
        devices=_given(outcome),
        fence=state.fence + 1,
        granted_at=now,
        expires_at=now + claim.ttl_seconds,
        ttl_seconds=claim.ttl_seconds,
    )
    return (r.LeaseGranted(at=now, claim=claim, lease=lease),), c.Granted(lease)


def _given(place: Place) -> tuple[AllocatedDevice, ...]:
    """Return the devices in the order of the requests."""
    if len(place.choice) == 1:
        node, masks = place.choice[0]
        return node.given(masks, place.names)
    parts = [(masks, node.given(masks, place.names)) for node, masks in place.choice]
    return tuple(d for name in place.names for _, devices in parts for d in devices if d.request == name)


def _again(state: State, before: Claim, claim: Claim) -> c.Answer:
    if before != claim:
        raise ClaimError(
            "this id was used for a different claim",
            device=claim.id,
            during="claim",
            hint="take a fresh id, or leave it out to have one made",
        )
    lease = state.leases.get(claim.id)
    if lease is not None and lease.state in _LIVE:
        return c.Granted(lease)
    ended = lease or state.ended[claim.id]
    return c.Refused(f"the claim {claim.id} was granted before and is over: {ended.why_ended}; take a fresh id")


def _find(state: State, lease_id: str, tenant: str | None, during: str) -> Lease:
    lease = state.leases.get(lease_id) or state.ended.get(lease_id)
    if lease is None or (tenant is not None and lease.tenant != tenant):
        raise LeaseNotFound("no such lease", device=lease_id, during=during, hint="hal list")
    return lease


def _ended(lease: Lease, during: str) -> LeaseEnded:
    return LeaseEnded(
        f"the lease is over: {lease.why_ended or lease.state.value}",
        device=lease.id,
        during=during,
        hint="claim again, and renew before the lease expires",
    )


def _check_fence(lease_id: str, has: int, given: int, during: str) -> None:
    if has != given:
        raise StaleFence(
            f"the fence is {has}, not {given}", device=lease_id, during=during, hint="look again: hal list"
        )


def _mark_prepared(state: State, command: c.MarkPrepared, now: float) -> Decision:
    lease = _find(state, command.lease, None, "prepare")
    _check_fence(lease.id, lease.fence, command.fence, "prepare")
    if lease.state is LeaseState.PREPARED:
        return (), c.Done(lease)
    if lease.state is not LeaseState.BOUND:
        raise _ended(lease, "prepare")
    record = r.LeasePrepared(at=now, lease=lease.id)
    return (record,), c.Done(msgspec.structs.replace(lease, state=LeaseState.PREPARED))


def _renew(state: State, command: c.Renew, now: float) -> Decision:
    lease = _find(state, command.lease, command.tenant, "renew")
    if lease.state not in _LIVE or lease.expires_at <= now:
        raise _ended(lease, "renew")
    ttl = lease.ttl_seconds if command.ttl_seconds is None else command.ttl_seconds
    check_ttl(ttl, lease.id, "renew")
    expires_at = max(lease.expires_at, now + ttl)
    fresh = msgspec.structs.replace(lease, expires_at=expires_at, ttl_seconds=ttl)
    changed = None if ttl == lease.ttl_seconds else ttl
    return (r.LeaseRenewed(at=now, lease=lease.id, expires_at=expires_at, ttl_seconds=changed),), c.Done(fresh)


def _release(state: State, command: c.Release, now: float) -> Decision:
    lease = _find(state, command.lease, command.tenant, "release")
    if lease.state in (LeaseState.RELEASING, LeaseState.ENDED):
        return (), c.Done(lease)
    why = lease.why_ended or command.why
    record = r.LeaseReleasing(at=now, lease=lease.id, why=command.why)
    return (record,), c.Done(msgspec.structs.replace(lease, state=LeaseState.RELEASING, why_ended=why))


def _prove_released(state: State, command: c.ProveReleased, now: float) -> Decision:
    lease = _find(state, command.lease, None, "release")
    _check_fence(lease.id, lease.fence, command.fence, "release")
    if lease.state is LeaseState.ENDED:
        return (), c.Done(lease)
    if lease.state not in _ENDING and not command.operator:
        raise ClaimError(
            f"the lease is {lease.state.value}; nobody has ended it",
            device=lease.id,
            during="release",
            hint="hal release",
        )
    freed = command.freed
    if freed is None:
        freed = tuple([device.id for device in lease.devices if device.id not in command.fenced])
    spoken_of = {*freed, *command.fenced} if command.freed is not None or command.fenced else None
    if spoken_of is not None and (
        len(spoken_of) != len(freed) + len(command.fenced) or spoken_of != {device.id for device in lease.devices}
    ):
        raise ClaimError("the proof does not speak of each device of the lease once", device=lease.id, during="release")
    record = r.LeaseEnded(
        at=now,
        lease=lease.id,
        freed=freed,
        fenced=command.fenced,
        proof=command.proof,
        returned=command.returned,
    )
    return (record,), c.Done()


def _prove_freed(state: State, command: c.ProveFreed, now: float) -> Decision:
    fenced = state.fenced.get(command.device)
    if fenced is None:
        return (), c.Done()
    _check_fence(command.device, fenced.fence, command.fence, "release")
    return (r.DeviceFreed(at=now, device=command.device, proof=command.proof),), c.Done()


def _repair(state: State, command: c.RepairDevice, now: float) -> Decision:
    device = state.devices.get(command.device)
    if device is None:
        raise DeviceNotFound("no such device", device=command.device, during="repair", hint="hal-probe list")
    for held, lease_id in state.holders.items():
        if held not in state.fenced and _share_fate(held, device.id, state):
            what = "it" if held == device.id else state.devices[held].name if held in state.devices else held
            raise DeviceBusy(
                f"{what} is held by lease {lease_id}" + ("" if held == device.id else ", and shares its fate"),
                device=device.id,
                during="repair",
                hint=f"hal release {lease_id}",
            )
    if not command.how:
        return (), c.Done()
    if device.id in state.fenced:
        raise DeviceBusy("it is fenced", device=device.id, during="repair", hint="hal status")
    record = r.DeviceRepaired(at=now, device=device.id, how=command.how, conditions=command.conditions)
    return (record,), c.Done()


def _share_fate(one: str, other: str, state: State) -> bool:
    return one == other or one in _above(other, state) or other in _above(one, state)


def _above(device_id: str, state: State) -> set[str]:
    device = state.devices.get(device_id)
    if device is None:
        return set()
    return {member if isinstance(member, str) else member.id for member in ancestors(device, state.devices)}


def _expire(state: State, command: c.Expire, now: float) -> Decision:
    expired = state.expired(now)
    records: list[r.AnyRecord] = [r.LeaseSuspected(at=now, lease=lease.id) for lease in expired]
    for device in state.spoiled(now):
        left = tuple(condition for condition in device.conditions if not has_expired(condition, now))
        records.append(r.DeviceSeen(at=now, device=msgspec.structs.replace(device, conditions=left)))
    return records, c.Done(leases=tuple(expired))


_DECIDE: dict[type, Callable[[State, Any, float], Decision]] = {
    c.Begin: _begin,
    c.Observe: _observe,
    c.ClaimDevices: _claim,
    c.MarkPrepared: _mark_prepared,
    c.Renew: _renew,
    c.Release: _release,
    c.ProveReleased: _prove_released,
    c.ProveFreed: _prove_freed,
    c.RepairDevice: _repair,
    c.Expire: _expire,
}
