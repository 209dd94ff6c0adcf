"""Every verb as a request and what its answer means: no I/O, shared by the clients with and without ``await``."""

from __future__ import annotations

import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from hal.api import wire as w
from hal.api.held import Ticket
from hal.api.surface import TenantReport, Waiting
from hal.broker.command import Answer, Granted, Queued, Refused, Undecided
from hal.broker.journal.audit import Anchor, AuditReport
from hal.broker.snapshot import Cordon
from hal.errors import BrokerError, ClaimRefused
from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.event import Event
from hal.model.lease import Lease, LeaseState
from hal.model.tenant import Tenant

if TYPE_CHECKING:  # what answers with them is imported by whom it is asked
    from hal.agent.repair import Repair
    from hal.api.glance import Status
    from hal.broker.allocation.explain import Explanation

T = TypeVar("T")
ATTEMPTS = 4
STREAM_ATTEMPTS = 10
"""A server that starts anew is waited for, some seconds long."""
LONGEST_STREAM_SECONDS = 3600.0
AUDIT_SECONDS = 600.0
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. ``read`` makes the verb's result of a good answer's body.

    Every verb may be sent again when its outcome is unknown: claims and leases are named by the caller, and all else
    says how things shall be, not how they shall change. ``seconds`` is how long the server may take beyond the usual.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    body: bytes | None = None
    query: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def pause_of(attempt: int) -> float:
    """Return seconds to wait before the next attempt: 50, 100, 200 ms to 1 s, each by chance up to half longer."""
    return min(1.0, 0.05 * (1 << attempt)) * (1 + secrets.randbelow(512) / 1024)


def may_pass(error: OSError) -> bool:
    """Whether it may be well in a moment. That one may not connect, or a certificate is not believed, stays so."""
    return not isinstance(error, PermissionError | ssl.SSLError | socket.gaierror)


def error_from(status: int, media: str, body: bytes) -> Exception:
    """Return the error that an answer other than 2xx stands for."""
    if media.startswith(w.PROBLEM_MEDIA_TYPE):
        try:
            return w.error_of(msgspec.json.decode(body, type=w.Problem))
        except msgspec.MsgspecError:
            pass
    text = body[:200].decode("utf-8", "replace")
    return BrokerError(f"the server answered {status}: {text}", during="ask", hint="is it hal that listens there?")


def _reader(kind: type[Any], pick: Callable[[Any], T]) -> Callable[[bytes], T]:
    return lambda body: pick(_read(kind, body))


