"""The broker in this process: an embedded journal, the drivers that are here, and nothing to talk to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hal.agent.calling import Begin
from hal.agent.clock import SteadyClock, read_boot_id
from hal.agent.prepare import Agent
from hal.api.ask import Asked, make_claim
from hal.api.glance import Status, queue_of, status_of
from hal.api.granting import Granting
from hal.api.held import HeldLease
from hal.api.names import Names
from hal.api.operating import Operating
from hal.api.sight import Observe, Sight
from hal.api.surface import Waiting
from hal.broker import command as c
from hal.broker.allocation.explain import Explanation, explain
from hal.broker.decisions.leases import is_below
from hal.broker.history import event_of
from hal.broker.journal.store import Store
from hal.broker.ledger import Clock, Ledger
from hal.drivers.contract import Driver
from hal.drivers.guard import GuardPages
from hal.drivers.guarded import Call
from hal.errors import BrokerError, LeaseNotFound
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim
from hal.model.event import Event
from hal.model.lease import Lease

__all__ = ["LocalBroker", "Observe", "Sight", "Status"]

WATCH_SECONDS = 1.0
"""How long whoever waits lets the broker alone: expiry, notices and the queue have to be looked after by somebody."""


class _AnyClock:
    """Stands in until the journal has said which clock this boot runs on."""

    def now(self) -> float:
        return SteadyClock.begin().now()


class LocalBroker(Operating):
    """Grants, prepares, renews and takes back leases of the devices that ``drivers`` drive.

    ``observe`` returns all devices as they are now; ``clock`` and ``boot_id`` are the machine's own unless given.
    ``begin`` starts a call of a driver (in a thread, unless a simulation says otherwise). ``prepares=False`` is for
    devices that other nodes' agents prepare: leases stay bound here. Thread-safe. Opening one brings journal and
    devices into agreement; every verb first takes back what has expired. Closing leaves the leases as they are: they
    end when released or expired, under whichever broker comes next.
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
        prepares: bool = True,
        begin: Begin = Call,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(observe)
        self.drivers = drivers
        self._at_end = at_end
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
                    pages.revoke(lease.slot_of(device), lease.fence_of(device))
        self.ledger.execute(c.Begin(boot_id=boot_id, clock_offset_seconds=offset))
        self.agent = Agent(self.ledger, drivers, pages, deadline_seconds, begin)
        self.prepares = prepares
        self._granting = Granting(self.ledger, self.agent, self.refresh_if_possible, prepares=prepares)
        self._names = Names(self.ledger)
        if prepares:
            self.agent.reconcile()
        if observe is not None:
            self.refresh()
        self.maintain()

    # --- claims

    def claim(self, asked: Asked, *, actor: str | None = None, **words: Any) -> HeldLease:
        """Grant devices and prepare them, all or nothing: ``claim("gpu", count=2, same="numa")``.

        ``asked`` is a kind, a request, several requests, or a whole claim; ``words`` are those of
        :func:`hal.api.ask.make_claim`. The chosen devices are asked how they are before anything is promised. With
        ``wait=True`` it blocks until there is room, or ``wait_seconds`` are over. Raises
        :class:`~hal.errors.ClaimRefused` with the reason, :class:`~hal.errors.BrokerError` if the search could not
        decide, and errors of usage.
        """
        claim = make_claim(asked, **words)
        answer = self.submit([claim], actors=None if actor is None else [actor])[0]
        while isinstance(answer, c.Queued):
            answer = self.wait_for(claim.id, Deadline.after(WATCH_SECONDS))
        return self._held(self._granting.lease_of(claim, answer))

    def submit(
        self, claims: Sequence[Claim], *, dry_run: bool = False, actors: Sequence[str] | None = None
    ) -> list[c.Answer]:
        """Decide many claims in one commit and return what became of each, in their order; see ``Broker.submit``.

        A claim that makes no sense, or speaks of attributes that nothing has, is ``Refused`` with its reason if there
        are several; alone it raises :class:`~hal.errors.ClaimError`. ``actors`` are who asks, for the audit trail.
        """
        self.agent.expire()
        if len(claims) == 1:
            self._names.check(claims[0])
            wrong: dict[int, c.Answer] = {}
        else:
            wrong = {number: c.Refused(why) for number, why in self._names.mistakes(claims)}
        good = [number for number in range(len(claims)) if number not in wrong]
        asked = [claims[number] for number in good]
        if dry_run:
            answers = [self.ledger.preview(c.ClaimDevices(claim=claim)) for claim in asked]
        else:
            who = [claim.tenant for claim in asked] if actors is None else [actors[number] for number in good]
            answers = self._granting.submit(asked, who)
        found = wrong | dict(zip(good, answers, strict=True))
        return [found[number] for number in range(len(claims))]

    def wait_for(self, claim_id: str, deadline: Deadline, tenant: str | None = None) -> c.Answer:
        """Return as soon as a claim is granted and prepared, or over; at the deadline, what is known of it."""
        while True:
            self.maintain()
            answer = self._granting.answer_of(claim_id, tenant)
            if not isinstance(answer, c.Queued) or deadline.expired:
                return answer
            pause = min(deadline.remaining_seconds, self._granting.seconds_until_due(WATCH_SECONDS))
            self.ledger.wait_for_change(self.state.revision, max(pause, 0.001))

    def explain(self, asked: Asked, **words: Any) -> Explanation:
        """Say whether a claim would be granted now, and if not, what stands in the way; takes what ``claim`` takes."""
        claim = make_claim(asked, **words)
        self.agent.expire()
        self._names.check(claim)
        with self.ledger.lock:
            return explain(self.state, claim)

    def queue(self, tenant: str | None = None) -> tuple[Waiting, ...]:
        """Return the waiting claims, who is next first."""
        self.agent.expire()
        with self.ledger.lock:
            return queue_of(self.state, tenant)

    # --- leases

    def renew(self, lease_id: str, ttl_seconds: float | None = None, tenant: str | None = None) -> Lease:
        """Let a lease last for another time to live; raises ``LeaseEnded`` if it is too late."""
        self.agent.expire()
        lease = _lease_of(self.ledger.execute(c.Renew(lease=lease_id, ttl_seconds=ttl_seconds, tenant=tenant)))
        self.agent.renew_pages(lease)
        return lease

    def resize(self, lease_id: str, replicas: int, tenant: str | None = None, actor: str | None = None) -> Lease:
        """Let an elastic lease have so many replicas; raises ``ClaimRefused`` if there is no room for more."""
        self.agent.expire()
        answer = self.ledger.execute(c.Resize(lease=lease_id, replicas=replicas, tenant=tenant), actor or tenant or "")
        self._granting.check(answer, lease_id, "resize")
        self.maintain()
        return self.state.leases.get(lease_id) or _lease_of(answer)

    def release(self, lease_id: str, tenant: str | None = None, actor: str | None = None) -> Lease:
        """End a lease and take its devices back, or take a claim out of the queue; the same again is no error.

        Returns the lease as it is then; of a claim that waited, one without devices.
        """
        self.agent.expire()
        entry = self.state.waiting.get(lease_id)
        answer = self.ledger.execute(c.Release(lease=lease_id, tenant=tenant), actor or tenant or "holder")
        assert isinstance(answer, c.Done)
        if answer.lease is None:
            claim = self.state.claims[lease_id] if entry is None else entry.claim
            return self._granting.nothing_of(claim)
        if lease_id in self.state.leases:
            self.agent.take_back(answer.lease)
            self._granting.prepare_pending()
        return self.state.ended.get(lease_id, answer.lease)

    def list(self, tenant: str | None = None) -> tuple[Lease, ...]:
        """Return the leases that are not over."""
        self.agent.expire()
        with self.ledger.lock:
            return tuple(lease for lease in self.state.leases.values() if is_below(lease.tenant, tenant))

    def get(self, lease_id: str, tenant: str | None = None) -> HeldLease:
        """Return a lease that is not over, to open its devices or give it back."""
        self.agent.expire()
        lease = self.state.leases.get(lease_id)
        if lease is None or not is_below(lease.tenant, tenant):
            over = self.state.ended.get(lease_id)
            known = over is not None and is_below(over.tenant, tenant)
            why = f"the lease is over: {over.why_ended}" if over is not None and known else "no such lease"
            raise LeaseNotFound(why, device=lease_id, during="open", hint="hal list")
        return self._held(lease)

    def open_claims(self) -> Counter[str]:
        """Return how many leases and waiting claims each tenant has that are not over."""
        with self.ledger.lock:
            found = Counter([lease.tenant for lease in self.state.leases.values()])
            found.update([entry.claim.tenant for entry in self.state.waiting.values()])
        return found

    # --- what happens

    def maintain(self) -> float:
        """Do what time asks for: take back what has expired, serve the queue, prepare what was granted.

        Returns in how many seconds it is needed again, at the latest.
        """
        self.agent.expire()
        self.ledger.serve_queue()
        self._granting.prepare_pending()
        self.ledger.tidy()
        return self._granting.seconds_until_due(WATCH_SECONDS)

    def status(self) -> Status:
        """Return the broker at a glance."""
        self.agent.expire()
        with self.ledger.lock:
            return status_of(self.state, self.ledger.clock.now())

    def now(self) -> float:
        """Return what time it is by the broker's clock: steady, whatever is done to the machine's."""
        return float(self.ledger.clock.now())

    def events(self, since: int = 0, tenant: str | None = None) -> Iterator[Event]:
        """Yield what happened after a revision, in order; the last event's revision is where to go on.

        A tenant sees devices, and their own claims and leases.
        """
        for revision, record in self.ledger.events(since):
            event = event_of(record, revision)
            if tenant is None or self._is_for(event, tenant):
                yield event

    def _is_for(self, event: Event, tenant: str) -> bool:
        claim = self.state.claims.get(event.subject)
        if claim is not None:
            return is_below(claim.tenant, tenant)
        return event.subject in self.state.devices

    def watch(self, since: int, deadline: Deadline, tenant: str | None = None) -> Iterator[Event]:
        """Yield what happens after a revision, as it happens, until the deadline; nothing is left out."""
        reached = since
        while True:
            head = self.state.revision
            for event in self.events(reached, tenant):
                reached = event.revision
                yield event
            reached = max(reached, head)
            if deadline.expired:
                return
            self.ledger.wait_for_change(reached, min(deadline.remaining_seconds, WATCH_SECONDS))

    # --- inside

    def _held(self, lease: Lease) -> HeldLease:
        return HeldLease(lease, self.drivers, self._guards, self)

    def close(self) -> None:
        """Let go of the journal; leases go on."""
        self._store.close()
        if self._at_end is not None:
            self._at_end()

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
