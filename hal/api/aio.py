"""A client for asyncio: the same surface as the broker in this process, with ``await``."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from hal.api import calls
from hal.api.ask import Asked, make_claim
from hal.api.client import SILENT_SECONDS, WAIT_SECONDS, late, unreachable
from hal.api.held import HeldLease as LocalHeldLease
from hal.api.http1 import Address, Response, ShortPath
from hal.api.surface import TenantReport, Waiting
from hal.api.wire import WhoAmI
from hal.broker.command import Answer, Queued
from hal.broker.journal.audit import Anchor, AuditLine, AuditReport
from hal.broker.snapshot import Cordon
from hal.errors import LeaseEnded
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
_CHUNK = 1 << 16


class Connections:
    """Connections to one server, within one event loop; those that nobody uses wait to be used again."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        address = self._address
        if address.unix is None:
            return await asyncio.open_connection(address.host, address.port, ssl=address.tls)
        with ShortPath(address.unix) as short:
            return await asyncio.open_unix_connection(short)

    async def ask(self, request: bytes) -> Response:
        """Send a request and return the whole answer."""
        reader, writer = await self._take()
        response = Response()
        try:
            writer.write(request)
            await writer.drain()
            while not response.complete:
                response.feed(_some(await reader.read(_CHUNK)))
        except BaseException:
            writer.close()
            raise
        if response.reusable:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return response

    async def stream(self, request: bytes, silent_seconds: float) -> AsyncGenerator[tuple[Response, bytes], None]:
        """Send a request and yield the answer as it comes; ``TimeoutError`` after so long a silence."""
        reader, writer = await self._take()
        response = Response()
        try:
            writer.write(request)
            while not response.complete:
                async with asyncio.timeout(silent_seconds):
                    data = await reader.read(_CHUNK)
                response.feed(_some(data))
                if response.flows:
                    yield response, response.take()
        finally:
            writer.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop()[1].close()


def _some(data: bytes) -> bytes:
    if not data:
        raise ConnectionResetError("the server closed the connection")
    return data


class HeldLease:
    """A lease that this process may use, renewed and released with ``await``; opening a device asks no server."""

    def __init__(self, held: LocalHeldLease, keeper: Client) -> None:
        self._held = held
        self._keeper = keeper

    def __getattr__(self, name: str) -> Any:
        """Everything but the verbs below is as in :class:`hal.api.held.HeldLease`."""
        return getattr(self._held, name)

    async def renew(self, ttl_seconds: float | None = None) -> Lease:
        """Let the lease last for another time to live from now; raises ``LeaseEnded`` if it is too late."""
        self._held.lease = await self._keeper.renew(self._held.id, ttl_seconds)
        return self._held.lease

    async def release(self) -> None:
        """Close the handles and give the devices back; the same again is no error."""
        self._held.close()
        self._held.lease = await self._keeper.release(self._held.id)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(LeaseEnded):
            await self.release()

    def __repr__(self) -> str:
        return repr(self._held)


