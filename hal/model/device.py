"""A device as values: identity, place, attributes, capacity, links, conditions."""

from __future__ import annotations

import msgspec

from hal.model.attributes import Absence, Attribute, Value
from hal.model.health import Condition, Health, Presence, worst
from hal.model.kind import Kind


class Location(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a device sits.

    ``pci_path`` runs from the host bridge to the device's own parent: ``("pci0000:15", "0000:15:01.0",
    "0000:16:00.0")``. Two devices share a PCI switch if they share a bridge that is a switch port. ``numa_node`` is
    None when no rule could tell; the attribute of that name says which rule spoke.
    """

    node: str
    rack: str | None = None
    numa_node: int | None = None
    pci_address: str | None = None
    pci_path: tuple[str, ...] = ()
    slot: str | None = None


class Link(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One edge of the wiring.

    ``type`` is ``nvlink``, ``c2c``, ``pcie``, ``infiniband``, ``ethernet`` or ``cxl``; ``peer`` a device id, or None
    for the far side of a cable. Bandwidth is bytes a second in one direction for all lanes together.
    """

    type: str
    peer: str | None = None
    lanes: int = 1
    bandwidth_bytes_per_second: float | None = None
    state: str = "up"
    detail: str = ""


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that can be found, placed, and, if ``allocatable``, leased.

    ``id`` is stable across reboots and unique in the data center. ``name`` is the short one that people type, unique
    on its node (``gpu0``, ``mlx5_0``). ``aliases`` are other true names, each with its name space:
    ``pci:0000:17:00.0``, ``uuid:GPU-…``, ``guid:…``, ``rdma:mlx5_0``, ``netdev:eth0``, ``block:nvme0n1``.
    ``parent`` is the device whose fate this one shares: when the parent fails or is reset, so is this.
    ``capacity`` holds what can be used up, with the unit in the name (``memory_bytes``, ``dpus``).
    """

    id: str
    kind: Kind
    name: str
    driver: str
    location: Location
    aliases: tuple[str, ...] = ()
    attributes: dict[str, Attribute] = {}
    capacity: dict[str, int] = {}
    links: tuple[Link, ...] = ()
    conditions: tuple[Condition, ...] = ()
    parent: str | None = None
    presence: Presence = Presence.PRESENT
    allocatable: bool = False

    @property
    def health(self) -> Health:
        """The worst of the conditions; a ghost is ``unknown``, a missing device ``failed``."""
        if self.presence is Presence.MISSING:
            return Health.FAILED
        found = worst(self.conditions)
        if self.presence is Presence.GHOST and found is Health.HEALTHY:
            return Health.UNKNOWN
        return found

    def value(self, name: str) -> Value | None:
        """Return the attribute's value, or None if it is absent."""
        attribute = self.attributes.get(name)
        return attribute.value if attribute is not None else None

    def why_absent(self, name: str) -> Absence | None:
        """Return why the attribute has no value, or None if it has one."""
        attribute = self.attributes.get(name)
        return Absence.NOT_REPORTED if attribute is None else attribute.absent


def alias(device: Device, space: str) -> str | None:
    """Return the device's name in one name space (``pci``, ``rdma``, ``netdev``…), or None."""
    prefix = space + ":"
    for name in device.aliases:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return None
