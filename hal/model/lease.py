"""What is given: an allocation, held as a lease with an expiry and a fence."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hal.model.kind import Kind


class LeaseState(StrEnum):
    """Where a lease is in its life. ``suspect``: expired, but the devices are not proven to be let go."""

    BOUND = "bound"
    PREPARED = "prepared"
    SUSPECT = "suspect"
    RELEASING = "releasing"
    ENDED = "ended"


class AllocatedDevice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One device of an allocation, with what a holder needs to open it without asking anybody."""

    id: str
    kind: Kind
    name: str
    node: str
    driver: str
    request: str = ""
    vendor: str = ""
    aliases: tuple[str, ...] = ()


class Lease(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An allocation held by a tenant until ``expires_at`` (seconds since the Unix epoch, broker's steady clock).

    ``fence`` grows with every grant; a driver refuses a holder whose fence is lower than the highest it has seen.
    ``id`` is the claim's id.
    """

    id: str
    tenant: str
    devices: tuple[AllocatedDevice, ...]
    fence: int
    granted_at: float
    expires_at: float
    ttl_seconds: float
    state: LeaseState = LeaseState.BOUND
    why_ended: str = ""
    ended_at: float = 0.0
