"""What the journal holds: one record for each thing decided or seen. The state is what these add up to."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from hal.model.claim import Claim
from hal.model.device import Device
from hal.model.event import Event, EventType
from hal.model.health import Condition
from hal.model.lease import Lease

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


class DeviceSeen(Record, frozen=True, gc=False, tag="device-seen"):
    """A device as it is now; replaces what was known of it."""

    device: Device


class DeviceForgotten(Record, frozen=True, gc=False, tag="device-forgotten"):
    """A device is no longer there, and nobody held it."""

    device: str


class LeaseGranted(Record, frozen=True, gc=False, tag="lease-granted"):
    """The commit point of a claim."""

    claim: Claim
    lease: Lease


class LeasePrepared(Record, frozen=True, gc=False, tag="lease-prepared"):
    """The agent has prepared every device."""

    lease: str


class LeaseRenewed(Record, frozen=True, gc=False, tag="lease-renewed"):
    """The holder lives; ``ttl_seconds`` from now on, if that changed."""

    lease: str
    expires_at: float
    ttl_seconds: float | None = None


class LeaseSuspected(Record, frozen=True, gc=False, tag="lease-suspected"):
    """It expired. Its devices stay held until there is proof."""

    lease: str


class LeaseReleasing(Record, frozen=True, gc=False, tag="lease-releasing"):
    """Its end has been decided; the agent takes the devices back."""

    lease: str
    why: str


class LeaseEnded(Record, frozen=True, gc=False, tag="lease-ended"):
    """It is over. ``freed`` devices are proven to be let go, ``fenced`` ones are not (id -> why) and stay closed.

    ``returned`` means that the claim was never acknowledged: its id is as if it had never been used.
    """

    lease: str
    freed: tuple[str, ...]
    proof: str
    fenced: dict[str, str] = {}
    returned: bool = False


class DeviceFreed(Record, frozen=True, gc=False, tag="device-freed"):
    """A fenced device is proven to be let go."""

    device: str
    proof: str


class DeviceRepaired(Record, frozen=True, gc=False, tag="device-repaired"):
    """A repair passed: of the device's conditions only these are left."""

    device: str
    how: str
    conditions: tuple[Condition, ...] = ()


AnyRecord = (
    JournalBegun
    | BootSeen
    | DeviceSeen
    | DeviceForgotten
    | LeaseGranted
    | LeasePrepared
    | LeaseRenewed
    | LeaseSuspected
    | LeaseReleasing
    | LeaseEnded
    | DeviceFreed
    | DeviceRepaired
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


def event_of(record: AnyRecord, revision: int = 0) -> Event:
    """Return the record as a line of history for people and watchers."""
    match record:
        case JournalBegun():
            type_, subject, detail = EventType.ADDED, "journal", f"fences start above {record.fence}"
        case BootSeen():
            type_, subject, detail = EventType.BOOTED, "machine", record.boot_id
        case DeviceSeen(device=device):
            type_, subject = EventType.CHANGED, device.id
            detail = "; ".join(f"{c.type}: {c.evidence}" for c in device.conditions) or device.presence.value
        case DeviceForgotten():
            type_, subject, detail = EventType.REMOVED, record.device, ""
        case LeaseGranted(lease=lease):
            type_, subject = EventType.GRANTED, lease.id
            detail = f"{lease.tenant}, fence {lease.fence}: " + ", ".join(device.name for device in lease.devices)
        case LeasePrepared():
            type_, subject, detail = EventType.PREPARED, record.lease, ""
        case LeaseRenewed():
            type_, subject, detail = EventType.RENEWED, record.lease, f"until {record.expires_at:.3f}"
        case LeaseSuspected():
            type_, subject, detail = EventType.SUSPECTED, record.lease, "expired"
        case LeaseReleasing():
            type_, subject, detail = EventType.RELEASING, record.lease, record.why
        case LeaseEnded():
            type_, subject, detail = EventType.RELEASED, record.lease, record.proof
            if record.fenced:
                detail += "; still fenced: " + ", ".join(f"{name} ({why})" for name, why in record.fenced.items())
        case DeviceFreed():
            type_, subject, detail = EventType.FREED, record.device, record.proof
        case DeviceRepaired():
            type_, subject, detail = EventType.REPAIRED, record.device, record.how
    return Event(type=type_, subject=subject, at=record.at, revision=revision, detail=detail)
