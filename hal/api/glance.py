"""The broker at a glance: how many devices are free, who waits, what each tenant uses."""

from __future__ import annotations

import msgspec

from hal.api.surface import TenantReport, Waiting
from hal.broker.decisions.leases import is_below
from hal.broker.state import Fenced, State
from hal.model.tenant import ROOT, Tenant

_COUNTS = ("all", "free", "held", "shared", "fenced", "kept", "cordoned", "unfit", "tied")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The broker at a glance. ``devices`` counts the allocatable ones by kind.

    ``all`` are ``free``, ``held``, ``shared`` (others may join), ``fenced``, ``kept`` for a waiting claim,
    ``cordoned``, ``unfit`` (a condition keeps them back), or ``tied``: well, but something that shares their fate is
    held. ``now`` is what time it is by the broker's clock, in seconds since the Unix epoch (0: it did not say).
    """

    revision: int
    fence: int
    boot_id: str
    leases: int
    devices: dict[str, dict[str, int]]
    fenced: tuple[Fenced, ...] = ()
    waiting: int = 0
    cordons: int = 0
    now: float = 0.0


def status_of(state: State, now: float = 0.0) -> Status:
    """Count what there is; ``now`` is the time by the broker's clock."""
    state.settle()
    fenced = {entry.device.id for entry in state.fenced.values()}
    counts: dict[str, dict[str, int]] = {}
    for node in state.nodes:
        whole = f"node:{node.name}" in state.cordons
        for position, device in enumerate(node.devices):
            row = counts.setdefault(device.kind.value, dict.fromkeys(_COUNTS, 0))
            row["all"] += 1
            if device.id in fenced:
                row["fenced"] += 1
            elif device.id in state.sharers:
                row["shared"] += 1
            elif device.id in state.holders:
                row["held"] += 1
            elif node.free >> position & 1:
                row["free"] += 1
            elif device.id in state.reserved:
                row["kept"] += 1
            elif whole or device.id in state.cordons:
                row["cordoned"] += 1
            else:
                row["tied" if node.fit >> position & 1 else "unfit"] += 1
    return Status(
        revision=state.revision,
        fence=state.fence,
        boot_id=state.boot_id,
        leases=len(state.leases),
        devices=counts,
        fenced=tuple(state.fenced.values()),
        waiting=len(state.waiting),
        cordons=len(state.cordons),
        now=now,
    )


def queue_of(state: State, tenant: str | None) -> tuple[Waiting, ...]:
    """Return who waits, who is next first."""
    order = (*state.kept, *state.fair.order())
    found: list[Waiting] = []
    for position, claim_id in enumerate(order, 1):
        entry = state.waiting[claim_id]
        if not is_below(entry.claim.tenant, tenant):
            continue
        found.append(
            Waiting(
                claim=entry.claim,
                since=entry.since,
                position=position,
                starts_at=entry.starts_at,
                devices=tuple(device.id for device in entry.kept),
                why=entry.why,
            )
        )
    return tuple(found)


def tenants_of(state: State, tenant: str | None) -> tuple[TenantReport, ...]:
    """Return every tenant at or below one with what it uses, in whole devices; those that only have limits, too."""
    state.settle()
    rows = {
        share.tenant.path: TenantReport(
            tenant=state.tenants.get(share.tenant.path, Tenant(path=share.tenant.path)),
            uses={name: amount / 1000 for name, amount in share.uses.items() if amount},
            dominant_share=float(share.dominant_share),
            fair_share=float(share.fair_share),
            leases=share.leases,
            waiting=share.waiting,
        )
        for share in state.fair.report(tenant or ROOT)
    }
    for path, said in state.tenants.items():
        if path not in rows and is_below(path, tenant):
            rows[path] = TenantReport(tenant=said)
    return tuple(rows[path] for path in sorted(rows))
