"""The whole state as a value, and the values of which it is made beside leases and devices."""

from __future__ import annotations

import msgspec

from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.lease import AllocatedDevice, Lease
from hal.model.tenant import Tenant


class Fenced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A slot whose last lease is over without proof that its holder let go."""

    lease: str
    fence: int
    tenant: str
    device: AllocatedDevice
    why: str


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A claim in the queue, and the devices that are kept for it, from ``starts_at`` on where that is known."""

    claim: Claim
    since: float
    kept: tuple[AllocatedDevice, ...] = ()
    starts_at: float | None = None
    why: str = ""


class Cordon(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device (its id) or a whole machine (``node:NAME``) that gets no new leases, and who said so."""

    target: str
    why: str
    by: str
    at: float
    draining: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state at one revision, as it is stored and compared."""

    revision: int
    fence: int
    boot_id: str
    clock_offset_seconds: float
    latest_at: float
    devices: list[Device]
    leases: list[Lease]
    claims: list[Claim]
    ended: list[Lease]
    fenced: dict[str, Fenced]
    waiting: list[Entry] = []
    left: dict[str, str] = {}
    cordons: list[Cordon] = []
    tenants: list[Tenant] = []
    over: list[str] = []
