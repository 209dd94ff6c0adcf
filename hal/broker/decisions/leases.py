"""Decisions about leases that are: prepared, renewed, released, and proven to be let go."""

from __future__ import annotations

import msgspec

from hal.broker import command as c
from hal.broker import record as r
from hal.broker.decisions.devices import Decision
from hal.broker.lifecycle import ENDING, LIVE, check_step, ended, may
from hal.broker.state import State, has_expired
from hal.errors import ClaimError, LeaseNotFound, StaleFence
from hal.model.claim_check import check_ttl
from hal.model.lease import Lease, LeaseState
from hal.model.words import counted


def find(state: State, lease_id: str, tenant: str | None, during: str) -> Lease:
    """Return a lease, over or not; what is another tenant's is not there."""
    lease = state.leases.get(lease_id) or state.ended.get(lease_id)
    if lease is None or not is_below(lease.tenant, tenant):
        raise LeaseNotFound("no such lease", device=lease_id, during=during, hint="hal list")
    return lease


def is_below(tenant: str, above: str | None) -> bool:
    """Return whether a tenant is another one, or belongs to it; None stands for everybody's."""
    return above is None or tenant == above or tenant.startswith(above + "/")


def newest_fence(lease: Lease) -> int:
    """Return the highest fence under which a lease has devices."""
    return max((device.fence for device in lease.devices if device.fence), default=lease.fence)


def _check_fence(lease_id: str, has: int, given: int, during: str) -> None:
    if has != given:
        raise StaleFence(
            f"the fence is {has}, not {given}", device=lease_id, during=during, hint="look again: hal list"
        )


def mark_prepared(state: State, command: c.MarkPrepared, now: float) -> Decision:
    """Every device of a bound lease is ready."""
    lease = find(state, command.lease, None, "prepare")
    _check_fence(lease.id, newest_fence(lease), command.fence, "prepare")
    if lease.state is LeaseState.PREPARED:
        return [], c.Done(lease)
    if lease.state is LeaseState.DRAINING:
        return [], c.Done(lease)  # told to leave while it was being prepared: it keeps what it has until then
    check_step(lease, LeaseState.PREPARED, "prepare")
    devices = tuple(
        msgspec.structs.replace(device, opened_as=command.opened_as.get(device.slot, device.opened_as))
        for device in lease.devices
    )
    record = r.LeasePrepared(at=now, lease=lease.id, opened_as=command.opened_as)
    return [record], c.Done(msgspec.structs.replace(lease, state=LeaseState.PREPARED, devices=devices))


def renew(state: State, command: c.Renew, now: float) -> Decision:
    """The holder lives. A lease never outlives its duration."""
    lease = find(state, command.lease, command.tenant, "renew")
    if lease.state not in LIVE or lease.expires_at <= now:
        raise ended(lease, "renew")
    ttl = lease.ttl_seconds if command.ttl_seconds is None else command.ttl_seconds
    check_ttl(ttl, lease.id, "renew")
    expires_at = max(lease.expires_at, now + ttl)
    if lease.ends_at is not None:
        expires_at = min(expires_at, lease.ends_at)
    fresh = msgspec.structs.replace(lease, expires_at=expires_at, ttl_seconds=ttl)
    changed = None if ttl == lease.ttl_seconds else ttl
    return [r.LeaseRenewed(at=now, lease=lease.id, expires_at=expires_at, ttl_seconds=changed)], c.Done(fresh)


def release(state: State, command: c.Release, now: float) -> Decision:
    """Decide the end of a lease, or take a waiting claim out of the queue."""
    entry = state.waiting.get(command.lease)
    if entry is not None and is_below(entry.claim.tenant, command.tenant):
        return [r.ClaimLeft(at=now, claim=command.lease, why=command.why)], c.Done()
    left = state.claims.get(command.lease) if command.lease in state.left else None
    if left is not None and is_below(left.tenant, command.tenant):
        return [], c.Done()
    lease = find(state, command.lease, command.tenant, "release")
    if not may(lease, LeaseState.RELEASING):
        return [], c.Done(lease)
    why = lease.why_ended or command.why
    record = r.LeaseReleasing(at=now, lease=lease.id, why=command.why)
    return [record], c.Done(msgspec.structs.replace(lease, state=LeaseState.RELEASING, why_ended=why))


