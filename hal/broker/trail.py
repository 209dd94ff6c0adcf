"""Which records go to the audit trail, and in what words."""

from __future__ import annotations

from hal.broker import record as r
from hal.broker.history import event_of
from hal.broker.journal.audit import AuditEntry
from hal.broker.state import State

ITSELF = "hal"
"""The actor of what the broker does by itself: it grants from the queue, makes room, ends what has expired."""
_VERBS: dict[type, str] = {
    r.ClaimQueued: "queue",
    r.ClaimKept: "keep",
    r.ClaimLeft: "leave-queue",
    r.LeaseNoticed: "notice",
    r.LeaseGrown: "grow",
    r.LeaseShrunk: "shrink",
    r.LeaseResized: "resize",
    r.LeaseSuspected: "suspect",
    r.LeaseReleasing: "release",
    r.LeaseEnded: "end",
    r.DeviceFreed: "free",
    r.DeviceRepaired: "repair",
    r.Cordoned: "cordon",
    r.Uncordoned: "uncordon",
    r.TenantSet: "set-tenant",
    r.TenantRemoved: "remove-tenant",
    r.BootSeen: "boot",
}


def entry_of(state: State, record: r.AnyRecord, actor: str) -> AuditEntry | None:
    """Return what the trail says of a record, or None; the state is the one after it."""
    if isinstance(record, r.LeaseGranted):
        lease = record.lease
        devices = lease.devices
        names = devices[0].id if len(devices) == 1 else ", ".join([device.id for device in devices])
        detail = f"fence {lease.fence}: {names}"
        return AuditEntry(at=record.at, actor=actor, tenant=lease.tenant, verb="grant", subject=lease.id, detail=detail)
    verb = _VERBS.get(type(record))
    if verb is None:
        return None
    event = event_of(record)
    claim = record.claim if isinstance(record, r.ClaimQueued) else state.claims.get(event.subject)
    tenant = claim.tenant if claim is not None else ""
    return AuditEntry(at=record.at, actor=actor, tenant=tenant, verb=verb, subject=event.subject, detail=event.detail)
