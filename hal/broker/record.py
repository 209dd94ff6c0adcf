"""What the journal holds: one record for each thing decided or seen. The state is what these add up to."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.health import Condition
from hal.model.lease import AllocatedDevice, Lease
from hal.model.tenant import Tenant

T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="type"):
    """Base of all records. ``at`` is the broker's steady time, in seconds since the Unix epoch."""

    at: float


class JournalBegun(Record, frozen=True, gc=False, tag="journal-begun"):
    """The first record. ``fence`` is where fences start: above all that an earlier, lost journal can have given."""

    fence: int


class BootSeen(Record, frozen=True, gc=False, tag="boot-seen"):
    """The machine runs under this boot id; steady time is CLOCK_BOOTTIME plus ``clock_offset_seconds``."""

    boot_id: str
    clock_offset_seconds: float = 0.0


# --- devices


class DeviceSeen(Record, frozen=True, gc=False, tag="device-seen"):
    """A device as it is now; replaces what was known of it."""

    device: Device


class DeviceForgotten(Record, frozen=True, gc=False, tag="device-forgotten"):
    """A device is no longer there, and nobody held it."""

    device: str


class DeviceFreed(Record, frozen=True, gc=False, tag="device-freed"):
    """A fenced slot (a device, a part of one, or a share in one) is proven to be let go."""

    device: str
    proof: str


class DeviceRepaired(Record, frozen=True, gc=False, tag="device-repaired"):
    """A repair passed: of the device's conditions only these are left."""

    device: str
    how: str
    conditions: tuple[Condition, ...] = ()


class Cordoned(Record, frozen=True, gc=False, tag="cordoned"):
    """A device (its id) or a machine (``node:NAME``) gets no new leases; ``draining`` ones lose those they have."""

    target: str
    why: str
    by: str
    draining: bool = False


class Uncordoned(Record, frozen=True, gc=False, tag="uncordoned"):
    """A cordon was taken back."""

    target: str
    by: str


# --- claims in the queue


class ClaimQueued(Record, frozen=True, gc=False, tag="claim-queued"):
    """A claim waits."""

    claim: Claim


class ClaimKept(Record, frozen=True, gc=False, tag="claim-kept"):
    """These devices are kept for a waiting claim from ``starts_at`` on (None: as soon as they come free).

    It replaces what was kept for it before; ``why`` says what it waits for.
    """

    claim: str
    devices: tuple[AllocatedDevice, ...]
    starts_at: float | None = None
    why: str = ""


class ClaimLeft(Record, frozen=True, gc=False, tag="claim-left"):
    """A waiting claim leaves the queue without having been granted."""

    claim: str
    why: str


# --- leases


class LeaseGranted(Record, frozen=True, gc=False, tag="lease-granted"):
    """The commit point of a claim."""

    claim: Claim
    lease: Lease


class LeasePrepared(Record, frozen=True, gc=False, tag="lease-prepared"):
    """The agent has prepared every device. ``opened_as``: the device id of each part that was made, by slot."""

    lease: str
    opened_as: dict[str, str] = {}


class LeaseRenewed(Record, frozen=True, gc=False, tag="lease-renewed"):
    """The holder lives; ``ttl_seconds`` from now on, if that changed."""

    lease: str
    expires_at: float
    ttl_seconds: float | None = None


class LeaseNoticed(Record, frozen=True, gc=False, tag="lease-noticed"):
    """Its holder is told to leave until ``leave_by``; with ``leaving`` these replicas only, and the rest stays."""

    lease: str
    leave_by: float
    why: str
    leaving: tuple[int, ...] = ()


class LeaseGrown(Record, frozen=True, gc=False, tag="lease-grown"):
    """More replicas were given, under a fence of their own. They are bound, not prepared."""

    lease: str
    devices: tuple[AllocatedDevice, ...]
    fence: int


class LeaseResized(Record, frozen=True, gc=False, tag="lease-resized"):
    """Its holder wants so many replicas: it does not grow beyond that by itself."""

    lease: str
    wanted: int


class LeaseShrunk(Record, frozen=True, gc=False, tag="lease-shrunk"):
    """These replicas are gone from it. ``freed`` slots are proven to be let go, ``fenced`` are not (slot -> why)."""

    lease: str
    replicas: tuple[int, ...]
    freed: tuple[str, ...]
    proof: str
    fenced: dict[str, str] = {}


class LeaseSuspected(Record, frozen=True, gc=False, tag="lease-suspected"):
    """It expired. Its devices stay held until there is proof."""

    lease: str


class LeaseReleasing(Record, frozen=True, gc=False, tag="lease-releasing"):
    """Its end has been decided; the agent takes the devices back."""

    lease: str
    why: str


class LeaseEnded(Record, frozen=True, gc=False, tag="lease-ended"):
    """It is over. ``freed`` slots are proven to be let go, ``fenced`` ones are not (slot -> why) and stay closed.

    ``returned`` means that the claim was never acknowledged: its id is as if it had never been used.
    """

    lease: str
    freed: tuple[str, ...]
    proof: str
    fenced: dict[str, str] = {}
    returned: bool = False


# --- tenants


class TenantSet(Record, frozen=True, gc=False, tag="tenant-set"):
    """What a tenant may have, from now on."""

    tenant: Tenant


class TenantRemoved(Record, frozen=True, gc=False, tag="tenant-removed"):
    """What was said about a tenant is forgotten."""

    path: str


AnyRecord = (
    JournalBegun
    | BootSeen
    | DeviceSeen
    | DeviceForgotten
    | DeviceFreed
    | DeviceRepaired
    | Cordoned
    | Uncordoned
    | ClaimQueued
    | ClaimKept
    | ClaimLeft
    | LeaseGranted
    | LeasePrepared
    | LeaseRenewed
    | LeaseNoticed
    | LeaseGrown
    | LeaseResized
    | LeaseShrunk
    | LeaseSuspected
    | LeaseReleasing
    | LeaseEnded
    | TenantSet
    | TenantRemoved
)

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AnyRecord)


def checked(value: object, kind: type[T]) -> T:
    """Return a value as the journal would give it back.

    Raises ``TypeError``, ``ValueError`` or ``msgspec.MsgspecError`` for one that it could not: structs are not checked
    when a driver makes them.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__}, not {kind.__name__}")
    return msgspec.json.decode(_ENCODER.encode(value), type=kind)


def encode_record(record: AnyRecord) -> bytes:
    """Return the record as JSON, its type under ``type``."""
    return _ENCODER.encode(record)


def decode_record(text: bytes | str) -> AnyRecord:
    """Return the record that JSON stands for; raises ``msgspec.ValidationError`` for anything else."""
    record: AnyRecord = _DECODER.decode(text)
    return record
