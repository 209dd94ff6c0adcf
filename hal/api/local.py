"""The broker in this process: an embedded journal, the drivers that are here, and nothing to talk to."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from hal.agent.clock import SteadyClock, read_boot_id
from hal.agent.prepare import Agent, Trouble
from hal.api.folders import folders
from hal.api.held import HeldLease
from hal.broker import command as c
from hal.broker.explain import Explanation, explain
from hal.broker.journal import Store
from hal.broker.ledger import Clock, Ledger
from hal.broker.places import ancestors
from hal.broker.record import event_of
from hal.broker.state import Fenced, State
from hal.drivers.contract import Driver
from hal.drivers.guard import GuardPages
from hal.errors import BrokerError, ClaimError, ClaimRefused, LeaseNotFound
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim, Constraint, Locality, Request
from hal.model.device import Device
from hal.model.event import Event
from hal.model.kind import Kind
from hal.model.lease import Lease
from hal.model.selector import compile_selector


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all devices; ``silent`` drivers did not answer, which says nothing about theirs."""

    devices: tuple[Device, ...]
    silent: frozenset[str] = frozenset()


Observe = Callable[[], Sight | Iterable[Device]]
Asked = Claim | Request | Kind | str | Sequence[Request]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The broker at a glance. ``devices`` counts the allocatable ones by kind: all, free, held, fenced."""

    revision: int
    fence: int
    boot_id: str
    leases: int
    devices: dict[str, dict[str, int]]
    fenced: tuple[Fenced, ...] = ()


class _AnyClock:
    """Stands in until the journal has said which clock this boot runs on."""

    def now(self) -> float:
        return SteadyClock.begin().now()


class LocalBroker:
    """Grants, prepares, renews and takes back leases of the devices that ``drivers`` drive.

    ``observe`` returns all devices as they are now; ``clock`` and ``boot_id`` are the machine's own unless given.
    Thread-safe. Opening one brings journal and devices into agreement; every verb first takes back what has expired.
    Closing leaves the leases as they are: they end when released or expired, under whichever broker comes next.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        store: Store,
        runtime: Path,
        *,
        observe: Observe | None = None,
        clock: Clock | None = None,
        boot_id: str | None = None,
        deadline_seconds: float = 10.0,
    ) -> None:
        self.drivers = drivers
        self.observe = observe
        self._lock = threading.RLock()
        self._store = store
        self._guards = runtime / "guards"
        self.ledger = Ledger(store, clock or _AnyClock())
        state = self.ledger.state
        boot_id = boot_id if boot_id is not None else read_boot_id()
        offset = state.clock_offset_seconds
        if clock is None:
            same_boot = state.boot_id == boot_id
            steady = SteadyClock(offset) if same_boot else SteadyClock.begin(not_before=state.latest_at)
            self.ledger.clock, offset = steady, steady.offset_seconds
        pages = GuardPages(self._guards)
        if state.boot_id not in ("", boot_id):
            for lease in state.leases.values():  # their pages tell the time of another boot
                for device in lease.devices:
                    pages.revoke(device.id, lease.fence)
        self.ledger.execute(c.Begin(boot_id=boot_id, clock_offset_seconds=offset))
        self.agent = Agent(self.ledger, drivers, pages, deadline_seconds)
        self.agent.expire()
        self.agent.reconcile()
        if observe is not None:
            self.refresh()

    @property
    def state(self) -> State:
        """The state as it is now; look, do not touch."""
        return self.ledger.state

    # --- the verbs

    def refresh(self) -> None:
        """Look at all devices again, and try to free those that did not let go."""
        if self.observe is None:
            return
        seen = self.observe()
        sight = seen if isinstance(seen, Sight) else Sight(devices=tuple(seen))
        with self._lock:
            self.ledger.execute(c.Observe(devices=sight.devices, complete=True, silent=sight.silent))
            self.agent.free_fenced()

    def claim(
        self,
        asked: Asked,
        *,
        count: int = 1,
        where: str = "",
        same: Locality | str | None = None,
        ttl_seconds: float = 60.0,
        tenant: str = "default",
        id: str | None = None,
    ) -> HeldLease:
        """Grant devices and prepare them, all or nothing: ``claim("gpu", count=2, same="numa")``.

        ``asked`` is a kind, a request, several requests, or a whole claim. The chosen devices are asked how they are
        before anything is promised. Raises :class:`~hal.errors.ClaimRefused` with the reason,
        :class:`~hal.errors.BrokerError` if the search could not decide, and errors of usage.
        """
        claim = make_claim(asked, count=count, where=where, same=same, ttl_seconds=ttl_seconds, tenant=tenant, id=id)
        with self._lock:
            self.agent.expire()
            self._check_names(claim)
            try:
                lease = self._grant(claim)
            except ClaimRefused:
                if self.observe is None:
                    raise
                self.refresh()  # what was sick a while ago may be well again
                lease = self._grant(claim)
            return self._held(lease)

    def _grant(self, claim: Claim) -> Lease:
        trouble: Trouble | None = None
        for _ in range(2):  # a second chance on other devices, should these not let themselves be prepared
            self._sample_candidates(claim)
            before = set(self.ledger.state.leases) & {claim.id}
            answer = self.ledger.execute(c.ClaimDevices(claim=claim))
            lease = self._granted(claim, answer, trouble)
            prepared = self.agent.prepare(lease, fresh=lease.id not in before)
            if isinstance(prepared, Lease):
                return prepared
            trouble = prepared
        assert trouble is not None
        raise ClaimRefused(
            f"the devices chosen could not be prepared: {trouble.error}",
            device=claim.id,
            during="claim",
            hint="hal-probe",
        )

    def _sample_candidates(self, claim: Claim) -> None:
        """Ask the devices that would be chosen how they are, until a choice stands the question."""
        state = self.ledger.state
        if claim.id in state.claims:
            return
        asked: set[str] = set()
        while True:
            answer = self.ledger.preview(c.ClaimDevices(claim=claim))
            if not isinstance(answer, c.Granted):
                return
            chosen = [state.devices[device.id] for device in answer.lease.devices]
            above = [found for device in chosen for found in ancestors(device, state.devices)]
            fresh = {d.id: d for d in (*chosen, *above) if isinstance(d, Device) and d.id not in asked}
            if not fresh:
                return
            asked.update(fresh)
            if not self.agent.sample(fresh.values()):
                return

    def _granted(self, claim: Claim, answer: c.Answer, trouble: Trouble | None) -> Lease:
        match answer:
            case c.Granted(lease=lease):
                return lease
            case c.Refused(reason=reason):
                if trouble is not None:
                    reason = f"{trouble.device.name} could not be prepared ({trouble.error}), and then {reason}"
                raise ClaimRefused(reason, device=claim.id, during="claim", hint="hal explain, with the same words")
            case c.Undecided(steps=steps):
                raise BrokerError(
                    f"undecided: the search was given up after {steps} steps",
                    device=claim.id,
                    during="claim",
                    hint="ask for fewer requests or constraints at once",
                )
        raise AssertionError(answer)

    def renew(self, lease_id: str, ttl_seconds: float | None = None, tenant: str | None = None) -> Lease:
        """Let a lease last for another time to live; raises ``LeaseEnded`` if it is too late."""
        with self._lock:
            self.agent.expire()
            answer = self.ledger.execute(c.Renew(lease=lease_id, ttl_seconds=ttl_seconds, tenant=tenant))
            lease = _lease_of(answer)
            self.agent.renew_pages(lease)
            return lease

    def release(self, lease_id: str, tenant: str | None = None) -> Lease:
        """End a lease and take its devices back; the same again is no error. Returns the lease as it is then."""
        with self._lock:
            self.agent.expire()
            lease = _lease_of(self.ledger.execute(c.Release(lease=lease_id, tenant=tenant)))
            if lease_id in self.state.leases:
                self.agent.take_back(lease)
            return self.state.ended.get(lease_id, lease)

    def list(self, tenant: str | None = None) -> tuple[Lease, ...]:
        """Return the leases that are not over."""
        with self._lock:
            self.agent.expire()
            return tuple(lease for lease in self.state.leases.values() if tenant in (None, lease.tenant))

    def get(self, lease_id: str) -> HeldLease:
        """Return a lease that is not over, to open its devices or give it back."""
        with self._lock:
            self.agent.expire()
            lease = self.state.leases.get(lease_id)
            if lease is None:
                over = self.state.ended.get(lease_id)
                why = f"the lease is over: {over.why_ended}" if over is not None else "no such lease"
                raise LeaseNotFound(why, device=lease_id, during="open", hint="hal list")
            return self._held(lease)

    def explain(self, asked: Asked, **words: Any) -> Explanation:
        """Say whether a claim would be granted now, and if not, what stands in the way; takes what ``claim`` takes."""
        claim = make_claim(asked, **words)
        with self._lock:
            self.agent.expire()
            self._check_names(claim)
            return explain(self.state, claim)

    def status(self) -> Status:
        """Return the broker at a glance."""
        with self._lock:
            self.agent.expire()
            state = self.state
            state.settle()
            counts: dict[str, dict[str, int]] = {}
            for node in state.nodes:
                for position, device in enumerate(node.devices):
                    row = counts.setdefault(device.kind.value, {"all": 0, "free": 0, "held": 0, "fenced": 0})
                    row["all"] += 1
                    row["free"] += node.free >> position & 1
                    row["fenced" if device.id in state.fenced else "held"] += node.held >> position & 1
            return Status(
                revision=state.revision,
                fence=state.fence,
                boot_id=state.boot_id,
                leases=len(state.leases),
                devices=counts,
                fenced=tuple(state.fenced.values()),
            )

    def events(self, since: int = 0) -> Iterator[Event]:
        """Yield what happened after a revision, in order; the last event's revision is where to go on."""
        for revision, record in self.ledger.events(since):
            yield event_of(record, revision)

    def _held(self, lease: Lease) -> HeldLease:
        return HeldLease(lease, self.drivers, self._guards, self)

    def _check_names(self, claim: Claim) -> None:
        """Refuse a selector that speaks of an attribute which no device here has."""
        texts = {request.where for request in claim.requests if request.where}
        if texts:
            known: set[str] = set()
            for device in self.state.devices.values():
                known.update(device.attributes, device.capacity)
            for text in texts:
                compile_selector(text, known)

    def close(self) -> None:
        """Let go of the journal; leases go on."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lease_of(answer: c.Answer) -> Lease:
    assert isinstance(answer, c.Done)
    assert answer.lease is not None
    return answer.lease


def make_claim(
    asked: Asked,
    *,
    count: int = 1,
    where: str = "",
    same: Locality | str | None = None,
    ttl_seconds: float = 60.0,
    tenant: str = "default",
    id: str | None = None,
) -> Claim:
    """Return a claim from its short form; a whole claim is returned as it is."""
    if isinstance(asked, Claim):
        return asked
    if isinstance(asked, str):
        requests: tuple[Request, ...] = (Request(kind=_one_of(Kind, asked, "kind"), count=count, where=where),)
    else:
        requests = (asked,) if isinstance(asked, Request) else tuple(asked)
        if count != 1 or where:
            raise ClaimError("count and where belong to the requests", hint="Request(kind=…, count=…, where=…)")
    constraints = () if same is None else (Constraint(same=_one_of(Locality, same, "same")),)
    return Claim(
        id=id if id is not None else f"lease-{secrets.token_hex(6)}",
        requests=requests,
        constraints=constraints,
        tenant=tenant,
        ttl_seconds=ttl_seconds,
    )


def _one_of(kind: Any, text: str, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ClaimError(f"{what} is {text!r}", during="claim", hint="one of " + ", ".join(kind)) from None


def open_broker(
    environ: Mapping[str, str] | None = None,
    state: Path | None = None,
    *,
    deadline_seconds: float = 5.0,
) -> LocalBroker:
    """Open the broker of this machine: survey it, open its journal, agree with what was prepared.

    Raises :class:`hal.broker.sqlite.JournalBusy` if another process holds the journal until the deadline.
    """
    from hal.agent.survey import Survey, survey
    from hal.broker.sqlite import SqliteStore

    def look() -> Survey:
        return survey(environ=environ, deadline_seconds=max(5.0, deadline_seconds))

    where = folders(environ, state)
    first = look()
    store = SqliteStore(where.state, Deadline.after(deadline_seconds))
    try:
        drivers: dict[str, Driver] = dict(first.drivers)
        waiting = [first]

        def observe() -> Sight:
            found = waiting.pop() if waiting else look()
            for name, driver in found.drivers.items():
                drivers.setdefault(name, driver)
            silent = {report.driver for report in found.reports if any(problem.fatal for problem in report.problems)}
            return Sight(devices=found.inventory.devices, silent=frozenset(silent))

        return LocalBroker(drivers, store, where.runtime, observe=observe)
    except BaseException:
        store.close()
        raise
