"""What one device is to the allocator: fit or not, and which places it shares with others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from hal.broker.allocation.partitions import placements_of
from hal.model.claim import FRACTION, Locality, Request
from hal.model.device import Device
from hal.model.health import Health, Presence
from hal.model.kind import Kind
from hal.model.selector import Selector, compile_selector

WHOLE = 1000
"""How much of :data:`~hal.model.claim.FRACTION` every device has."""
LINK_DOMAIN_ATTRIBUTES = ("link_domain", "nvlink_clique", "fabric_clique")
"""Attributes that name the fabric a device is joined by, across machines; the first that is known counts."""
FABRICS = ("nvlink", "xgmi")
"""Types of links that make a domain of the devices of one machine that they join."""


Uses = tuple[tuple[str, int], ...]
Matcher = tuple[Kind, str, tuple[str, ...], Uses, str]
"""What of a request decides which devices it is about: kind, selectors, capacity, profile."""


class Matches(Protocol):
    """A compiled selector."""

    def matches(self, device: Device) -> bool:
        """True if it is true of the device."""
        ...


class Layout(NamedTuple):
    """How the devices of a node lie: what nodes of equal hardware have in common. Places are masks of positions.

    ``fate`` is empty if no device shares its fate. ``switches`` nest, ``nearest`` are disjoint: each device is in the
    innermost switch above it alone.
    """

    fate: tuple[int, ...]
    numa: tuple[int, ...]
    switches: tuple[int, ...]
    nearest: tuple[int, ...]
    kinds: tuple[Kind, ...]
    racked: bool


@lru_cache(maxsize=4096)
def shared(layout: Layout) -> Layout:
    """Return the one value that stands for all equal layouts."""
    return layout


@lru_cache(maxsize=1024)
def selector_of(text: str) -> Selector:
    """Compile an expression, or find it compiled."""
    return compile_selector(text)


def matcher_of(request: Request) -> Matcher:
    """Return what of a request decides which devices it is about."""
    return request.kind, request.where, request.cel, tuple(sorted(request.capacity.items())), request.profile


def compiled_cel(text: str) -> Matches:
    """Compile a selector in CEL; the language is loaded when the first one comes."""
    from hal.model.cel import compile_cel

    compiled: Matches = compile_cel(text)
    return compiled


def has_profile(device: Device, profile: str) -> bool:
    """Return whether a part of this profile can be made of the device at all."""
    return device.value("mig_mode") == "enabled" and profile in placements_of(device)


def why_unfit(device: Device, above: Iterable[Device | str], tolerate: Sequence[str] = ()) -> str | None:
    """Return why a device is not handed out to anybody who tolerates no more than these types of conditions, or None.

    ``above`` are its ancestors, nearest first; one of which nothing is known is given as its id.
    """
    own = _own_fault(device, tolerate)
    if own is not None:
        return own
    for ancestor in above:
        if isinstance(ancestor, str):
            return f"its parent {ancestor} is not in the inventory, so its health is unknown"
        fault = _own_fault(ancestor, tolerate, allocatable=False)
        if fault is not None:
            return f"its parent {ancestor.name} is unfit: {fault}"
    return None


def _own_fault(device: Device, tolerate: Sequence[str], allocatable: bool = True) -> str | None:
    if allocatable and not device.allocatable:
        return "not allocatable"
    if device.presence is not Presence.PRESENT:
        return "it is missing" if device.presence is Presence.MISSING else "it does not answer"
    if not device.conditions:
        return None
    for condition in device.conditions:
        if condition.blocks_new_leases and condition.type not in tolerate:
            latched = "; latched until hal repair" if condition.latched else ""
            return f"{condition.type} ({condition.severity.value}): {condition.evidence}{latched}"
    return "health is unknown" if device.health is Health.UNKNOWN and not tolerate else None


def capacity_of(device: Device, name: str) -> int:
    """Return how much of a capacity a device has, 0 if it has none."""
    return WHOLE if name == FRACTION else device.capacity.get(name, 0)


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


def numa_places(devices: Sequence[Device]) -> tuple[int, ...]:
    """Return the NUMA nodes as masks of positions."""
    places: dict[int, int] = {}
    for position, device in enumerate(devices):
        numa = numa_of(device)
        if numa is not None:
            places[numa] = places.get(numa, 0) | 1 << position
    return tuple(places[numa] for numa in sorted(places))


def switch_places(devices: Sequence[Device], ports: Collection[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return all PCI switches, and each with the devices that have no other between: as masks of positions."""
    places: dict[str, int] = {}
    nearest: dict[str, int] = {}
    for position, device in enumerate(devices):
        inmost = ""
        for bridge in device.location.pci_path:
            if bridge in ports:
                places[bridge] = places.get(bridge, 0) | 1 << position
                inmost = bridge
        if inmost:
            nearest[inmost] = nearest.get(inmost, 0) | 1 << position
    every = tuple(dict.fromkeys(places[bridge] for bridge in sorted(places)))
    return every, tuple(nearest[bridge] for bridge in sorted(nearest))


