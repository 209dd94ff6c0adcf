"""What crosses the socket between a server and its clients: bodies, answers, and problems (RFC 9457)."""

from __future__ import annotations

from typing import Any

import msgspec

from hal import errors
from hal.api.surface import TenantReport, Waiting
from hal.broker.command import Granted, Queued, Refused, Undecided
from hal.broker.journal.audit import AuditLine
from hal.broker.journal.compacted import Compacted
from hal.broker.snapshot import Cordon
from hal.errors import BrokerError, HalError
from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.event import Event
from hal.model.lease import Lease

AnyAnswer = Granted | Queued | Refused | Undecided
PROBLEM_TYPE = "urn:hal:error:"
PROBLEM_MEDIA_TYPE = "application/problem+json"


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what a client sends."""


class ClaimsBody(Body, frozen=True):
    """Many claims, decided in one commit."""

    claims: tuple[Claim, ...]


class RenewBody(Body, frozen=True):
    """Renew; ``ttl_seconds`` is another time to live from now on."""

    ttl_seconds: float | None = None


class ResizeBody(Body, frozen=True):
    """How many replicas an elastic lease shall have."""

    replicas: int


class CordonBody(Body, frozen=True):
    """Keep a device or a machine from new leases."""

    target: str
    why: str = ""


class DrainBody(Body, frozen=True):
    """Cordon, and tell every holder to leave within the grace, or as long as each was promised."""

    target: str
    why: str = ""
    grace_seconds: float | None = None


class RepairBody(Body, frozen=True):
    """Repair a device that nobody holds."""

    device: str
    scrub: bool = False
    by_operator: str | None = None
    deadline_seconds: float = 120.0


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each claim, in their order."""

    answers: tuple[AnyAnswer, ...]


class OneAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a claim."""

    answer: AnyAnswer


class LeaseReply(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as it is now."""

    lease: Lease


class Leases(msgspec.Struct, frozen=True, kw_only=True):
    """Leases that are not over."""

    leases: tuple[Lease, ...]


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Waiting claims, who is next first."""

    waiting: tuple[Waiting, ...]


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """All devices as they were last seen."""

    devices: tuple[Device, ...]


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """One page of history. ``next`` is the cursor for what follows; ``more`` tells that something follows already."""

    events: tuple[Event, ...]
    next: int
    more: bool = False


class Cordons(msgspec.Struct, frozen=True, kw_only=True):
    """All cordons."""

    cordons: tuple[Cordon, ...]


class Tenants(msgspec.Struct, frozen=True, kw_only=True):
    """Tenants with what they use."""

    tenants: tuple[TenantReport, ...]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server works; ``detail`` says what keeps it from it."""

    status: str
    detail: str = ""


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the audit trail; ``next`` is the cursor for what follows."""

    lines: tuple[AuditLine, ...]
    next: int
    more: bool = False


class WhoAmI(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the server takes the caller for, and by what; ``now`` is the time by the broker's clock."""

    tenant: str
    operator: bool
    name: str
    by: str
    now: float = 0.0


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A failure as RFC 9457 writes it; ``device``, ``during`` and ``hint`` are those of the error.

    ``retry_after_seconds`` is when it makes sense to try again, ``oldest`` the first revision that is still there.
    """

    type: str
    title: str
    status: int
    detail: str
    device: str | None = None
    during: str | None = None
    hint: str | None = None
    code: int | None = None
    retry_after_seconds: float | None = None
    oldest: int | None = None


class Limited(BrokerError):
    """Too many requests or open claims for the moment; ``retry_after_seconds`` says when to try again."""

    retry_after_seconds: float = 1.0


class Forbidden(BrokerError):
    """Only operators may do that."""


class Unauthenticated(BrokerError):
    """Who is asking is not known: no certificate or token, or one that is forged or over."""


class Unreachable(BrokerError):
    """No server answers; whether the request was done is not known, and asking again with the same id is safe."""


class BadRequest(errors.UsageError):
    """A request that the server cannot read: no JSON, an unknown field, a wrong type, too large, too slow."""

    status: int = 400


_STATUS: dict[type[HalError], int] = {
    Limited: 429,
    Forbidden: 403,
    Unauthenticated: 401,
    Compacted: 410,
    Unreachable: 503,
    errors.LeaseNotFound: 404,
    errors.LeaseEnded: 410,
    errors.StaleFence: 409,
    errors.DeviceNotFound: 404,
    errors.DeviceGone: 409,
    errors.DeadlineExceeded: 504,
    errors.AccessDenied: 403,
    errors.InvalidArgument: 400,
    errors.DeviceError: 409,
    errors.ClaimRefused: 409,
    errors.JournalError: 503,
    errors.NotReady: 409,
    errors.UsageError: 400,
    errors.BrokerError: 409,
}
_LOCAL = {kind.__name__: kind for kind in (Limited, Forbidden, Unauthenticated, Compacted, Unreachable, BadRequest)}


def status_of(error: HalError) -> int:
    """Return the HTTP status for an error: that of its nearest kind that has one, else 500."""
    if isinstance(error, BadRequest):
        return error.status
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def problem_of(error: HalError) -> Problem:
    """Return an error as it crosses the socket."""
    kind = type(error)
    known = kind.__name__ in _LOCAL or getattr(errors, kind.__name__, None) is kind
    public = kind if known else next(base for base in kind.__mro__ if getattr(errors, base.__name__, None) is base)
    return Problem(
        type=PROBLEM_TYPE + public.__name__,
        title=(public.__doc__ or public.__name__).split("\n")[0].rstrip("."),
        status=status_of(error),
        detail=error.message,
        device=None if error.device is None else str(error.device),
        during=error.during,
        hint=error.hint,
        code=getattr(error, "code", None),
        retry_after_seconds=_retry_after(error),
        oldest=getattr(error, "oldest", None),
    )


def _retry_after(error: HalError) -> float | None:
    if isinstance(error, Limited):
        return error.retry_after_seconds
    return 1.0 if isinstance(error, errors.JournalError) and not isinstance(error, Compacted) else None


def error_of(problem: Problem) -> HalError:
    """Return the error that a problem stands for, of the same kind as in the broker's own process."""
    name = problem.type.removeprefix(PROBLEM_TYPE)
    if name == Compacted.__name__:
        gone = Compacted(0, problem.oldest or 0)
        gone.message, gone.device, gone.during, gone.hint = problem.detail, problem.device, problem.during, problem.hint
        return gone
    kind: Any = _LOCAL.get(name) or getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, HalError)):
        kind = BrokerError
    error: HalError = kind(problem.detail, device=problem.device, during=problem.during, hint=problem.hint)
    if isinstance(error, errors.HardwareFault):
        error.code = problem.code
    if isinstance(error, Limited) and problem.retry_after_seconds is not None:
        error.retry_after_seconds = problem.retry_after_seconds
    if isinstance(error, BadRequest):
        error.status = problem.status
    return error
