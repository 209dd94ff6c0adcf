"""What ``hal-probe list`` says to programs, and how every report becomes JSON; the rest is in ``probe_reports``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from hal.agent.report import DriverReport
from hal.drivers.contract import Problem
from hal.model.device import Device
from hal.model.health import Health
from hal.model.kind import Kind

FORMAT = "hal-probe/1"


class DeviceRecord(Device, frozen=True, kw_only=True):
    """A device as it was found, with the health that its conditions and presence amount to."""

    health: Health


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that was looked at."""

    name: str
    rack: str | None = None


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """One ``--expect``: at least so many devices of the kind, whole ones that are present."""

    kind: Kind
    expected: int
    found: int
    met: bool


class SuggestionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Hardware that nothing drives, and what to install."""

    device: str
    node: str
    kind: Kind
    model: str
    text: str
    remedy: str


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="report"):
    """What all reports have: the format's name, when it was taken (seconds since the epoch), the exit status."""

    format: str = FORMAT
    taken_at: float
    exit_code: int
    problems: tuple[Problem, ...] = ()


class InventoryReport(Report, frozen=True, kw_only=True, tag="inventory"):
    """``hal-probe list``: every device that fits the filters, bridges and other PCI functions included."""

    nodes: tuple[NodeRecord, ...]
    devices: tuple[DeviceRecord, ...]
    drivers: tuple[DriverReport, ...] = ()
    suggestions: tuple[SuggestionRecord, ...] = ()
    expectations: tuple[Expectation, ...] = ()


def record(device: Device) -> DeviceRecord:
    """Return the device with its health written out."""
    return DeviceRecord(
        id=device.id,
        kind=device.kind,
        name=device.name,
        driver=device.driver,
        location=device.location,
        aliases=device.aliases,
        attributes=device.attributes,
        capacity=device.capacity,
        links=device.links,
        conditions=device.conditions,
        parent=device.parent,
        presence=device.presence,
        allocatable=device.allocatable,
        health=device.health,
    )


def nodes_of(devices: Iterable[Device]) -> tuple[NodeRecord, ...]:
    """Return the machines of some devices, in their order."""
    racks: dict[str, str | None] = {}
    for device in devices:
        if racks.get(device.location.node) is None:
            racks[device.location.node] = device.location.rack
    return tuple(NodeRecord(name=name, rack=rack) for name, rack in racks.items())


def encode(report: msgspec.Struct, pretty: bool = True) -> bytes:
    """Return JSON that is valid whatever the hardware said: bytes that were not UTF-8 become escapes in the text."""
    try:
        data = msgspec.json.encode(report)
    except UnicodeEncodeError:
        data = msgspec.json.encode(printable(msgspec.to_builtins(report)))
    return msgspec.json.format(data, indent=2) if pretty else data


def plain(report: msgspec.Struct) -> Any:
    """Return the report as dicts, lists and scalars, exactly as its JSON reads."""
    return msgspec.json.decode(encode(report, pretty=False))


def printable(value: Any) -> Any:
    """Return plain values with lone surrogates, which no UTF-8 text can hold, written as escapes."""
    from hal.cli.render.text import clean

    if isinstance(value, str):
        return value if value.isprintable() else "".join(clean(c) if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(item) for item in value]
    return value
