"""The graph of what is near what: data center, rack, machine, NUMA node, host bridge, PCI switch, device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum

import msgspec

from hal.model.device import Device, Link
from hal.model.kind import Kind

ROOT = "dc"


class Level(StrEnum):
    """What a vertex stands for."""

    DATACENTER = "dc"
    RACK = "rack"
    NODE = "node"
    NUMA = "numa"
    HOST_BRIDGE = "host-bridge"
    BRIDGE = "bridge"
    SWITCH = "switch"
    DEVICE = "device"


class Vertex(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place or a device. ``within`` is the vertex that contains it; None for the data center."""

    id: str
    level: Level
    label: str
    within: str | None = None
    device: Device | None = None


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """A link beside the tree: NVLink, C2C, fabric. ``peer`` is None where it leaves what we know."""

    device: str
    peer: str | None
    link: Link


class Topology:
    """The tree of places, and the links across it."""

    def __init__(self, vertices: Iterable[Vertex], edges: Iterable[Edge]) -> None:
        self.vertices = {vertex.id: vertex for vertex in vertices}
        self.edges = tuple(edges)
        self._children: dict[str, list[Vertex]] = {}
        for vertex in self.vertices.values():
            if vertex.within is not None:
                self._children.setdefault(vertex.within, []).append(vertex)
        for children in self._children.values():
            children.sort(key=_numa_order)

    @property
    def root(self) -> Vertex:
        """The data center."""
        return self.vertices[ROOT]

    def children(self, vertex: Vertex) -> tuple[Vertex, ...]:
        """Return what a vertex contains."""
        return tuple(self._children.get(vertex.id, ()))

    def above(self, vertex: Vertex) -> tuple[Vertex, ...]:
        """Return what contains a vertex, innermost first."""
        found: list[Vertex] = []
        while vertex.within is not None:
            vertex = self.vertices[vertex.within]
            found.append(vertex)
        return tuple(found)

    def below(self, vertex: Vertex) -> Iterator[Vertex]:
        """Yield everything within a vertex, depth first."""
        for child in self._children.get(vertex.id, ()):
            yield child
            yield from self.below(child)

    def of_level(self, level: Level) -> tuple[Vertex, ...]:
        """Return all vertices of one level."""
        return tuple(vertex for vertex in self.vertices.values() if vertex.level is level)


def _numa_order(vertex: Vertex) -> int:
    """NUMA nodes by their number; what else there is keeps its place before them."""
    return int(vertex.label.removeprefix("NUMA ")) if vertex.level is Level.NUMA else -1


def build(devices: Iterable[Device]) -> Topology:
    """Build the graph from what was discovered.

    A device that shares another's fate sits within it (a MIG partition in its GPU, a rank on its DIMM). PCI functions
    that are bridges become places. What has no NUMA node sits directly in its machine.
    """
    return _Builder(tuple(devices)).build()


def place_of(node: str, address: str) -> str:
    """Return the id of a PCI place, which is also that of the function there when nothing better names it."""
    return f"{node}/pci/{address}"


def rack_title(name: str) -> str:
    """Return what to call a rack: its name, which may say already that it is one."""
    return name if name.lower().startswith("rack") else f"rack {name}"


class _Builder:
    def __init__(self, devices: tuple[Device, ...]) -> None:
        self.devices = devices
        self.by_id = {device.id: device for device in devices}
        self.by_place = {
            place_of(device.location.node, device.location.pci_address): device
            for device in devices
            if device.location.pci_address and device.kind in (Kind.SWITCH, Kind.PCI)
        }
        self.vertices: dict[str, Vertex] = {}
        self.numa_of_bridge = self._vote()
        self.upstream = self._upstream_ports()

    def _vote(self) -> dict[tuple[str, str], int]:
        """A host bridge belongs to the NUMA node that most of the functions below it name."""
        votes: dict[tuple[str, str], Counter[int]] = {}
        for device in self.devices:
            place = device.location
            if place.pci_path and place.numa_node is not None:
                votes.setdefault((place.node, place.pci_path[0]), Counter())[place.numa_node] += 1
        return {bridge: counter.most_common(1)[0][0] for bridge, counter in votes.items()}

    def build(self) -> Topology:
        self._add(ROOT, Level.DATACENTER, "data center", None)
        bridges = {
            place_of(device.location.node, address)
            for device in self.devices
            for address in device.location.pci_path[1:]
        }
        for device in self.devices:
            self._node(device)
            self._bridges(device)
        for device in self.devices:
            if device.id not in self.vertices and not (
                device.location.pci_address and place_of(device.location.node, device.location.pci_address) in bridges
            ):
                self._device(device)
        edges = [
            Edge(device=device.id, peer=link.peer if link.peer in self.by_id else None, link=link)
            for device in self.devices
            for link in device.links
        ]
        return Topology(self.vertices.values(), edges)

    def _add(self, id: str, level: Level, label: str, within: str | None, device: Device | None = None) -> str:
        if id not in self.vertices:
            self.vertices[id] = Vertex(id=id, level=level, label=label, within=within, device=device)
        return id

    def _node(self, device: Device) -> str:
        place = device.location
        within = ROOT
        if place.rack is not None:
            within = self._add(f"rack:{place.rack}", Level.RACK, place.rack, ROOT)
        return self._add(f"node:{place.node}", Level.NODE, place.node, within)

    def _numa(self, device: Device, numa_node: int | None) -> str:
        node = self._node(device)
        if numa_node is None:
            return node
        return self._add(f"{device.location.node}/numa/{numa_node}", Level.NUMA, f"NUMA {numa_node}", node)

    def _bridges(self, device: Device) -> str | None:
        path, node = device.location.pci_path, device.location.node
        if not path:
            return None
        within = self._add(
            place_of(node, path[0]),
            Level.HOST_BRIDGE,
            path[0],
            self._numa(device, self.numa_of_bridge.get((node, path[0]))),
        )
        for address in path[1:]:
            place = place_of(node, address)
            level = Level.SWITCH if place in self.upstream else Level.BRIDGE
            within = self._add(place, level, address, within, self.by_place.get(place))
        return within

    def _upstream_ports(self) -> set[str]:
        """Below a root port, bridges come in pairs: a switch's upstream port, then one of its downstream ports.

        A bridge with no bridge below it is no switch (the PCI bridge before a BMC's graphics, say).
        """
        found: set[str] = set()
        for device in self.devices:
            path = device.location.pci_path
            if device.kind is Kind.SWITCH and device.location.pci_address:
                path = (*path, device.location.pci_address)
            found.update(place_of(device.location.node, path[depth]) for depth in range(2, len(path) - 1, 2))
        return found

    def _device(self, device: Device) -> str:
        if device.id in self.vertices:
            return device.id
        parent = self.by_id.get(device.parent or "")
        if parent is not None and parent.location.node == device.location.node and not self._circular(device):
            within = self._device(parent)
        else:
            within = self._bridges(device) or self._numa(device, device.location.numa_node)
        return self._add(device.id, Level.DEVICE, device.name, within, device)

    def _circular(self, device: Device) -> bool:
        seen = {device.id}
        above = self.by_id.get(device.parent or "")
        while above is not None:
            if above.id in seen:
                return True
            seen.add(above.id)
            above = self.by_id.get(above.parent or "")
        return False
