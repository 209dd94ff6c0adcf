"""What is asked."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hal.model.kind import Kind


class Locality(StrEnum):
    """What the devices of a claim must share."""

    NODE = "node"
    NUMA = "numa"
    PCI_SWITCH = "pci-switch"
    RACK = "rack"


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Some devices of one kind. ``where`` is a selector expression (see :mod:`hal.model.selector`)."""

    kind: Kind
    count: int = 1
    where: str = ""
    name: str = ""


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """All devices of the named requests (all requests if none is named) share one place."""

    same: Locality
    requests: tuple[str, ...] = ()


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """All or nothing: every request is met under every constraint, or none is.

    ``id`` is chosen by the caller (or made for them) and makes the claim idempotent: asked twice, granted once.
    ``ttl_seconds`` is how long the lease lasts without renewal.
    """

    id: str
    requests: tuple[Request, ...]
    constraints: tuple[Constraint, ...] = ()
    tenant: str = "default"
    ttl_seconds: float = 60.0
