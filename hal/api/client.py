"""A client that waits for its answers: the broker behind a socket, with the surface of the one in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from hal.api import calls
from hal.api.ask import Asked, make_claim
from hal.api.held import HeldLease
from hal.api.http1 import Address, Connections
from hal.api.surface import TenantReport, Waiting
from hal.api.wire import Unreachable, WhoAmI
from hal.broker.command import Answer, Queued
from hal.broker.journal.audit import Anchor, AuditLine, AuditReport
from hal.broker.snapshot import Cordon
from hal.errors import DeadlineExceeded
from hal.interfaces.deadline import Deadline
from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.event import Event
from hal.model.lease import Lease
from hal.model.tenant import Tenant

if TYPE_CHECKING:
    from hal.agent.repair import Repair
    from hal.api.glance import Status
    from hal.broker.allocation.explain import Explanation

T = TypeVar("T")
WAIT_SECONDS = 30.0
"""The longest single question about a waiting claim; then it is asked again."""
SILENT_SECONDS = 40.0
"""A server that says nothing at all on a stream for so long is taken for dead: it sends a line every 15 seconds."""


class Client:
    """Asks a server. Thread-safe. Verbs whose outcome is unknown are sent again until ``timeout_seconds`` are over.

    Raises what the broker raises, and :class:`~hal.api.wire.Unreachable` if nobody answers.
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        token: str | None = None,
        certificate: tuple[str, str] | None = None,
        ca: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        self._address = Address(address, token=token, certificate=certificate, ca=ca)
        self._seconds = timeout_seconds
        self._guards: Path | None = None
        self._connections = Connections(self._address)

    def _run(self, call: calls.Call[T]) -> T:
        deadline = Deadline.after(self._seconds + call.seconds)
        request = self._address.head(call.method, call.path, call.query, call.body)
        for attempt in range(calls.ATTEMPTS):
            try:
                response = self._connections.ask(request, deadline)
            except TimeoutError as error:
                raise late(call.path, self._seconds + call.seconds) from error
            except OSError as error:
                if attempt + 1 == calls.ATTEMPTS or deadline.expired or not calls.may_pass(error):
                    raise unreachable(self._address.text, error) from error
                time.sleep(min(calls.pause_of(attempt), deadline.remaining_seconds))
                continue
            if 200 <= response.status < 300:
                return call.read(response.take())
            raise calls.error_from(response.status, response.media, response.take())
        raise AssertionError("the last attempt returns or raises")

    # --- the verbs

    def claim(self, asked: Asked, **words: Any) -> HeldLease:
        """See :class:`~hal.api.surface.Broker`; with ``wait=True`` it blocks while the claim waits in the queue."""
        claim = make_claim(asked, **words)
        answer = self.submit([claim])[0]
        seconds = claim.wait_seconds if isinstance(answer, Queued) and claim.wait else self._seconds
        deadline = Deadline.never() if seconds is None else Deadline.after(seconds)
        while (lease := calls.granted(claim, answer)) is None:
            if deadline.expired:
                raise calls.still_waiting(claim, answer)
            answer = self.wait_for(claim.id, deadline)
        return self._held(lease)

    def _held(self, lease: Lease) -> HeldLease:
        if self._guards is None:
            self._guards = Path(self._run(calls.get(lease.id, None)).guards)
        return HeldLease(lease, {}, self._guards, self)

    def submit(self, claims: Sequence[Claim], *, dry_run: bool = False) -> list[Answer]:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.submit(claims, dry_run)) if claims else []

    def wait_for(self, claim_id: str, deadline: Deadline, tenant: str | None = None) -> Answer:
        """See :class:`~hal.api.surface.Broker`."""
        while True:
            answer = self._run(calls.wait_for(claim_id, min(WAIT_SECONDS, deadline.remaining_seconds)))
            if deadline.expired or not calls.is_pending(answer):
                return answer

    def explain(self, asked: Asked, **words: Any) -> Explanation:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.explain(make_claim(asked, **words)))

    def renew(self, lease_id: str, ttl_seconds: float | None = None, tenant: str | None = None) -> Lease:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.renew(lease_id, ttl_seconds, tenant))

    def resize(self, lease_id: str, replicas: int, tenant: str | None = None) -> Lease:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.resize(lease_id, replicas, tenant))

    def release(self, lease_id: str, tenant: str | None = None) -> Lease:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.release(lease_id, tenant))

    def get(self, lease_id: str, tenant: str | None = None) -> HeldLease:
        """See :class:`~hal.api.surface.Broker`."""
        ticket = self._run(calls.get(lease_id, tenant))
        return HeldLease(ticket.lease, {}, Path(ticket.guards), self)

    def list(self, tenant: str | None = None) -> tuple[Lease, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.leases(tenant))

    def queue(self, tenant: str | None = None) -> tuple[Waiting, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.queue(tenant))

    def status(self) -> Status:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.status())

    def now(self) -> float:
        """See :class:`~hal.api.surface.Broker`; the way to the server and back is not counted."""
        return self._run(calls.whoami()).now

    def devices(self) -> tuple[Device, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.devices())

    def events(self, since: int = 0, tenant: str | None = None) -> Iterator[Event]:
        """See :class:`~hal.api.surface.Broker`; read in pages."""
        more = True
        while more:
            page = self._run(calls.events(since, tenant))
            yield from page.events
            since, more = page.next, page.more

    def watch(self, since: int, deadline: Deadline, tenant: str | None = None) -> Iterator[Event]:
        """See :class:`~hal.api.surface.Broker`; a stream that breaks off is taken up again where it was."""
        frames = calls.Frames(since)
        attempt = 0
        while not deadline.expired:
            frames.begin()
            left = deadline.remaining_seconds
            query = calls.stream_query(frames.cursor, left, tenant)
            request = self._address.head("GET", "/v1/events/stream", query, None)
            silent = min(SILENT_SECONDS, left + 5.0)
            try:
                for response, chunk in self._connections.stream(request, Deadline.after(self._seconds), silent):
                    if response.status != 200:
                        raise calls.error_from(response.status, response.media, chunk)
                    attempt = 0
                    yield from frames.feed(chunk)
            except OSError as error:
                attempt += 1
                if attempt >= calls.STREAM_ATTEMPTS or not calls.may_pass(error):
                    raise unreachable(self._address.text, error) from error
                time.sleep(min(calls.pause_of(attempt), deadline.remaining_seconds))

    def cordon(self, target: str, why: str = "", by: str = "operator") -> tuple[Cordon, ...]:
        """See :class:`~hal.api.surface.Broker`; the server knows who asks, and writes that down for ``by``."""
        return self._run(calls.cordon(target, why))

    def uncordon(self, target: str, by: str = "operator") -> tuple[Cordon, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.uncordon(target))

    def cordons(self) -> tuple[Cordon, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.cordons())

    def drain(
        self, target: str, why: str = "", by: str = "operator", grace_seconds: float | None = None
    ) -> tuple[Lease, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.drain(target, why, grace_seconds))

    def tenants(self, tenant: str | None = None) -> tuple[TenantReport, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.tenants(tenant))

    def set_tenant(self, tenant: Tenant) -> TenantReport:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.set_tenant(tenant))

    def remove_tenant(self, path: str) -> None:
        """See :class:`~hal.api.surface.Broker`."""
        self._run(calls.remove_tenant(path))

    def repair(self, device: str, **words: Any) -> Repair:
        """See :class:`~hal.api.surface.Broker`."""
        return self._run(calls.repair(device, words))

    def audit(self, since: int = 0) -> Iterator[AuditLine]:
        """Yield the lines of the audit trail after a sequence; for operators."""
        more = True
        while more:
            page = self._run(calls.audit(since))
            yield from page.lines
            since, more = page.next, page.more

    def verify_audit(self, anchor: Anchor | None = None) -> AuditReport:
        """Check the whole audit trail, and that a remembered line is still there; for operators."""
        return self._run(calls.verify_audit(anchor))

    def whoami(self) -> WhoAmI:
        """Return whom the server takes us for."""
        return self._run(calls.whoami())

    def close(self) -> None:
        """Close the connections; leases go on."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unreachable(address: str, error: Exception) -> Unreachable:
    """Return the error for a server that does not answer, or at whose socket we may not."""
    if isinstance(error, PermissionError):
        hint = f"ls -l {address} tells whose group may; hal serve --group NAME"
        return Unreachable(f"{address} lets only its owner and its group connect", during="connect", hint=hint)
    return Unreachable(
        f"no server answers at {address}: {error or type(error).__name__}", during="connect", hint="hal serve"
    )


def late(path: str, seconds: float) -> DeadlineExceeded:
    """Return the error for an answer that did not come in time."""
    return DeadlineExceeded(
        f"the server did not answer within {seconds:g} s; the outcome is unknown",
        during=path,
        hint="ask again with the same id: nothing is done twice",
    )
