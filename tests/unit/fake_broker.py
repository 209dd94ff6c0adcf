"""A broker in memory that keeps no promises but those of its surface."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec

from hal.agent.repair import Repair
from hal.api.ask import make_claim
from hal.api.held import HeldLease
from hal.api.local import Status
from hal.api.surface import TenantReport, Waiting
from hal.broker.allocation.explain import Conflicting, DeviceReason, Explanation, Nearby
from hal.broker.command import Granted, Queued, Refused
from hal.broker.journal.compacted import Compacted
from hal.broker.snapshot import Cordon, Fenced
from hal.errors import ClaimError, ClaimRefused, DeviceNotFound, LeaseEnded, LeaseNotFound
from hal.model.device import Device, Location
from hal.model.event import Event, EventType
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice, Lease, LeaseState
from hal.model.tenant import Tenant


def below(tenant, scope):
    return scope is None or tenant == scope or tenant.startswith(scope + "/")


class FakeBroker:
    """``gpus`` devices, given in order; a claim that waits is granted first come, first served."""

    def __init__(self, folder: Path, gpus=8):
        self.guards = folder / "guards"
        self.all = [
            Device(id=f"gpu-{i}", kind=Kind.GPU, name=f"gpu{i}", driver="fake", location=Location(node="n0"))
            for i in range(gpus)
        ]
        self.lock = threading.Condition(threading.RLock())
        self.leases, self.claims, self.ended, self.waiting, self.said = {}, {}, {}, [], {}
        self.history: list[tuple[str, Event]] = []
        self.cordoned: dict[str, Cordon] = {}
        self.oldest = 0
        self.fence = 0
        self.submits: list[int] = []
        self.actors: list[str] = []
        self.fail: Exception | None = None
        self.slow = 0.0
        self.ahead = 0.0

    def _happened(self, kind, subject, tenant, detail=""):
        event = Event(type=kind, subject=subject, at=time.time(), revision=len(self.history) + 1, detail=detail)
        self.history.append((tenant, event))
        self.lock.notify_all()

    def _free(self):
        held = {d.id for lease in self.leases.values() for d in lease.devices}
        return [d for d in self.all if d.id not in held and d.id not in self.cordoned]

    def _grant(self, claim, want):
        free = self._free()
        if len(free) < want:
            return None
        self.fence += 1
        devices = tuple(
            AllocatedDevice(id=d.id, kind=d.kind, name=d.name, node="n0", driver="fake") for d in free[:want]
        )
        now = time.time()
        lease = Lease(
            id=claim.id,
            tenant=claim.tenant,
            devices=devices,
            fence=self.fence,
            granted_at=now,
            expires_at=now + claim.ttl_seconds,
            ttl_seconds=claim.ttl_seconds,
            state=LeaseState.BOUND,
        )
        self.leases[claim.id] = lease
        self.claims[claim.id] = claim
        self._happened(EventType.GRANTED, claim.id, claim.tenant)
        return lease

    def submit(self, claims, *, dry_run=False, actors=None):
        with self.lock:
            if self.fail is not None:
                raise self.fail
            time.sleep(self.slow)
            if not dry_run:
                self.submits.append(len(claims))
                self.actors += actors or []
            return [self._decide(claim, dry_run) for claim in claims]

    def _decide(self, claim, dry_run):
        want = sum(request.count for request in claim.requests)
        if want < 1:
            raise ClaimError("it asks for nothing", device=claim.id, during="claim")
        known = self.claims.get(claim.id)
        if known is not None:
            if known != claim:
                raise ClaimError("this id was used for a different claim", device=claim.id, during="claim")
            if claim.id in self.leases:
                return Granted(self.leases[claim.id])
        if dry_run:
            return (
                Refused("too few")
                if len(self._free()) < want
                else Granted(
                    Lease(
                        id=claim.id, tenant=claim.tenant, devices=(), fence=0, granted_at=0, expires_at=0, ttl_seconds=1
                    )
                )
            )
        lease = self._grant(claim, want)
        if lease is not None:
            return Granted(lease)
        if not claim.wait:
            holders = ", ".join(f"lease {one.id} of {one.tenant}" for one in self.leases.values())
            return Refused(f"{want} asked, {len(self._free())} free: held by {holders}")
        if all(one.id != claim.id for one in self.waiting):
            self.waiting.append(claim)
            self._happened(EventType.QUEUED, claim.id, claim.tenant)
        return Queued([one.id for one in self.waiting].index(claim.id) + 1, None, f"behind {', '.join(self.leases)}")

    def maintain(self):
        with self.lock:
            for lease in list(self.leases.values()):
                if lease.state is LeaseState.BOUND:
                    self.leases[lease.id] = msgspec.structs.replace(lease, state=LeaseState.PREPARED)
                    self._happened(EventType.PREPARED, lease.id, lease.tenant)
                elif lease.expires_at < time.time():
                    self._end(lease, "expired")
            for claim in list(self.waiting):
                if self._grant(claim, sum(request.count for request in claim.requests)) is None:
                    break
                self.waiting.remove(claim)
            return 0.0 if any(lease.state is LeaseState.BOUND for lease in self.leases.values()) else None

    def wait_for(self, claim_id, deadline, tenant=None):
        with self.lock:
            while True:
                lease = self.leases.get(claim_id)
                if lease is not None and below(lease.tenant, tenant):
                    found = Granted(lease)
                    if lease.state is not LeaseState.BOUND:
                        return found
                else:
                    names = [one.id for one in self.waiting if below(one.tenant, tenant)]
                    if claim_id not in names:
                        raise LeaseNotFound("no such lease", device=claim_id, during="wait")
                    found = Queued([one.id for one in self.waiting].index(claim_id) + 1)
                if deadline.expired:
                    return found
                self.lock.wait(deadline.timeout)

    def claim(self, asked, **words):
        raise AssertionError("a server submits claims, and waits for them; it never holds a lease itself")

    def explain(self, asked, **words):
        claim = make_claim(asked, **words)
        with self.lock:
            want = sum(request.count for request in claim.requests)
            rows = tuple(
                DeviceReason(
                    device=d.id, name=d.name, node="n0", request="gpu", reason=f"held by lease {one.id} of {one.tenant}"
                )
                for one in self.leases.values()
                for d in one.devices
            )
            others = " and ".join(f"{one.id} of {one.tenant}" for one in self.leases.values())
            near = tuple(Nearby(text=text) for text in ("gpu:1", f"gpu:2 beside {others}" if others else "gpu:2"))
            return Explanation(
                feasible=len(self._free()) >= want,
                reason="",
                devices=rows,
                conflict=Conflicting(text=f"gpu and what {others or 'nobody'} hold", requests=("gpu",)),
                nearby=near,
                nearest=tuple(one.text for one in near),
            )

    def _find(self, lease_id, tenant):
        lease = self.leases.get(lease_id)
        if lease is None or not below(lease.tenant, tenant):
            over = self.ended.get(lease_id)
            if over is not None and below(over.tenant, tenant):
                raise LeaseEnded(f"the lease is over: {over.why_ended}", device=lease_id)
            raise LeaseNotFound("no such lease", device=lease_id, during="ask", hint="hal list")
        return lease

    def renew(self, lease_id, ttl_seconds=None, tenant=None):
        with self.lock:
            lease = self._find(lease_id, tenant)
            ttl = ttl_seconds or lease.ttl_seconds
            lease = msgspec.structs.replace(lease, expires_at=time.time() + ttl, ttl_seconds=ttl)
            self.leases[lease_id] = lease
            self._happened(EventType.RENEWED, lease_id, lease.tenant)
            return lease

    def resize(self, lease_id, replicas, tenant=None, actor=None):
        with self.lock:
            lease = self._find(lease_id, tenant)
            if replicas > 1:
                raise ClaimRefused("no room", device=lease_id, during="resize")
            return lease

    def release(self, lease_id, tenant=None, actor=None):
        with self.lock:
            over = self.ended.get(lease_id)
            if over is not None and below(over.tenant, tenant):
                return over
            return self._end(self._find(lease_id, tenant), "released by its holder")

    def _end(self, lease, why):
        del self.leases[lease.id]
        self.ended[lease.id] = lease = msgspec.structs.replace(lease, state=LeaseState.ENDED, why_ended=why)
        self._happened(EventType.RELEASED, lease.id, lease.tenant, why)
        return lease

    def get(self, lease_id, tenant=None):
        with self.lock:
            return HeldLease(self._find(lease_id, tenant), {}, self.guards, self)

    def list(self, tenant=None):
        with self.lock:
            return tuple(lease for lease in self.leases.values() if below(lease.tenant, tenant))

    def queue(self, tenant=None):
        with self.lock:
            return tuple(
                Waiting(claim=claim, since=0.0, position=i, why=f"behind {', '.join(self.leases)}")
                for i, claim in enumerate(self.waiting, 1)
                if below(claim.tenant, tenant)
            )

    def status(self):
        with self.lock:
            held = AllocatedDevice(id="gpu-x", kind=Kind.GPU, name="gpux", node="n0", driver="fake")
            fenced = Fenced(lease="old-secret", fence=1, tenant="secret", device=held, why="it clings")
            return Status(
                revision=len(self.history),
                fence=self.fence,
                boot_id="b",
                leases=len(self.leases),
                devices={"gpu": {"all": len(self.all), "free": len(self._free())}},
                fenced=(fenced,),
            )

    def events(self, since=0, tenant=None):
        if since < self.oldest:
            raise Compacted(since, self.oldest)
        at = since
        while at < len(self.history):
            owner, event = self.history[at]
            at += 1
            if below(owner, tenant):
                yield event

    def watch(self, since, deadline, tenant=None):
        while not deadline.expired:
            for event in self.events(since, tenant):
                since = event.revision
                yield event
            with self.lock:
                if len(self.history) <= since:
                    self.lock.wait(min(0.5, deadline.remaining_seconds))

    def cordon(self, target, why="", by="operator"):
        with self.lock:
            if target not in {d.id for d in self.all}:
                raise DeviceNotFound("no such device", device=target, during="cordon")
            self.cordoned[target] = Cordon(target=target, why=why, by=by, at=time.time())
            return tuple(self.cordoned.values())

    def uncordon(self, target, by="operator"):
        with self.lock:
            self.cordoned.pop(target, None)
            return tuple(self.cordoned.values())

    def cordons(self):
        with self.lock:
            return tuple(self.cordoned.values())

    def now(self):
        return time.time() + self.ahead

    def devices(self):
        return tuple(self.all)

    def drain(self, target, why="", by="operator", grace_seconds=None):
        with self.lock:
            self.cordon(target, why, by)
            told = []
            for lease in self.leases.values():
                if any(d.id == target for d in lease.devices):
                    lease = msgspec.structs.replace(
                        lease, state=LeaseState.DRAINING, notice=why, leave_by=time.time() + (grace_seconds or 30)
                    )
                    told.append(lease)
            for lease in told:
                self.leases[lease.id] = lease
                self._happened(EventType.NOTICED, lease.id, lease.tenant, why)
            return tuple(told)

    def tenants(self, tenant=None):
        return tuple(TenantReport(tenant=one) for one in self.said.values() if below(one.path, tenant))

    def set_tenant(self, tenant: Tenant, by="operator"):
        self.said[tenant.path] = tenant
        return TenantReport(tenant=tenant)

    def remove_tenant(self, path, by="operator"):
        self.said.pop(path, None)

    def repair(self, device, *, scrub=False, by_operator=None, deadline_seconds=120.0):
        if device not in {d.id for d in self.all}:
            raise DeviceNotFound("no such device", device=device, during="repair")
        return Repair(device=device, name=device, steps=("looked at it",))
