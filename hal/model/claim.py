"""What is asked."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hal.errors import ClaimError
from hal.model.kind import Kind

MOST_REQUESTS = 64
MOST_DEVICES = 100_000
LONGEST_ID = 128


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
    if not claim.id or len(claim.id) > LONGEST_ID or not claim.id.isprintable() or " " in claim.id:
        raise _refuse(claim, f"the id {claim.id!r} is not 1 to {LONGEST_ID} printable characters without spaces")
    if not claim.tenant:
        raise _refuse(claim, "the tenant is empty")
    if not 0 < claim.ttl_seconds < float("inf"):
        raise _refuse(claim, f"ttl_seconds is {claim.ttl_seconds}, it must be above zero and finite")


def _refuse(claim: Claim, what: str, hint: str | None = None) -> ClaimError:
    return ClaimError(what, device=claim.id or None, during="claim", hint=hint)


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