def _read(kind: Any, body: bytes) -> Any:
    try:
        return _decoder(kind).decode(body)
    except msgspec.MsgspecError as error:
        raise BrokerError(
            f"the server's answer cannot be read: {error}", during="ask", hint="server and client of one version"
        ) from error


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Make a decoder when the first answer of its kind comes: a command asks one thing, and there are twenty."""
    return msgspec.json.Decoder(kind)


def _lease(found: w.LeaseReply) -> Lease:
    return found.lease


_LEASE: Callable[[bytes], Lease] = _reader(w.LeaseReply, _lease)
_LEASES: Callable[[bytes], tuple[Lease, ...]] = _reader(w.Leases, lambda found: found.leases)
_QUEUE: Callable[[bytes], tuple[Waiting, ...]] = _reader(w.Queue, lambda found: found.waiting)
_ANSWERS: Callable[[bytes], list[Answer]] = _reader(w.Answers, lambda found: list(found.answers))
_ANSWER: Callable[[bytes], Answer] = _reader(w.OneAnswer, lambda found: found.answer)
_TICKET: Callable[[bytes], Ticket] = _reader(Ticket, lambda found: found)
_DEVICES: Callable[[bytes], tuple[Device, ...]] = _reader(w.Devices, lambda found: found.devices)
_EVENTS: Callable[[bytes], w.Events] = _reader(w.Events, lambda found: found)
_CORDONS: Callable[[bytes], tuple[Cordon, ...]] = _reader(w.Cordons, lambda found: found.cordons)
_TENANTS: Callable[[bytes], tuple[TenantReport, ...]] = _reader(w.Tenants, lambda found: found.tenants)
_TENANT: Callable[[bytes], TenantReport] = _reader(TenantReport, lambda found: found)
_TRAIL: Callable[[bytes], w.Trail] = _reader(w.Trail, lambda found: found)
_AUDIT_REPORT: Callable[[bytes], AuditReport] = _reader(AuditReport, lambda found: found)
_WHOAMI: Callable[[bytes], w.WhoAmI] = _reader(w.WhoAmI, lambda found: found)


def _explanation(body: bytes) -> Explanation:
    from hal.broker.allocation.explain import Explanation

    found: Explanation = _read(Explanation, body)
    return found


def _status(body: bytes) -> Status:
    from hal.api.glance import Status

    found: Status = _read(Status, body)
    return found


def _repair(body: bytes) -> Repair:
    from hal.agent.repair import Repair

    found: Repair = _read(Repair, body)
    return found


def _nothing(body: bytes) -> None:
    return None


def _about(tenant: str | None) -> dict[str, str]:
    return {} if tenant is None else {"tenant": tenant}


def _at(lease_id: str, verb: str = "") -> str:
    return f"/v1/leases/{quote(lease_id, safe='')}{verb}"


def submit(claims: Sequence[Claim], dry_run: bool) -> Call[list[Answer]]:
    """Decide many claims."""
    path = "/v1/dry-run" if dry_run else "/v1/claims:batch"
    return Call("POST", path, _ANSWERS, _ENCODER.encode(w.ClaimsBody(claims=tuple(claims))))


def wait_for(claim_id: str, seconds: float) -> Call[Answer]:
    """Ask what became of a claim, within so many seconds."""
    path = f"/v1/claims/{quote(claim_id, safe='')}"
    return Call("GET", path, _ANSWER, query={"wait_seconds": f"{seconds:.3f}"}, seconds=seconds)


def explain(claim: Claim) -> Call[Explanation]:
    """Say why not."""
    return Call("POST", "/v1/explain", _explanation, _ENCODER.encode(claim))


def renew(lease_id: str, ttl_seconds: float | None, tenant: str | None) -> Call[Lease]:
    """Renew."""
    body = _ENCODER.encode(w.RenewBody(ttl_seconds=ttl_seconds))
    return Call("POST", _at(lease_id, "/renew"), _LEASE, body, _about(tenant))


def resize(lease_id: str, replicas: int, tenant: str | None) -> Call[Lease]:
    """Resize."""
    return Call(
        "POST", _at(lease_id, "/resize"), _LEASE, _ENCODER.encode(w.ResizeBody(replicas=replicas)), _about(tenant)
    )


def release(lease_id: str, tenant: str | None) -> Call[Lease]:
    """Release."""
    return Call("POST", _at(lease_id, "/release"), _LEASE, query=_about(tenant))


def get(lease_id: str, tenant: str | None) -> Call[Ticket]:
    """Return a lease's ticket."""
    return Call("GET", _at(lease_id), _TICKET, query=_about(tenant))


def leases(tenant: str | None) -> Call[tuple[Lease, ...]]:
    """List leases."""
    return Call("GET", "/v1/leases", _LEASES, query=_about(tenant))


def queue(tenant: str | None) -> Call[tuple[Waiting, ...]]:
    """List waiting claims."""
    return Call("GET", "/v1/claims", _QUEUE, query=_about(tenant))


def status() -> Call[Status]:
    """The broker at a glance."""
    return Call("GET", "/v1/status", _status)


def devices() -> Call[tuple[Device, ...]]:
    """All devices."""
    return Call("GET", "/v1/devices", _DEVICES)


def events(since: int, tenant: str | None) -> Call[w.Events]:
    """One page of history."""
    return Call("GET", "/v1/events", _EVENTS, query={"since": str(since), "limit": "5000", **_about(tenant)})


def stream_query(since: int, seconds: float, tenant: str | None) -> dict[str, str]:
    """Return the query of the event stream, for so many seconds at most."""
    return {"since": str(since), "seconds": f"{min(seconds, LONGEST_STREAM_SECONDS):.3f}", **_about(tenant)}


def cordon(target: str, why: str) -> Call[tuple[Cordon, ...]]:
    """Cordon."""
    return Call("POST", "/v1/cordons", _CORDONS, _ENCODER.encode(w.CordonBody(target=target, why=why)))


def uncordon(target: str) -> Call[tuple[Cordon, ...]]:
    """Take a cordon back."""
    return Call("DELETE", f"/v1/cordons/{quote(target, safe='')}", _CORDONS)


def cordons() -> Call[tuple[Cordon, ...]]:
    """All cordons."""
    return Call("GET", "/v1/cordons", _CORDONS)