def parts_seen(devices: Sequence[Device], place: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """Return, by device, the parts of it that exist as devices of their own: their slot, and their position."""
    found: dict[int, dict[str, int]] = {}
    for position, device in enumerate(devices):
        parent = place.get(device.parent or "")
        profile, start = device.value("mig_profile"), device.value("mig_start")
        if parent is not None and profile is not None and start is not None:
            found.setdefault(parent, {})[f"{profile}@{start}"] = position
    return found


def ancestors(device: Device, devices: Mapping[str, Device]) -> list[Device | str]:
    """Return the parents upward, nearest first; one that nobody has seen is given as its id and ends the list."""
    found: list[Device | str] = []
    if device.parent is None:
        return found
    seen = {device.id}
    parent: str | None = device.parent
    while parent is not None and parent not in seen:
        seen.add(parent)
        above = devices.get(parent)
        found.append(above if above is not None else parent)
        parent = above.parent if above is not None else None
    return found


Key = tuple[object, ...]


def groups_by(what: str, node: str, rack: str | None, devices: Sequence[Device]) -> dict[Key, int]:
    """Return the places of devices of one node that span nodes or are no part of the layout, each under its name.

    ``what`` is ``rack``, ``link-domain`` or the name of an attribute. Equal names on two nodes are one place.
    """
    found: dict[Key, int] = {}
    if what == Locality.RACK:
        return {(rack,): (1 << len(devices)) - 1} if rack is not None else {}
    if what == Locality.LINK_DOMAIN:
        return _link_domains(node, devices)
    read = _reader(what)
    for position, device in enumerate(devices):
        value = read(device)
        if value is not None:
            key = (type(value).__name__, value)
            found[key] = found.get(key, 0) | 1 << position
    return found


def _reader(what: str) -> Callable[[Device], Any]:
    """Return what reads an attribute: one of ours, or as DRA's constraints name it (``domain/name``)."""
    if "/" not in what:
        return lambda device: device.value(what)
    from hal.model.cel_device import qualified

    return qualified(what)


def _link_domains(node: str, devices: Sequence[Device]) -> dict[Key, int]:
    found: dict[Key, int] = {}
    place = {device.id: position for position, device in enumerate(devices)}
    joined = list(range(len(devices)))

    def root(position: int) -> int:
        while joined[position] != position:
            position = joined[position]
        return position

    linked: set[int] = set()
    for position, device in enumerate(devices):
        named = next((v for v in map(device.value, LINK_DOMAIN_ATTRIBUTES) if v is not None), None)
        if named is not None:
            key: Key = (type(named).__name__, named)
            found[key] = found.get(key, 0) | 1 << position
            continue
        for link in device.links:
            other = place.get(link.peer or "")
            if other is not None and link.type in FABRICS and link.state == "up":
                linked |= {position, other}
                joined[root(position)] = root(other)
    for position in sorted(linked):
        if any(mask >> position & 1 for mask in found.values()):
            continue
        # Named by its first device: a domain that no attribute names does not reach beyond its machine.
        first = min(other for other in linked if root(other) == root(position))
        key = (node, devices[first].id)
        found[key] = found.get(key, 0) | 1 << position
    return found
