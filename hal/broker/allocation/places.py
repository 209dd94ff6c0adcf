"""The devices by node, as sets of bits that are kept up to date: what is there, what is fit, what is held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from hal.model.claim import Locality, Request
from hal.model.device import Device
from hal.model.health import Health, Presence
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice
from hal.model.selector import Selector, compile_selector

Layout = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def why_unfit(device: Device, above: Iterable[Device | str]) -> str | None:
    """Return why a device is not handed out to anybody, or None. ``above`` are its ancestors, nearest first.

    An ancestor of which nothing is known is given as its id.
    """
    own = _own_fault(device)
    if own is not None:
        return own
    for ancestor in above:
        if isinstance(ancestor, str):
            return f"its parent {ancestor} is not in the inventory, so its health is unknown"
        fault = _own_fault(ancestor, allocatable=False)
        if fault is not None:
            return f"its parent {ancestor.name} is unfit: {fault}"
    return None


def _own_fault(device: Device, allocatable: bool = True) -> str | None:
    if allocatable and not device.allocatable:
        return "not allocatable"
    if device.presence is not Presence.PRESENT:
        return "it is missing" if device.presence is Presence.MISSING else "it does not answer"
    for condition in device.conditions:
        if condition.blocks_new_leases:
            latched = "; latched until hal repair" if condition.latched else ""
            return f"{condition.type} ({condition.severity.value}): {condition.evidence}{latched}"
    return "health is unknown" if device.health is Health.UNKNOWN else None


class Node:
    """One machine's allocatable devices, by position; ``free`` is what may be handed out now.

    ``fate[p]`` is position ``p`` with its ancestors and descendants: one of them held, none of the others is free.
    ``version`` changes when the devices do, not when they are claimed.
    """

    __slots__ = (
        "_given", "_masks", "devices", "fate", "fit", "free", "held", "index",
        "layout", "loners", "name", "place", "rack", "version",
    )  # fmt: skip

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index
        self.rack: str | None = None
        self.devices: list[Device] = []
        self.place: dict[str, int] = {}
        self.fate: tuple[int, ...] = ()
        self.loners = True
        self.fit = self.held = self.free = 0
        self.layout: Layout = ((), (), ())
        self.version = 0
        self._masks: dict[tuple[Kind, str], int] = {}
        self._given: dict[tuple[tuple[int, ...], tuple[str, ...]], tuple[AllocatedDevice, ...]] = {}

    def rebuild(self, devices: Mapping[str, Device], here: Iterable[str], held: Iterable[str]) -> None:
        """Take the devices of this node afresh, and which of them are held."""
        mine = [devices[device_id] for device_id in here]
        held = frozenset(held)
        self.devices = [device for device in mine if device.allocatable or device.id in held]
        self.place = {device.id: position for position, device in enumerate(self.devices)}
        self.rack = next((device.location.rack for device in mine if device.location.rack), None)
        self.fit = 0
        fate = [1 << position for position in range(len(self.devices))]
        for position, device in enumerate(self.devices):
            above = ancestors(device, devices)
            if why_unfit(device, above) is None:
                self.fit |= 1 << position
            for ancestor in above:
                other = self.place.get(ancestor if isinstance(ancestor, str) else ancestor.id)
                if other is not None:
                    fate[position] |= 1 << other
                    fate[other] |= 1 << position
        self.fate = tuple(fate)
        self.loners = all(mask.bit_count() == 1 for mask in fate)
        self.layout = (() if self.loners else self.fate, self._numa(), self._switches(mine))
        self.held = 0
        for device_id in held:
            if device_id in self.place:
                self.held |= 1 << self.place[device_id]
        self._masks.clear()
        self._given.clear()
        self.version += 1
        self._count()

    def hold(self, mask: int, yes: bool) -> None:
        """Mark devices as held, or as given back."""
        self.held = self.held | mask if yes else self.held & ~mask
        self._count()

    def _count(self) -> None:
        if self.loners:
            self.free = self.fit & ~self.held
            return
        taken = 0
        held = self.held
        while held:
            bit = held & -held
            held ^= bit
            taken |= self.fate[bit.bit_length() - 1]
        self.free = self.fit & ~taken

    def _numa(self) -> tuple[int, ...]:
        places: dict[int, int] = {}
        for position, device in enumerate(self.devices):
            numa = numa_of(device)
            if numa is not None:
                places[numa] = places.get(numa, 0) | 1 << position
        return tuple(places[numa] for numa in sorted(places))

    def _switches(self, mine: Iterable[Device]) -> tuple[int, ...]:
        ports = switch_ports(mine)
        places: dict[str, int] = {}
        for position, device in enumerate(self.devices):
            for bridge in device.location.pci_path:
                if bridge in ports:
                    places[bridge] = places.get(bridge, 0) | 1 << position
        return tuple(dict.fromkeys(places[bridge] for bridge in sorted(places)))

    def matching(self, request: Request) -> int:
        """Return the positions of the right kind for which the selector is true."""
        key = (request.kind, request.where)
        mask = self._masks.get(key)
        if mask is None:
            selector = selector_of(request.where)
            mask = 0
            for position, device in enumerate(self.devices):
                if device.kind is request.kind and selector.matches(device):
                    mask |= 1 << position
            if len(self._masks) >= 1024:
                self._masks.clear()
            self._masks[key] = mask
        return mask

    def domains(self, level: Locality) -> tuple[int, ...]:
        """Return the places of that level on this node; the node itself for node and rack."""
        if level is Locality.NUMA:
            return self.layout[1]
        if level is Locality.PCI_SWITCH:
            return self.layout[2]
        return ((1 << len(self.devices)) - 1,) if level is Locality.NODE or self.rack is not None else ()

    def given(self, masks: tuple[int, ...], requests: tuple[str, ...]) -> tuple[AllocatedDevice, ...]:
        """Return the devices of each request as a holder gets them; the same choice is the same tuple."""
        key = (masks, requests)
        found = self._given.get(key)
        if found is None:
            if len(self._given) >= 256:
                self._given.clear()
            found = self._given[key] = tuple(
                AllocatedDevice(
                    id=device.id,
                    kind=device.kind,
                    name=device.name,
                    node=self.name,
                    driver=device.driver,
                    request=request,
                    vendor=str(device.value("vendor") or ""),
                    aliases=device.aliases,
                )
                for mask, request in zip(masks, requests, strict=True)
                for position, device in enumerate(self.devices)
                if mask >> position & 1
            )
        return found


@lru_cache(maxsize=1024)
def selector_of(text: str) -> Selector:
    """Compile an expression, or find it compiled."""
    return compile_selector(text)


def numa_of(device: Device) -> int | None:
    """Return the NUMA node, wherever it is written."""
    if device.location.numa_node is not None:
        return device.location.numa_node
    value = device.value("numa_node")
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def switch_ports(devices: Iterable[Device]) -> frozenset[str]:
    """Return the PCI addresses of the switch ports among the devices."""
    found: set[str] = set()
    for device in devices:
        if device.kind is Kind.SWITCH:
            found.add(device.location.pci_address or device.name)
    return frozenset(found)


def ancestors(device: Device, devices: Mapping[str, Device]) -> list[Device | str]:
    """Return the parents upward, nearest first; one that nobody has seen is given as its id and ends the list."""
    found: list[Device | str] = []
    seen = {device.id}
    parent = device.parent
    while parent is not None and parent not in seen:
        seen.add(parent)
        above = devices.get(parent)
        found.append(above if above is not None else parent)
        parent = above.parent if above is not None else None
    return found