class Client:
    """Asks a server with ``await``, from one event loop.

    Verbs whose outcome is unknown are sent again until ``timeout_seconds`` are over.

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

    async def _run(self, call: calls.Call[T]) -> T:
        seconds = self._seconds + call.seconds
        deadline = Deadline.after(seconds)
        request = self._address.head(call.method, call.path, call.query, call.body)
        for attempt in range(calls.ATTEMPTS):
            try:
                async with asyncio.timeout(deadline.timeout):
                    response = await self._connections.ask(request)
            except TimeoutError as error:
                raise late(call.path, seconds) from error
            except OSError as error:
                if attempt + 1 == calls.ATTEMPTS or deadline.expired or not calls.may_pass(error):
                    raise unreachable(self._address.text, error) from error
                await asyncio.sleep(min(calls.pause_of(attempt), deadline.remaining_seconds))
                continue
            if 200 <= response.status < 300:
                return call.read(response.take())
            raise calls.error_from(response.status, response.media, response.take())
        raise AssertionError("the last attempt returns or raises")

    # --- the verbs

    async def claim(self, asked: Asked, **words: Any) -> HeldLease:
        """See :class:`~hal.api.surface.Broker`; with ``wait=True`` it blocks while the claim waits in the queue."""
        claim = make_claim(asked, **words)
        answer = (await self.submit([claim]))[0]
        seconds = claim.wait_seconds if isinstance(answer, Queued) and claim.wait else self._seconds
        deadline = Deadline.never() if seconds is None else Deadline.after(seconds)
        while (lease := calls.granted(claim, answer)) is None:
            if deadline.expired:
                raise calls.still_waiting(claim, answer)
            answer = await self.wait_for(claim.id, deadline)
        return await self._held(lease)

    async def _held(self, lease: Lease) -> HeldLease:
        if self._guards is None:
            self._guards = Path((await self._run(calls.get(lease.id, None))).guards)
        return HeldLease(LocalHeldLease(lease, {}, self._guards), self)

    async def submit(self, claims: Sequence[Claim], *, dry_run: bool = False) -> list[Answer]:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.submit(claims, dry_run)) if claims else []

    async def wait_for(self, claim_id: str, deadline: Deadline, tenant: str | None = None) -> Answer:
        """See :class:`~hal.api.surface.Broker`."""
        while True:
            answer = await self._run(calls.wait_for(claim_id, min(WAIT_SECONDS, deadline.remaining_seconds)))
            if deadline.expired or not calls.is_pending(answer):
                return answer

    async def explain(self, asked: Asked, **words: Any) -> Explanation:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.explain(make_claim(asked, **words)))

    async def renew(self, lease_id: str, ttl_seconds: float | None = None, tenant: str | None = None) -> Lease:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.renew(lease_id, ttl_seconds, tenant))

    async def resize(self, lease_id: str, replicas: int, tenant: str | None = None) -> Lease:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.resize(lease_id, replicas, tenant))

    async def release(self, lease_id: str, tenant: str | None = None) -> Lease:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.release(lease_id, tenant))

    async def get(self, lease_id: str, tenant: str | None = None) -> HeldLease:
        """See :class:`~hal.api.surface.Broker`."""
        ticket = await self._run(calls.get(lease_id, tenant))
        return HeldLease(LocalHeldLease(ticket.lease, {}, Path(ticket.guards)), self)

    async def list(self, tenant: str | None = None) -> tuple[Lease, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.leases(tenant))

    async def queue(self, tenant: str | None = None) -> tuple[Waiting, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.queue(tenant))

    async def status(self) -> Status:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.status())

    async def now(self) -> float:
        """See :class:`~hal.api.surface.Broker`; the way to the server and back is not counted."""
        return (await self._run(calls.whoami())).now

    async def devices(self) -> tuple[Device, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.devices())

    async def events(self, since: int = 0, tenant: str | None = None) -> AsyncIterator[Event]:
        """See :class:`~hal.api.surface.Broker`; read in pages."""
        more = True
        while more:
            page = await self._run(calls.events(since, tenant))
            for event in page.events:
                yield event
            since, more = page.next, page.more

    async def watch(self, since: int, deadline: Deadline, tenant: str | None = None) -> AsyncIterator[Event]:
        """See :class:`~hal.api.surface.Broker`; a stream that breaks off is taken up again where it was."""
        frames = calls.Frames(since)
        attempt = 0
        while not deadline.expired:
            frames.begin()
            left = deadline.remaining_seconds
            query = calls.stream_query(frames.cursor, left, tenant)
            request = self._address.head("GET", "/v1/events/stream", query, None)
            stream = self._connections.stream(request, min(SILENT_SECONDS, left + 5.0))
            try:
                async with contextlib.aclosing(stream):
                    async for response, chunk in stream:
                        if response.status != 200:
                            raise calls.error_from(response.status, response.media, chunk)
                        attempt = 0
                        for event in frames.feed(chunk):
                            yield event
            except OSError as error:
                attempt += 1
                if attempt >= calls.STREAM_ATTEMPTS or not calls.may_pass(error):
                    raise unreachable(self._address.text, error) from error
                await asyncio.sleep(min(calls.pause_of(attempt), deadline.remaining_seconds))

    async def cordon(self, target: str, why: str = "", by: str = "operator") -> tuple[Cordon, ...]:
        """See :class:`~hal.api.surface.Broker`; the server knows who asks, and writes that down for ``by``."""
        return await self._run(calls.cordon(target, why))

    async def uncordon(self, target: str, by: str = "operator") -> tuple[Cordon, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.uncordon(target))

    async def cordons(self) -> tuple[Cordon, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.cordons())

    async def drain(
        self, target: str, why: str = "", by: str = "operator", grace_seconds: float | None = None
    ) -> tuple[Lease, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.drain(target, why, grace_seconds))

    async def tenants(self, tenant: str | None = None) -> tuple[TenantReport, ...]:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.tenants(tenant))

    async def set_tenant(self, tenant: Tenant) -> TenantReport:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.set_tenant(tenant))

    async def remove_tenant(self, path: str) -> None:
        """See :class:`~hal.api.surface.Broker`."""
        await self._run(calls.remove_tenant(path))

    async def repair(self, device: str, **words: Any) -> Repair:
        """See :class:`~hal.api.surface.Broker`."""
        return await self._run(calls.repair(device, words))

    async def audit(self, since: int = 0) -> AsyncIterator[AuditLine]:
        """Yield the lines of the audit trail after a sequence; for operators."""
        more = True
        while more:
            page = await self._run(calls.audit(since))
            for line in page.lines:
                yield line
            since, more = page.next, page.more

    async def verify_audit(self, anchor: Anchor | None = None) -> AuditReport:
        """Check the whole audit trail, and that a remembered line is still there; for operators."""
        return await self._run(calls.verify_audit(anchor))

    async def whoami(self) -> WhoAmI:
        """Return whom the server takes us for."""
        return await self._run(calls.whoami())

    async def close(self) -> None:
        """Close the connections; leases go on."""
        self._connections.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
