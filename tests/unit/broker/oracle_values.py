"""What the oracle is told: devices, who holds what, what selectors mean, how devices may be parted. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from hal.model.claim import Locality, Request
from hal.model.device import Device
from hal.model.kind import Kind

Predicate = Callable[[Device], bool | None]


@dataclass(frozen=True)
class Hold:
    """Somebody has a device: whole, so much of it (``uses``), or so many slices from the first on."""

    device: str
    uses: Mapping[str, int] = field(default_factory=dict)
    first: int = 0
    slices: int = 0


class Take(NamedTuple):
    """One thing given: a device by its number; what is used up of it if shared; its slices if parted (0: whole)."""

    device: int
    uses: tuple[tuple[str, int], ...] = ()
    slices: int = 0


@dataclass(frozen=True, eq=False)
class World:
    """Everything that decides. ``meaning`` has each selector's text; ``profiles`` is by device, then by profile:
    how many slices it takes, and where it may start. ``made`` are parts that exist as devices of their own, by id: the
    slices of their parent that they take, whoever has them.
    """

    devices: tuple[Device, ...]
    holds: tuple[Hold, ...] = ()
    cordoned: frozenset[str] = frozenset()
    meaning: Mapping[str, Predicate] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, tuple[int, tuple[int, ...]]]] = field(default_factory=dict)
    made: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def by_id(self) -> dict[str, Device]:
        return {device.id: device for device in self.devices}

    @cached_property
    def number(self) -> dict[str, int]:
        return {device.id: i for i, device in enumerate(self.devices)}

    @cached_property
    def families(self) -> list[frozenset[int]]:
        """For each device the numbers of its ancestors and descendants."""
        lines = [{d.id for d in self.line(device)} for device in self.devices]
        return [
            frozenset(
                j for j, other in enumerate(self.devices) if i != j and (other.id in lines[i] or device.id in lines[j])
            )
            for i, device in enumerate(self.devices)
        ]

    @cached_property
    def taken_ways(self) -> dict[tuple[Request, int], list[Take]]:
        return {}

    def line(self, device: Device) -> list[Device]:
        found, at = [device], device.parent
        while at in self.by_id:
            found.append(self.by_id[at])
            at = found[-1].parent
        return found

    @cached_property
    def held(self) -> dict[int, list[Hold]]:
        found: dict[int, list[Hold]] = {}
        for hold in self.holds:
            if hold.device in self.number:
                found.setdefault(self.number[hold.device], []).append(hold)
        return found

    @cached_property
    def ports(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for device in self.devices:
            if device.kind is Kind.SWITCH:
                name = device.location.pci_address or device.name
                found.setdefault(device.location.node, set()).add(name)
        return found

    def known_places(self, what: str) -> list[tuple[object, ...]]:
        found = self.all_places.get(what)
        if found is None:
            found = self.all_places[what] = [self.places(device, what) for device in self.devices]
        return found

    @cached_property
    def all_places(self) -> dict[str, list[tuple[object, ...]]]:
        return {}

    def marks(self, group: Sequence[Take]) -> tuple[int, int]:
        taken = sum(1 << take.device for take in group)
        return taken, taken | sum(1 << i for i in {j for take in group for j in self.families[take.device]})

    def places(self, device: Device, what: str) -> tuple[object, ...]:
        """The places of one level that a device lies in, inmost last, or the value of an attribute; empty if none."""
        where = device.location
        match what:
            case Locality.NODE:
                return (where.node,)
            case Locality.RACK:
                return (where.rack,) if where.rack is not None else ()
            case Locality.NUMA:
                return ((where.node, where.numa_node),) if where.numa_node is not None else ()
            case Locality.PCI_SWITCH:
                ports = self.ports.get(where.node, set())
                return tuple((where.node, bridge) for bridge in where.pci_path if bridge in ports)
            case Locality.LINK_DOMAIN:
                value = device.value("link_domain")
                return () if value is None else (value,)
            case _:
                value = device.value(what)
                return () if value is None else ((type(value).__name__, value),)