def prove_released(state: State, command: c.ProveReleased, now: float) -> Decision:
    """Take the agent's word, or an operator's, for each slot of a lease."""
    lease = find(state, command.lease, None, "release")
    _check_fence(lease.id, lease.fence, command.fence, "release")
    if lease.state is LeaseState.ENDED:
        return [], c.Done(lease)
    if lease.state not in ENDING and not command.operator:
        raise ClaimError(
            f"the lease is {lease.state.value}; nobody has ended it",
            device=lease.id,
            during="release",
            hint="hal release",
        )
    freed = command.freed
    if freed is None:
        slots = [lease.slot_of(device) for device in lease.devices]
        freed = tuple([slot for slot in slots if slot not in command.fenced])
    if command.freed is not None or command.fenced:
        spoken_of = {*freed, *command.fenced}
        if len(spoken_of) != len(freed) + len(command.fenced) or spoken_of != {
            lease.slot_of(device) for device in lease.devices
        }:
            raise ClaimError(
                "the proof does not speak of each device of the lease once", device=lease.id, during="release"
            )
    record = r.LeaseEnded(
        at=now,
        lease=lease.id,
        freed=freed,
        fenced=command.fenced,
        proof=command.proof,
        returned=command.returned,
    )
    return [record], c.Done()


def prove_shrunk(state: State, command: c.ProveShrunk, now: float) -> Decision:
    """Take the agent's word for the replicas that were to leave; what was proven before is no error."""
    lease = find(state, command.lease, None, "resize")
    here = {device.replica for device in lease.devices}
    gone = tuple(replica for replica in command.replicas if replica in here)
    if not gone or lease.state is LeaseState.ENDED:
        return [], c.Done(lease)
    if not set(gone) <= set(lease.leaving):
        raise ClaimError("these replicas were not told to leave", device=lease.id, during="resize", hint="hal resize")
    devices = [device for device in lease.devices if device.replica in gone]
    _check_fence(lease.id, max(lease.fence_of(device) for device in devices), command.fence, "resize")
    slots = [lease.slot_of(device) for device in devices]
    if not set(command.fenced) <= set(slots):
        raise ClaimError("the proof speaks of other devices, too", device=lease.id, during="resize")
    freed = tuple(slot for slot in slots if slot not in command.fenced)
    record = r.LeaseShrunk(
        at=now, lease=lease.id, replicas=gone, freed=freed, proof=command.proof, fenced=command.fenced
    )
    return [record], c.Done()


def prove_freed(state: State, command: c.ProveFreed, now: float) -> Decision:
    """A fenced slot is let go after all."""
    fenced = state.fenced.get(command.device)
    if fenced is None:
        return [], c.Done()
    _check_fence(command.device, fenced.fence, command.fence, "release")
    return [r.DeviceFreed(at=now, device=command.device, proof=command.proof)], c.Done()


def expire(state: State, command: c.Expire, now: float) -> Decision:
    """Look at the clock. Of the answer, ``leases`` are those that the agent has to take back, whole or in part."""
    records: list[r.AnyRecord] = []
    concerned: list[Lease] = []
    for claim_id in state.due(now):
        lease = state.leases.get(claim_id)
        if lease is None:
            entry = state.waiting[claim_id]
            wait = entry.claim.wait_seconds
            if wait is not None and entry.since + wait <= now:
                records.append(r.ClaimLeft(at=now, claim=claim_id, why=f"it has waited {counted(wait, 'second')}"))
            continue
        concerned.append(lease)
        if lease.ends_at is not None and lease.ends_at <= now:
            records.append(r.LeaseReleasing(at=now, lease=claim_id, why="its time is over"))
        elif lease.state is LeaseState.DRAINING and lease.leave_by <= now:
            records.append(r.LeaseReleasing(at=now, lease=claim_id, why=lease.notice))
        elif lease.expires_at <= now:
            records.append(r.LeaseSuspected(at=now, lease=claim_id))
    for device in state.spoiled(now):
        left = tuple(condition for condition in device.conditions if not has_expired(condition, now))
        records.append(r.DeviceSeen(at=now, device=msgspec.structs.replace(device, conditions=left)))
    return records, c.Done(leases=tuple(concerned))
