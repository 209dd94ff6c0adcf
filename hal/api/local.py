"""The broker in this process: an embedded journal, the drivers that are here, and nothing to talk to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from hal.agent.clock import SteadyClock, read_boot_id
from hal.agent.prepare import Agent, Trouble
from hal.agent.repair import RESET_SECONDS, Repair, repair
from hal.api.ask import Asked, make_claim
from hal.api.held import HeldLease
from hal.broker import command as c
from hal.broker.allocation.explain import Explanation, explain
from hal.broker.journal.store import Store
from hal.broker.ledger import Clock, Ledger
from hal.broker.allocation.places import ancestors, why_unfit
from hal.broker.record import checked, event_of
from hal.broker.state import Fenced, State
from hal.drivers.contract import Driver, Problem
from hal.drivers.guard import GuardPages
from hal.errors import BrokerError, ClaimError, ClaimRefused, LeaseNotFound, UsageError
from hal.model.claim import Claim, Locality
from hal.model.device import Device
from hal.model.event import Event
from hal.model.inventory import Inventory
from hal.model.lease import Lease, LeaseState
from hal.model.selector import compile_selector


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all devices; ``silent`` drivers did not answer, which says nothing about theirs.

    ``problems`` are what kept something from being looked at.
    """

    devices: tuple[Device, ...]
    silent: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()


_LOG = logging.getLogger(__name__)
_COUNTS = ("all", "free", "held", "fenced", "unfit", "tied")
Observe = Callable[[], Sight | Iterable[Device]]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The broker at a glance. ``devices`` counts the allocatable ones by kind.

    ``all`` are ``free``, ``held``, ``fenced``, ``unfit`` (a condition keeps them back), or ``tied``: well, but
    something that shares their fate is held.
    """

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
        self.problems: tuple[Problem, ...] = ()
        self._lock = threading.RLock()
        self._store = store
        self._guards = runtime.absolute() / "guards"
        self.ledger = Ledger(store, clock or _AnyClock())
        state = self.ledger.state
        boot_id = boot_id if boot_id is not None else read_boot_id()
        offset = state.clock_offset_seconds
        if clock is None:
            same_boot = state.boot_id == boot_id
            steady = SteadyClock(offset) if same_boot else SteadyClock.begin(not_before=state.latest_at)
            self.ledger.clock, offset = steady, steady.offset_seconds
        pages = _open_pages(self._guards)
        if state.boot_id not in ("", boot_id):
            for lease in state.leases.values():  # their pages tell the time of another boot
                for device in lease.devices:
                    pages.revoke(device.id, lease.fence)
        self.ledger.execute(c.Begin(boot_id=boot_id, clock_offset_seconds=offset))
        self.agent = Agent(self.ledger, drivers, pages, deadline_seconds)
        self._names: tuple[int, frozenset[str]] = (-1, frozenset())
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
            self.problems = sight.problems
            devices = tuple(self._readable(sight.devices))
            self.ledger.execute(c.Observe(devices=devices, complete=True, silent=sight.silent))
            self.agent.free_fenced()

    def _readable(self, devices: Iterable[Device]) -> Iterator[Device]:
        """Yield the devices as the journal would give them back; leave out those that it could not read again."""
        known = self.state.devices
        for device in devices:
            before = known.get(device.id) if isinstance(device, Device) else None
            if before is not None and before == device:
                yield before
                continue
            try:
                yield checked(device, Device)
            except (msgspec.MsgspecError, TypeError, ValueError) as error:
                _LOG.warning("%s is left out: its driver describes it wrongly: %s", getattr(device, "id", "?"), error)

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
            fresh = claim.id not in self.ledger.state.leases
            answer = self.ledger.execute(c.ClaimDevices(claim=claim))
            lease = self._granted(claim, answer, trouble)
            if lease.state is LeaseState.PREPARED:
                return lease  # asked again: it is in use, and whatever became of its devices is its holder's to see
            prepared = self.agent.prepare(lease, fresh=fresh)
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

    def repair(
        self,
        device: str,
        *,
        scrub: bool = False,
        by_operator: str | None = None,
        deadline_seconds: float = RESET_SECONDS,
    ) -> Repair:
        """Repair a device that nobody holds, by id, name or alias: reset it, look at it, clear its latched evidence.

        ``scrub`` erases it, too. ``by_operator`` says what a person did about it: that is recorded, and nothing is
        reset. See :func:`hal.agent.repair.repair` for what it raises.
        """
        if by_operator is not None and not by_operator.strip():
            raise UsageError("an operator's word says what was done", device=device, during="repair", hint="a reason")
        with self._lock:
            self.agent.expire()
            found = Inventory(self.state.devices.values()).find(device)
            steps = repair(self.agent, found, scrub=scrub, by_operator=by_operator, seconds=deadline_seconds)
            self.refresh()
            now = self.state.devices.get(found.id)
            left = {(condition.type, condition.code) for condition in now.conditions} if now is not None else set()
            return Repair(
                device=found.id,
                name=found.name,
                steps=steps,
                cleared=tuple(gone for gone in found.conditions if (gone.type, gone.code) not in left),
                unfit=None if now is None else why_unfit(now, ancestors(now, self.state.devices)),
            )

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
                    row = counts.setdefault(device.kind.value, dict.fromkeys(_COUNTS, 0))
                    row["all"] += 1
                    if node.held >> position & 1:
                        row["fenced" if device.id in state.fenced else "held"] += 1
                    elif node.free >> position & 1:
                        row["free"] += 1
                    else:
                        row["tied" if node.fit >> position & 1 else "unfit"] += 1
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
            if self._names[0] != self.state.sights:
                names = (name for d in self.state.devices.values() for name in (*d.attributes, *d.capacity))
                self._names = (self.state.sights, frozenset(names))
            known = self._names[1]
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


def _open_pages(folder: Path) -> GuardPages:
    try:
        return GuardPages(folder)
    except OSError as error:
        raise BrokerError(
            f"the runtime folder cannot be used: {error}", during="open", hint="--state FOLDER names another"
        ) from error


def _one_of(kind: Any, text: str, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ClaimError(f"{what} is {text!r}", during="claim", hint="one of " + ", ".join(kind)) from None
