"""Records as lines of history, for people and for watchers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hal.broker import record as r
from hal.model.event import Event, EventType
from hal.model.words import counted

Line = tuple[EventType, str, str]


def event_of(record: r.AnyRecord, revision: int = 0) -> Event:
    """Return the record as a line of history."""
    type_, subject, detail = _LINES[type(record)](record)
    return Event(type=type_, subject=subject, at=record.at, revision=revision, detail=detail)


def _device_seen(record: r.DeviceSeen) -> Line:
    device = record.device
    detail = "; ".join(f"{c.type}: {c.evidence}" for c in device.conditions) or device.presence.value
    return EventType.CHANGED, device.id, detail


def _granted(record: r.LeaseGranted) -> Line:
    lease = record.lease
    names = ", ".join(device.name for device in lease.devices)
    return EventType.GRANTED, lease.id, f"{lease.tenant}, fence {lease.fence}: {names}"


def _kept(record: r.ClaimKept) -> Line:
    names = ", ".join(device.name for device in record.devices)
    since = "" if record.starts_at is None else f" from {record.starts_at:.3f}"
    return EventType.KEPT, record.claim, f"{names or 'nothing'}{since}: {record.why}"


def _noticed(record: r.LeaseNoticed) -> Line:
    which = "" if not record.leaving else "replicas " + ", ".join(map(str, record.leaving)) + " "
    return EventType.NOTICED, record.lease, f"{which}until {record.leave_by:.3f}: {record.why}"


def _over(record: r.LeaseEnded | r.LeaseShrunk) -> str:
    if not record.fenced:
        return record.proof
    return f"{record.proof}; still fenced: " + ", ".join(f"{name} ({why})" for name, why in record.fenced.items())


_LINES: dict[type, Callable[[Any], Line]] = {
    r.JournalBegun: lambda x: (EventType.ADDED, "journal", f"fences start above {x.fence}"),
    r.BootSeen: lambda x: (EventType.BOOTED, "machine", x.boot_id),
    r.DeviceSeen: _device_seen,
    r.DeviceForgotten: lambda x: (EventType.REMOVED, x.device, ""),
    r.DeviceFreed: lambda x: (EventType.FREED, x.device, x.proof),
    r.DeviceRepaired: lambda x: (EventType.REPAIRED, x.device, x.how),
    r.Cordoned: lambda x: (
        EventType.CORDONED,
        x.target,
        f"{'draining' if x.draining else 'cordoned'} by {x.by}: {x.why or 'no reason given'}",
    ),
    r.Uncordoned: lambda x: (EventType.UNCORDONED, x.target, f"by {x.by}"),
    r.ClaimQueued: lambda x: (EventType.QUEUED, x.claim.id, f"{x.claim.tenant}, priority {x.claim.priority}"),
    r.ClaimKept: _kept,
    r.ClaimLeft: lambda x: (EventType.LEFT, x.claim, x.why),
    r.LeaseGranted: _granted,
    r.LeasePrepared: lambda x: (EventType.PREPARED, x.lease, ""),
    r.LeaseRenewed: lambda x: (EventType.RENEWED, x.lease, f"until {x.expires_at:.3f}"),
    r.LeaseNoticed: _noticed,
    r.LeaseGrown: lambda x: (EventType.GROWN, x.lease, ", ".join(device.name for device in x.devices)),
    r.LeaseResized: lambda x: (EventType.RESIZED, x.lease, f"{counted(x.wanted, 'replica')} wanted"),
    r.LeaseShrunk: lambda x: (EventType.SHRUNK, x.lease, _over(x)),
    r.LeaseSuspected: lambda x: (EventType.SUSPECTED, x.lease, "expired"),
    r.LeaseReleasing: lambda x: (EventType.RELEASING, x.lease, x.why),
    r.LeaseEnded: lambda x: (EventType.RELEASED, x.lease, _over(x)),
    r.TenantSet: lambda x: (EventType.TENANT, x.tenant.path, f"weight {x.tenant.weight}"),
    r.TenantRemoved: lambda x: (EventType.TENANT, x.path, "removed"),
}