def drain(target: str, why: str, grace_seconds: float | None) -> Call[tuple[Lease, ...]]:
    """Drain."""
    body = w.DrainBody(target=target, why=why, grace_seconds=grace_seconds)
    return Call("POST", "/v1/drains", _LEASES, _ENCODER.encode(body))


def tenants(tenant: str | None) -> Call[tuple[TenantReport, ...]]:
    """List tenants."""
    return Call("GET", "/v1/tenants", _TENANTS, query=_about(tenant))


def set_tenant(tenant: Tenant) -> Call[TenantReport]:
    """Say what a tenant may have."""
    return Call("PUT", "/v1/tenants", _TENANT, _ENCODER.encode(tenant))


def remove_tenant(path: str) -> Call[None]:
    """Forget what was said about a tenant."""
    return Call("DELETE", "/v1/tenants", _nothing, query={"path": path})


def repair(device: str, words: dict[str, Any]) -> Call[Repair]:
    """Repair a device."""
    body = w.RepairBody(device=device, **words)
    return Call("POST", "/v1/repairs", _repair, _ENCODER.encode(body), seconds=body.deadline_seconds)


def audit(since: int) -> Call[w.Trail]:
    """One page of the audit trail."""
    return Call("GET", "/v1/audit", _TRAIL, query={"since": str(since)})


def verify_audit(anchor: Anchor | None) -> Call[AuditReport]:
    """Check the whole trail."""
    query = {} if anchor is None else {"anchor": f"{anchor.sequence}:{anchor.hash}"}
    return Call("GET", "/v1/audit/report", _AUDIT_REPORT, query=query, seconds=AUDIT_SECONDS)


def whoami() -> Call[w.WhoAmI]:
    """Whom the server takes us for."""
    return Call("GET", "/v1/whoami", _WHOAMI)


class Frames:
    """Server-sent events out of bytes (HTML standard, section 9.2). ``cursor`` is the last id that was seen."""

    def __init__(self, since: int) -> None:
        self.cursor = since
        self._rest = b""
        self._id: int | None = None
        self._kind = ""
        self._data: list[bytes] = []

    def begin(self) -> None:
        """Forget what a broken connection left behind; the cursor stays."""
        self._rest = b""
        self._clear()

    def _clear(self) -> None:
        self._id, self._kind, self._data = None, "", []

    def feed(self, chunk: bytes) -> list[Event]:
        """Take what was received; return the events that it completes. Raises the error that a problem stands for."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        found = (self._take(line) for line in lines)
        return [event for event in found if event is not None]

    def _take(self, line: bytes) -> Event | None:
        if line:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"id" and value.isdigit():
                self._id = int(value)
            elif name == b"event":
                self._kind = value.decode("utf-8", "replace")
            elif name == b"data":
                self._data.append(value)
            return None
        data, kind, at = b"\n".join(self._data), self._kind, self._id
        self._clear()
        if kind == "problem":
            raise error_from(0, w.PROBLEM_MEDIA_TYPE, data)
        if at is not None:
            self.cursor = max(self.cursor, at)
        return msgspec.json.decode(data, type=Event) if data else None


def granted(claim: Claim, answer: Answer) -> Lease | None:
    """Return the lease if the answer says that it is ready, None if it is to be waited for; raise for a no."""
    match answer:
        case Granted(lease=lease):
            return lease if lease.state is not LeaseState.BOUND else None
        case Queued():
            return None
        case Refused(reason=reason):
            raise ClaimRefused(reason, device=claim.id, during="claim", hint="hal explain, with the same words")
        case Undecided(steps=steps):
            raise BrokerError(
                f"undecided: the search was given up after {steps} steps",
                device=claim.id,
                during="claim",
                hint="ask for fewer requests or constraints at once",
            )
    raise AssertionError(answer)


def is_pending(answer: Answer) -> bool:
    """Whether it is worth asking again: the claim waits, or is being prepared."""
    return isinstance(answer, Queued) or (isinstance(answer, Granted) and answer.lease.state is LeaseState.BOUND)


def still_waiting(claim: Claim, answer: Answer) -> ClaimRefused:
    """Return the error for a claim that was waited for long enough; it keeps its place in the queue."""
    place = (
        f"it is at position {answer.position} of the queue" if isinstance(answer, Queued) else "it is being prepared"
    )
    return ClaimRefused(
        f"not yet: {place}", device=claim.id, during="claim", hint=f"wait on, or hal release {claim.id}"
    )
