"""The broker's state: what the records add up to, and the indexes that make deciding quick. No I/O and no clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from hal.broker import record as r
from hal.broker.accounts import Amounts, amounts_of, in_thousandths
from hal.broker.lifecycle import ENDING
from hal.broker.queue_index import QueueIndex
from hal.broker.snapshot import Cordon, Entry, Fenced, Snapshot
from hal.model.device import Device
from hal.model.health import Condition
from hal.model.lease import AllocatedDevice, Lease, LeaseState
from hal.model.tenant import Tenant

__all__ = ["Cordon", "Entry", "Fenced", "Snapshot", "State", "has_expired"]

REMEMBERED = 10_000
"""How many ended leases stay known by their id, so that a claim repeated late is not granted twice; the oldest go."""


class State(QueueIndex):
    """Mutable, changed by :meth:`apply` alone. Everything besides the fields of :class:`Snapshot` is derived."""

    def __init__(self) -> None:
        super().__init__()
        self.revision = 0
        self.fence = 0
        self.boot_id = ""
        self.clock_offset_seconds = 0.0
        self.latest_at = 0.0
        self.restored_from = 0
        self.ended: dict[str, Lease] = {}
        self.left: dict[str, str] = {}
        self.fenced: dict[str, Fenced] = {}
        self.tenants: dict[str, Tenant] = {}
        self.ending: dict[str, None] = {}
        self.unprepared: dict[str, None] = {}
        self.shrinking: dict[str, None] = {}
        self.elastic: dict[str, None] = {}
        self._over: deque[str] = deque()
        self._spoiling: list[tuple[float, str]] = []
        self._counted: tuple[tuple[AllocatedDevice, ...], Amounts] = ((), {})
        self._handlers: dict[type, Callable[[Any], None]] = {
            r.JournalBegun: self._journal_begun,
            r.BootSeen: self._boot_seen,
            r.DeviceSeen: self._device_seen,
            r.DeviceForgotten: self._device_forgotten,
            r.DeviceFreed: self._device_freed,
            r.DeviceRepaired: self._device_repaired,
            r.Cordoned: self._cordoned,
            r.Uncordoned: self._uncordoned,
            r.ClaimQueued: self._claim_queued,
            r.ClaimKept: self._claim_kept,
            r.ClaimLeft: self._claim_left,
            r.LeaseGranted: self._lease_granted,
            r.LeasePrepared: self._lease_prepared,
            r.LeaseRenewed: self._lease_renewed,
            r.LeaseNoticed: self._lease_noticed,
            r.LeaseGrown: self._lease_grown,
            r.LeaseResized: self._lease_resized,
            r.LeaseShrunk: self._lease_shrunk,
            r.LeaseSuspected: self._lease_suspected,
            r.LeaseReleasing: self._lease_releasing,
            r.LeaseEnded: self._lease_ended,
            r.TenantSet: self._tenant_set,
            r.TenantRemoved: self._tenant_removed,
        }

    # --- the records

    def apply(self, record: r.AnyRecord) -> None:
        """Take one record in; what was decided is never questioned here."""
        self._handlers[type(record)](record)
        self.revision += 1
        if record.at > self.latest_at:
            self.latest_at = record.at

    def _journal_begun(self, record: r.JournalBegun) -> None:
        self.fence = max(self.fence, record.fence)

    def _boot_seen(self, record: r.BootSeen) -> None:
        self.boot_id = record.boot_id
        self.clock_offset_seconds = record.clock_offset_seconds

    def _device_seen(self, record: r.DeviceSeen) -> None:
        device = record.device
        self.place(device)
        for condition in device.conditions:
            if condition.expires_at is not None:
                heapq.heappush(self._spoiling, (condition.expires_at, device.id))

    def _device_forgotten(self, record: r.DeviceForgotten) -> None:
        self.forget(record.device)

    def _device_freed(self, record: r.DeviceFreed) -> None:
        fenced = self.fenced.pop(record.device)
        self._give(fenced.lease, (fenced.device,))

    def _device_repaired(self, record: r.DeviceRepaired) -> None:
        device = self.devices[record.device]
        fresh = msgspec.structs.replace(device, conditions=record.conditions)
        self._device_seen(r.DeviceSeen(at=record.at, device=fresh))

    def _cordoned(self, record: r.Cordoned) -> None:
        self._cordon(Cordon(target=record.target, why=record.why, by=record.by, at=record.at, draining=record.draining))

    def _uncordoned(self, record: r.Uncordoned) -> None:
        self._uncordon(record.target)

    # --- claims in the queue

    def _claim_queued(self, record: r.ClaimQueued) -> None:
        self._wait(Entry(claim=record.claim, since=record.at))

    def _claim_kept(self, record: r.ClaimKept) -> None:
        before = self.waiting[record.claim]
        entry = msgspec.structs.replace(before, kept=record.devices, starts_at=record.starts_at, why=record.why)
        self._leave_queue(record.claim)
        self.claims[record.claim] = entry.claim
        self.waiting[record.claim] = entry
        if entry.kept or entry.starts_at is not None:
            self._reserve(entry)
        else:
            self._push(entry)
        self.openings += 1

    def _claim_left(self, record: r.ClaimLeft) -> None:
        self._leave_queue(record.claim)
        self.left[record.claim] = record.why
        self._remember(record.claim)

    # --- leases

    def _lease_granted(self, record: r.LeaseGranted) -> None:
        lease = record.lease
        if lease.id in self.waiting:
            self._leave_queue(lease.id)
        if lease.fence > self.fence:
            self.fence = lease.fence
        self.claims[lease.id] = record.claim
        self._hold(lease)

    def _hold(self, lease: Lease) -> None:
        self.leases[lease.id] = lease
        self._take(lease.id, lease.devices)
        self.fair.use(lease.tenant, self.amounts(lease.devices))
        if lease.state is LeaseState.BOUND:
            self.unprepared[lease.id] = None
        if lease.elastic is not None:
            self.elastic[lease.id] = None
        self._expect(lease)

    def _lease_prepared(self, record: r.LeasePrepared) -> None:
        lease = self.leases[record.lease]
        devices = lease.devices
        if record.opened_as:
            devices = tuple(
                msgspec.structs.replace(device, opened_as=record.opened_as[device.slot])
                if device.slot in record.opened_as
                else device
                for device in devices
            )
        self._change(lease, LeaseState.PREPARED, devices=devices)
        if lease.elastic is not None:
            self.openings += 1  # it may grow now

    def _lease_renewed(self, record: r.LeaseRenewed) -> None:
        lease = self.leases[record.lease]
        ttl = lease.ttl_seconds if record.ttl_seconds is None else record.ttl_seconds
        fresh = msgspec.structs.replace(lease, expires_at=record.expires_at, ttl_seconds=ttl)
        self.leases[lease.id] = fresh
        self._expect(fresh)

    def _lease_noticed(self, record: r.LeaseNoticed) -> None:
        lease = self.leases[record.lease]
        if record.leaving:
            leaving = tuple(sorted({*lease.leaving, *record.leaving}))
            self._change(lease, lease.state, leave_by=record.leave_by, notice=record.why, leaving=leaving)
            self.shrinking[lease.id] = None
        else:
            self._change(lease, LeaseState.DRAINING, leave_by=record.leave_by, notice=record.why, leaving=())
        self._expect(self.leases[lease.id])

    def _lease_grown(self, record: r.LeaseGrown) -> None:
        lease = self.leases[record.lease]
        self.fence = max(self.fence, record.fence)
        self._take(lease.id, record.devices)
        self.fair.use(lease.tenant, amounts_of(record.devices), leases=0)
        self._change(lease, LeaseState.BOUND, devices=(*lease.devices, *record.devices))

    def _lease_resized(self, record: r.LeaseResized) -> None:
        lease = self.leases[record.lease]
        self.leases[lease.id] = msgspec.structs.replace(lease, wanted=record.wanted)

    def _lease_shrunk(self, record: r.LeaseShrunk) -> None:
        lease = self.leases[record.lease]
        gone = [device for device in lease.devices if device.replica in record.replicas]
        staying = tuple(device for device in lease.devices if device.replica not in record.replicas)
        leaving = tuple(replica for replica in lease.leaving if replica not in record.replicas)
        self._let_go(lease, gone, record.fenced, leases=0)
        if not leaving:
            self.shrinking.pop(lease.id, None)
        by, notice = (lease.leave_by, lease.notice) if leaving or lease.state is LeaseState.DRAINING else (0.0, "")
        self._change(lease, lease.state, devices=staying, leaving=leaving, leave_by=by, notice=notice)

    def _lease_suspected(self, record: r.LeaseSuspected) -> None:
        self._change(self.leases[record.lease], LeaseState.SUSPECT, why="expired without being renewed")

    def _lease_releasing(self, record: r.LeaseReleasing) -> None:
        self._change(self.leases[record.lease], LeaseState.RELEASING, why=record.why)

    def _lease_ended(self, record: r.LeaseEnded) -> None:
        lease = self.leases.pop(record.lease)
        for index in (self.ending, self.unprepared, self.shrinking, self.elastic):
            index.pop(lease.id, None)
        self._let_go(lease, lease.devices, record.fenced, leases=1)
        if record.returned:
            del self.claims[lease.id]
            return
        why_ended = f"{lease.why_ended}; {record.proof}" if lease.why_ended else record.proof
        self.ended[lease.id] = msgspec.structs.replace(
            lease, state=LeaseState.ENDED, why_ended=why_ended, ended_at=record.at
        )
        self._remember(lease.id)

    def _let_go(self, lease: Lease, devices: Sequence[AllocatedDevice], fenced: dict[str, str], *, leases: int) -> None:
        free = devices
        if fenced:
            free = [device for device in devices if lease.slot_of(device) not in fenced]
            for device in devices:
                slot = lease.slot_of(device)
                if slot in fenced:
                    self.fenced[slot] = Fenced(
                        lease=lease.id,
                        fence=lease.fence_of(device),
                        tenant=lease.tenant,
                        device=device,
                        why=fenced[slot],
                    )
        self.fair.give_back(lease.tenant, amounts_of(devices), leases=leases)
        self._give(lease.id, free)

    def _remember(self, claim_id: str) -> None:
        self._over.append(claim_id)
        while len(self._over) > REMEMBERED:
            oldest = self._over.popleft()
            self.ended.pop(oldest, None)
            self.left.pop(oldest, None)
            del self.claims[oldest]

    def _change(self, lease: Lease, state: LeaseState, *, why: str = "", **fields: Any) -> None:
        if why:
            fields["why_ended"] = lease.why_ended or why
        self.leases[lease.id] = msgspec.structs.replace(lease, state=state, **fields)
        if state in ENDING:
            self.ending[lease.id] = None
        if state is LeaseState.BOUND:
            self.unprepared[lease.id] = None
        else:
            self.unprepared.pop(lease.id, None)

    # --- tenants

    def _tenant_set(self, record: r.TenantSet) -> None:
        self.tenants[record.tenant.path] = record.tenant
        self.fair.set_tenant(in_thousandths(record.tenant))
        self.openings += 1

    def _tenant_removed(self, record: r.TenantRemoved) -> None:
        del self.tenants[record.path]
        self.fair.remove_tenant(record.path)
        self.openings += 1

    # --- times

    def next_due(self) -> float | None:
        """Return when something is due next, at the earliest."""
        times = [heap[0][0] for heap in (self._due, self._spoiling) if heap]
        return min(times) if times else None

    def spoiled(self, now: float) -> list[Device]:
        """Return the devices with a condition that has expired."""
        found: dict[str, Device] = {}
        heap = self._spoiling
        while heap and heap[0][0] <= now:
            _, device_id = heapq.heappop(heap)
            device = self.devices.get(device_id)
            if device and any(has_expired(condition, now) for condition in device.conditions):
                found[device_id] = device
        for device in found.values():
            heapq.heappush(heap, (now, device.id))
        return list(found.values())

    # --- who has what

    def amounts(self, devices: tuple[AllocatedDevice, ...]) -> Amounts:
        """Return what devices count on an account (do not change it); what was asked last is known still.

        A claim that is decided is granted next, with the same devices.
        """
        if self._counted[0] is not devices:
            self._counted = devices, amounts_of(devices)
        return self._counted[1]

    def held(self, device_id: str) -> Iterable[AllocatedDevice]:
        """See :class:`~hal.broker.index.DeviceIndex`."""
        lease_id = self.holders.get(device_id)
        if lease_id is not None:
            fenced = self.fenced.get(device_id)  # its lease may go on without it
            if fenced is not None:
                yield fenced.device
            elif lease_id in self.leases:
                yield from (device for device in self.leases[lease_id].devices if device.id == device_id)
        yield from self.sharers.get(device_id, {}).values()

    # --- the whole

    def snapshot(self) -> Snapshot:
        """Return the whole state as a value."""
        return Snapshot(
            revision=self.revision,
            fence=self.fence,
            boot_id=self.boot_id,
            clock_offset_seconds=self.clock_offset_seconds,
            latest_at=self.latest_at,
            devices=list(self.devices.values()),
            leases=list(self.leases.values()),
            claims=list(self.claims.values()),
            ended=list(self.ended.values()),
            fenced=dict(self.fenced),
            waiting=list(self.waiting.values()),
            left=dict(self.left),
            cordons=list(self.cordons.values()),
            tenants=list(self.tenants.values()),
            over=list(self._over),
        )

    @classmethod
    def restore(cls, snapshot: Snapshot) -> State:
        """Return a state that continues from a snapshot."""
        state = cls()
        for device in snapshot.devices:
            state._device_seen(r.DeviceSeen(at=0.0, device=device))
        for tenant in snapshot.tenants:
            state._tenant_set(r.TenantSet(at=0.0, tenant=tenant))
        for cordon in snapshot.cordons:
            state._cordon(cordon)
        state.revision, state.fence = snapshot.revision, snapshot.fence
        state.restored_from = snapshot.revision
        state.boot_id, state.clock_offset_seconds = snapshot.boot_id, snapshot.clock_offset_seconds
        state.latest_at = snapshot.latest_at
        for slot, fenced in snapshot.fenced.items():
            state.fenced[slot] = fenced
            state._take(fenced.lease, (fenced.device,))
        for lease in snapshot.leases:
            state._hold(lease)
            if lease.state in ENDING:
                state.ending[lease.id] = None
            if lease.leaving:
                state.shrinking[lease.id] = None
        for entry in snapshot.waiting:
            state._wait(entry)
        state.claims = {claim.id: claim for claim in snapshot.claims}
        state.ended = {lease.id: lease for lease in snapshot.ended}
        state.left = dict(snapshot.left)
        state._over.extend(snapshot.over or (*state.ended, *state.left))
        return state


def has_expired(condition: Condition, now: float) -> bool:
    """Return whether time alone has cleared a condition; it never does with a latched one."""
    return condition.expires_at is not None and condition.expires_at <= now and not condition.latched
