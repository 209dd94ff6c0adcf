"""The broker's state: what the records add up to, and the indexes that make deciding quick. No I/O and no clock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from hal.broker import record as r
from hal.broker.allocation.places import Node
from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.health import Condition
from hal.model.lease import AllocatedDevice, Lease, LeaseState

REMEMBERED = 10_000
"""How many ended leases stay known by their id, so that a claim repeated late is not granted twice; the oldest go."""


class Fenced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device whose last lease is over without proof that its holder let go."""

    lease: str
    fence: int
    tenant: str
    device: AllocatedDevice
    why: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state at one revision, as it is stored and compared."""

    revision: int
    fence: int
    boot_id: str
    clock_offset_seconds: float
    latest_at: float
    devices: list[Device]
    leases: list[Lease]
    claims: list[Claim]
    ended: list[Lease]
    fenced: dict[str, Fenced]


class State:
    """Mutable, changed by :meth:`apply` alone. Everything besides the fields of :class:`Snapshot` is derived."""

    def __init__(self) -> None:
        self.revision = 0
        self.fence = 0
        self.boot_id = ""
        self.clock_offset_seconds = 0.0
        self.latest_at = 0.0
        self.restored_from = 0
        self.devices: dict[str, Device] = {}
        self.leases: dict[str, Lease] = {}
        self.claims: dict[str, Claim] = {}
        self.ended: dict[str, Lease] = {}
        self.fenced: dict[str, Fenced] = {}
        self.holders: dict[str, str] = {}
        self.ending: dict[str, None] = {}
        self.nodes: list[Node] = []
        self.sights = 0
        self.touched: list[int] = []
        self.forgotten_touches = 0
        self.views: dict[Any, Any] = {}
        self._over: deque[str] = deque()
        self._by_name: dict[str, Node] = {}
        self._here: dict[str, dict[str, None]] = {}
        self._dirty: set[str] = set()
        self._expiries: list[tuple[float, str]] = []
        self._spoiling: list[tuple[float, str]] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            r.JournalBegun: self._journal_begun,
            r.BootSeen: self._boot_seen,
            r.DeviceSeen: self._device_seen,
            r.DeviceForgotten: self._device_forgotten,
            r.LeaseGranted: self._lease_granted,
            r.LeasePrepared: self._lease_prepared,
            r.LeaseRenewed: self._lease_renewed,
            r.LeaseSuspected: self._lease_suspected,
            r.LeaseReleasing: self._lease_releasing,
            r.LeaseEnded: self._lease_ended,
            r.DeviceFreed: self._device_freed,
            r.DeviceRepaired: self._device_repaired,
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
        self.sights += 1
        device = record.device
        before = self.devices.get(device.id)
        if before is not None and before.location.node != device.location.node:
            self._leave(before)
        self.devices[device.id] = device
        self._here.setdefault(device.location.node, {})[device.id] = None
        self._dirty.add(device.location.node)
        for condition in device.conditions:
            if condition.expires_at is not None:
                heapq.heappush(self._spoiling, (condition.expires_at, device.id))

    def _device_forgotten(self, record: r.DeviceForgotten) -> None:
        self.sights += 1
        device = self.devices.pop(record.device, None)
        if device is not None:
            self._leave(device)

    def _leave(self, device: Device) -> None:
        self._here[device.location.node].pop(device.id, None)
        self._dirty.add(device.location.node)

    def _lease_granted(self, record: r.LeaseGranted) -> None:
        lease = record.lease
        self.fence = max(self.fence, lease.fence)
        self.leases[lease.id] = lease
        self.claims[lease.id] = record.claim
        self.holders.update(dict.fromkeys([device.id for device in lease.devices], lease.id))
        self._hold(lease.devices, True)
        self._expect(lease)

    def _lease_prepared(self, record: r.LeasePrepared) -> None:
        self._change(record.lease, LeaseState.PREPARED)

    def _lease_renewed(self, record: r.LeaseRenewed) -> None:
        lease = self.leases[record.lease]
        ttl = lease.ttl_seconds if record.ttl_seconds is None else record.ttl_seconds
        fresh = msgspec.structs.replace(lease, expires_at=record.expires_at, ttl_seconds=ttl)
        self.leases[lease.id] = fresh
        self._expect(fresh)

    def _lease_suspected(self, record: r.LeaseSuspected) -> None:
        self._change(record.lease, LeaseState.SUSPECT, "expired without being renewed")
        self.ending[record.lease] = None

    def _lease_releasing(self, record: r.LeaseReleasing) -> None:
        self._change(record.lease, LeaseState.RELEASING, record.why)
        self.ending[record.lease] = None

    def _lease_ended(self, record: r.LeaseEnded) -> None:
        lease = self.leases.pop(record.lease)
        self.ending.pop(record.lease, None)
        free: Sequence[AllocatedDevice] = lease.devices
        if record.fenced:
            free = [device for device in lease.devices if device.id not in record.fenced]
            for device in lease.devices:
                if device.id in record.fenced:
                    self.fenced[device.id] = Fenced(
                        lease=lease.id,
                        fence=lease.fence,
                        tenant=lease.tenant,
                        device=device,
                        why=record.fenced[device.id],
                    )
        for device in free:
            del self.holders[device.id]
        self._hold(free, False)
        if record.returned:
            del self.claims[lease.id]
            return
        why_ended = f"{lease.why_ended}; {record.proof}" if lease.why_ended else record.proof
        self.ended[lease.id] = msgspec.structs.replace(
            lease, state=LeaseState.ENDED, why_ended=why_ended, ended_at=record.at
        )
        self._over.append(lease.id)
        while len(self._over) > REMEMBERED:
            oldest = self._over.popleft()
            del self.ended[oldest]
            del self.claims[oldest]

    def _device_freed(self, record: r.DeviceFreed) -> None:
        fenced = self.fenced.pop(record.device)
        del self.holders[record.device]
        self._hold((fenced.device,), False)

    def _device_repaired(self, record: r.DeviceRepaired) -> None:
        device = self.devices[record.device]
        self._device_seen(r.DeviceSeen(at=record.at, device=_with(device, record.conditions)))

    def _change(self, lease_id: str, state: LeaseState, why: str = "") -> None:
        lease = self.leases[lease_id]
        if why:
            self.leases[lease_id] = msgspec.structs.replace(lease, state=state, why_ended=lease.why_ended or why)
        else:
            self.leases[lease_id] = msgspec.structs.replace(lease, state=state)

    # --- the indexes

    def _hold(self, devices: Iterable[AllocatedDevice], yes: bool) -> None:
        if self._dirty:
            self.settle()
        by_name, known = self._by_name, self.devices
        last: Node | None = None
        mask = 0
        for device in devices:  # of one node after the other, as they were chosen
            found = known.get(device.id)  # a machine may have got another name since
            node = by_name.get(found.location.node if found is not None else device.node)
            position = node.place.get(device.id) if node is not None else None
            if position is None:
                continue
            if node is not last:
                if last is not None:
                    last.hold(mask, yes)
                    self.touched.append(last.index)
                last, mask = node, 0
            mask |= 1 << position
        if last is not None:
            last.hold(mask, yes)
            self.touched.append(last.index)
        if len(self.touched) > 4096 + 4 * len(self.nodes):
            self.forgotten_touches += len(self.touched)
            self.touched.clear()

    def _expect(self, lease: Lease) -> None:
        heapq.heappush(self._expiries, (lease.expires_at, lease.id))
        if len(self._expiries) > 1024 + 4 * len(self.leases):
            self._expiries = [(live.expires_at, live.id) for live in self.leases.values()]
            heapq.heapify(self._expiries)

    def settle(self) -> None:
        """Bring the nodes whose devices changed up to date."""
        if not self._dirty:
            return
        for name in sorted(self._dirty):
            node = self._by_name.get(name)
            if node is None:
                node = self._by_name[name] = Node(name, len(self.nodes))
                self.nodes.append(node)
            here = self._here[name]
            node.rebuild(self.devices, here, [device_id for device_id in here if device_id in self.holders])
            self.touched.append(node.index)
        self._dirty.clear()

    def node(self, name: str) -> Node | None:
        """Return the index of one machine's devices."""
        self.settle()
        return self._by_name.get(name)

    def expired(self, now: float) -> list[Lease]:
        """Return the leases that should have been renewed by now."""
        found: dict[str, Lease] = {}
        for expires_at, lease_id in _due(self._expiries, now):
            lease = self.leases.get(lease_id)
            live = lease is not None and lease.state in (LeaseState.BOUND, LeaseState.PREPARED)
            if lease is not None and live and lease.expires_at == expires_at:
                found[lease_id] = lease
        for lease in found.values():
            heapq.heappush(self._expiries, (lease.expires_at, lease.id))
        return list(found.values())

    def spoiled(self, now: float) -> list[Device]:
        """Return the devices with a condition that has expired."""
        found: dict[str, Device] = {}
        for _, device_id in _due(self._spoiling, now):
            device = self.devices.get(device_id)
            if device and any(has_expired(condition, now) for condition in device.conditions):
                found[device_id] = device
        for device in found.values():
            heapq.heappush(self._spoiling, (now, device.id))
        return list(found.values())

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
        )

    @classmethod
    def restore(cls, snapshot: Snapshot) -> State:
        """Return a state that continues from a snapshot."""
        state = cls()
        for device in snapshot.devices:
            state._device_seen(r.DeviceSeen(at=0.0, device=device))
        state.revision, state.fence = snapshot.revision, snapshot.fence
        state.restored_from = snapshot.revision
        state.boot_id, state.clock_offset_seconds = snapshot.boot_id, snapshot.clock_offset_seconds
        state.latest_at = snapshot.latest_at
        state.leases = {lease.id: lease for lease in snapshot.leases}
        state.claims = {claim.id: claim for claim in snapshot.claims}
        state.ended = {lease.id: lease for lease in snapshot.ended}
        state._over.extend(state.ended)
        state.fenced = dict(snapshot.fenced)
        for lease in snapshot.leases:
            state.holders.update(dict.fromkeys((device.id for device in lease.devices), lease.id))
            state._expect(lease)
            if lease.state in (LeaseState.SUSPECT, LeaseState.RELEASING):
                state.ending[lease.id] = None
        state.holders.update({device_id: fenced.lease for device_id, fenced in state.fenced.items()})
        return state


def has_expired(condition: Condition, now: float) -> bool:
    """Return whether time alone has cleared a condition; it never does with a latched one."""
    return condition.expires_at is not None and condition.expires_at <= now and not condition.latched


def _with(device: Device, conditions: tuple[Condition, ...]) -> Device:
    return msgspec.structs.replace(device, conditions=conditions)


def _due(heap: list[tuple[float, str]], now: float) -> list[tuple[float, str]]:
    found = []
    while heap and heap[0][0] <= now:
        found.append(heapq.heappop(heap))
    return found
