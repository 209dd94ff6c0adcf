"""What is asked."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hal.errors import ClaimError
from hal.model.kind import Kind

MOST_REQUESTS = 64
MOST_DEVICES = 100_000
LONGEST_ID = 128
LONGEST_TTL_SECONDS = 10 * 365.25 * 86400
"""Ten years. Who needs a device for longer renews."""


class Locality(StrEnum):
    """What the devices of a claim must share."""

    NODE = "node"
    NUMA = "numa"
    PCI_SWITCH = "pci-switch"
    RACK = "rack"


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Some devices of one kind. ``where`` is a selector expression (see :mod:`hal.model.selector`)."""

    kind: Kind
    count: int = 1
    where: str = ""
    name: str = ""


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """All devices of the named requests (all requests if none is named) share one place."""

    same: Locality
    requests: tuple[str, ...] = ()


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """All or nothing: every request is met under every constraint, or none is.

    ``id`` is chosen by the caller (or made for them) and makes the claim idempotent: asked twice, granted once.
    ``ttl_seconds`` is how long the lease lasts without renewal.
    """

    id: str
    requests: tuple[Request, ...]
    constraints: tuple[Constraint, ...] = ()
    tenant: str = "default"
    ttl_seconds: float = 60.0


def check_claim(claim: Claim) -> Claim:
    """Return the claim, or raise :class:`~hal.errors.ClaimError` for one that makes no sense by itself."""
    check_holder(claim)
    _check_types(claim)
    if not claim.requests:
        raise _refuse(claim, "it asks for nothing", "name a kind, as in: hal claim gpu")
    if len(claim.requests) > MOST_REQUESTS:
        raise _refuse(claim, f"{len(claim.requests)} requests, at most {MOST_REQUESTS} are allowed")
    names = [request.name for request in claim.requests if request.name]
    if len(set(names)) < len(names):
        raise _refuse(claim, "two requests have the same name")
    for request in claim.requests:
        if not 1 <= request.count <= MOST_DEVICES:
            raise _refuse(claim, f"count is {request.count}, it must be between 1 and {MOST_DEVICES}")
    for constraint in claim.constraints:
        for name in constraint.requests:
            if name not in names:
                raise _refuse(claim, f"a constraint speaks of the request {name!r}, which the claim does not have")
    return claim


def check_holder(claim: Claim) -> None:
    """Check what a claim says about its holder alone: id, tenant and time to live."""
    word = claim.id
    if not _is_word(word) or " " in word:
        raise _refuse(claim, f"the id {claim.id!r} is not 1 to {LONGEST_ID} printable characters without spaces")
    if not _is_word(claim.tenant):
        raise _refuse(claim, f"the tenant {claim.tenant!r} is not 1 to {LONGEST_ID} printable characters")
    if not (type(claim.ttl_seconds) is float and 0 < claim.ttl_seconds <= LONGEST_TTL_SECONDS):
        check_ttl(claim.ttl_seconds, word, "claim")


def check_ttl(seconds: float, lease_id: str, during: str) -> None:
    """Raise :class:`~hal.errors.ClaimError` for a time to live that is no number of seconds up to ten years."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= LONGEST_TTL_SECONDS:
        raise ClaimError(
            f"ttl_seconds is {seconds!r}, it must be above 0 and at most {LONGEST_TTL_SECONDS:.0f} (ten years)",
            device=lease_id,
            during=during,
            hint="a shorter time, and renew",
        )


def _is_word(text: str) -> bool:
    return isinstance(text, str) and 0 < len(text) <= LONGEST_ID and text.isprintable()


def _check_types(claim: Claim) -> None:
    """Structs are not checked when they are made; what the journal could not read again must not get there."""
    try:
        same = msgspec.convert(msgspec.to_builtins(claim), Claim) == claim
    except (msgspec.ValidationError, TypeError, UnicodeError) as error:
        raise _refuse(claim, str(error), "see hal.model.claim for the type of each field") from error
    if not same:
        raise _refuse(claim, "a field has another type than it must have", "requests and constraints are tuples")
    for constraint in claim.constraints:
        if not isinstance(constraint.same, Locality):
            raise _refuse(claim, f"same is {constraint.same!r}, not a Locality", "Locality." + constraint.same.upper())
    for request in claim.requests:
        if not isinstance(request.kind, Kind):
            raise _refuse(claim, f"kind is {request.kind!r}, not a Kind", f"Kind({request.kind!r})")
        if isinstance(request.count, bool) or not isinstance(request.count, int):
            raise _refuse(claim, f"count is {request.count!r}, it must be a whole number")
        if request.name and not _is_word(request.name):
            raise _refuse(claim, f"the request's name {request.name!r} is not up to {LONGEST_ID} printable characters")
        if not request.where.isascii() and not _encodes(request.where):
            raise _refuse(claim, f"the selector {request.where!r} is not text")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def _refuse(claim: Claim, what: str, hint: str | None = None) -> ClaimError:
    return ClaimError(what, device=claim.id if _is_word(claim.id) else None, during="claim", hint=hint)


def request_names(claim: Claim) -> tuple[str, ...]:
    """Return what each request is called: its name, or its kind, numbered where that is not unique."""
    taken = {request.name for request in claim.requests if request.name}
    names: list[str] = []
    for request in claim.requests:
        name = request.name
        if not name:
            name = request.kind.value
            number = 2
            while name in taken:
                name = f"{request.kind.value}-{number}"
                number += 1
            taken.add(name)
        names.append(name)
    return tuple(names)
