"""The reports of topology, doctor, diff and watch. With ``InventoryReport`` they make up the published schema."""

from __future__ import annotations

import msgspec

from hal.agent.report import DriverReport
from hal.cli.probe_document import FORMAT, InventoryReport, Report
from hal.model.event import EventType
from hal.model.health import Health, Presence
from hal.model.kind import Kind
from hal.topology.distance import Matrix


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A vertex of the tree; ``device`` is the id of the device that it is."""

    id: str
    level: str
    label: str
    device: str | None = None
    contains: tuple[Place, ...] = ()


class LinkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A link beside the tree; ``peer`` is None where it leaves what we know (a cable, NVSwitch)."""

    device: str
    peer: str | None
    type: str
    lanes: int
    state: str
    bandwidth_bytes_per_second: float | None = None


class Nearest(msgspec.Struct, frozen=True, kw_only=True):
    """The RDMA NICs that are nearest to a GPU, and how near."""

    device: str
    nics: tuple[str, ...]
    distance: str


class TopologyReport(Report, frozen=True, kw_only=True, tag="topology"):
    """``hal-probe topology`` and ``hal-probe tree``: places, links, and the distances within each machine."""

    tree: Place
    links: tuple[LinkRecord, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    nearest: tuple[Nearest, ...] = ()
    legend: dict[str, str] = {}


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that doctor found: ``ok``, ``info`` or ``trouble``, and the command that mends it."""

    level: str
    text: str
    remedy: str = ""
    device: str | None = None


class KindDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """What doctor says about one kind."""

    kind: Kind
    found: int
    healthy: int
    diagnoses: tuple[Diagnosis, ...]


class DoctorReport(Report, frozen=True, kw_only=True, tag="doctor"):
    """``hal-probe doctor``: per kind what is there, and why something is not."""

    kinds: tuple[KindDiagnosis, ...]
    plugins: tuple[Diagnosis, ...] = ()
    drivers: tuple[DriverReport, ...] = ()


class ChangeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One difference: what was added, removed or changed, and in which fields (``name: before -> after``)."""

    type: EventType
    device: str
    kind: Kind
    name: str
    node: str
    fields: tuple[str, ...] = ()


class DiffReport(Report, frozen=True, kw_only=True, tag="diff"):
    """``hal-probe diff``: what it takes to get from the old to the new; devices are matched by identity."""

    old: str
    new: str
    changes: tuple[ChangeRecord, ...]


class WatchEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="report", tag="event"):
    """A line of ``hal-probe watch``.

    ``type`` is ``watching`` (the first line), ``added``, ``removed``, ``changed``, ``condition``, ``problem``, or
    ``lost`` (events were lost, so everything was looked at again).
    """

    format: str = FORMAT
    at: float
    type: str
    detail: str
    device: str | None = None
    kind: Kind | None = None
    name: str | None = None
    node: str | None = None
    health: Health | None = None
    presence: Presence | None = None


AnyReport = InventoryReport | TopologyReport | DoctorReport | DiffReport | WatchEvent
