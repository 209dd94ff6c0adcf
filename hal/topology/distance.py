"""How far two devices are apart: distance classes, the matrix over many, the nearest of some. Pure.

The words are those of ``nvidia-smi topo``, for which hwloc and NCCL have the same classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

import msgspec

from hal.model.device import Device, Link
from hal.model.kind import Kind

MATRIX_KINDS = (Kind.GPU, Kind.RNIC, Kind.NVME, Kind.PMEM)


class Distance(IntEnum):
    """Classes from near to far; the number orders them and is no measure."""

    SELF = 0
    BOARD = 1
    SWITCH = 2
    SWITCHES = 3
    HOST_BRIDGE = 4
    NUMA = 5
    SYSTEM = 6
    RACK = 7
    DATACENTER = 8
    UNKNOWN = 9

    @property
    def word(self) -> str:
        """The short word of the matrix."""
        return _WORDS[self]


_WORDS = ("X", "DEV", "PIX", "PXB", "PHB", "NODE", "SYS", "RACK", "DC", "?")

LEGEND: dict[str, str] = {
    "X": "the device itself",
    "DEV": "parts of one device",
    "NV#": "linked by # NVLinks, directly or through NVSwitch",
    "C2C": "linked chip to chip, coherent",
    "PIX": "below the same PCIe switch",
    "PXB": "below several PCIe switches, without the host bridge",
    "PHB": "through the same PCIe host bridge",
    "NODE": "same NUMA node, through different host bridges or the memory bus",
    "SYS": "across NUMA nodes",
    "RACK": "another machine of the same rack",
    "DC": "another machine, of another or an unknown rack",
    "?": "unknown: the NUMA node of one of them could not be read",
}


def distance(one: Device, other: Device) -> Distance:
    """Return the class of the way between two devices; symmetric."""
    if one.id == other.id:
        return Distance.SELF
    here, there = one.location, other.location
    if here.node != there.node:
        return Distance.RACK if here.rack is not None and here.rack == there.rack else Distance.DATACENTER
    if _one_board(one, other):
        return Distance.BOARD
    common = _common(here.pci_path, there.pci_path)
    if common > 1:
        below = max(len(here.pci_path), len(there.pci_path)) - common
        return Distance.SWITCH if below <= 1 else Distance.SWITCHES
    if common == 1:
        return Distance.HOST_BRIDGE
    if here.numa_node is None or there.numa_node is None:
        return Distance.UNKNOWN
    return Distance.NUMA if here.numa_node == there.numa_node else Distance.SYSTEM


def _one_board(one: Device, other: Device) -> bool:
    if one.parent == other.id or other.parent == one.id or (one.parent is not None and one.parent == other.parent):
        return True
    address = one.location.pci_address
    return address is not None and address == other.location.pci_address


def _common(here: Sequence[str], there: Sequence[str]) -> int:
    count = 0
    for mine, other in zip(here, there, strict=False):
        if mine != other:
            break
        count += 1
    return count


def link_word(one: Device, other: Device) -> str:
    """Return ``NV18`` or ``C2C`` if the devices are linked without PCI, else an empty string.

    GPUs whose NVLinks end in a switch (no device of ours as peer) reach every other such GPU of their machine.
    """
    direct = [link for link in one.links if link.peer == other.id] or [
        link for link in other.links if link.peer == one.id
    ]
    if any(link.type == "c2c" for link in direct):
        return "C2C"
    lanes = _lanes(direct)
    if not lanes and one.id != other.id and one.location.node == other.location.node and one.kind is other.kind:
        lanes = min(_switched(one), _switched(other))
    return f"NV{lanes}" if lanes else ""


def _lanes(links: Iterable[Link]) -> int:
    return sum(link.lanes for link in links if link.type == "nvlink" and link.state == "up")


def is_switched(link: Link) -> bool:
    """True for an NVLink that ends in a switch: one such link a peer is listed, but all share the same lanes."""
    return link.peer is None or "switch" in link.peer.lower() or "switch" in link.detail.lower()


def _switched(device: Device) -> int:
    return max((_lanes([link]) for link in device.links if is_switched(link)), default=0)


def nvlinks(device: Device) -> int:
    """Return how many NVLinks of a device are up; those that end in a switch count once, not once a peer."""
    return _lanes(link for link in device.links if not is_switched(link)) + _switched(device)


def nvlink_bandwidth(device: Device) -> float:
    """Return the bytes a second of all NVLinks of a device in one direction; 0 if they do not say."""
    linked = [link for link in device.links if link.type == "nvlink"]
    own = sum(link.bandwidth_bytes_per_second or 0.0 for link in linked if not is_switched(link))
    return own + max((link.bandwidth_bytes_per_second or 0.0 for link in linked if is_switched(link)), default=0.0)


def word(one: Device, other: Device) -> str:
    """Return the matrix's word for a pair: a link's if there is one, else the distance's."""
    return link_word(one, other) or distance(one, other).word


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """Distances among the devices of one machine; ``cells[row][column]`` is a word of :data:`LEGEND`."""

    node: str
    devices: tuple[str, ...]
    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    cells: tuple[tuple[str, ...], ...]


def matrices(devices: Iterable[Device], kinds: Sequence[Kind] = MATRIX_KINDS) -> tuple[Matrix, ...]:
    """Return one matrix a machine, for those of its devices that are of these kinds; none for a machine without."""
    by_node: dict[str, list[Device]] = {}
    for device in devices:
        if device.kind in kinds:
            by_node.setdefault(device.location.node, []).append(device)
    return tuple(_matrix(node, some, kinds) for node, some in by_node.items())


def _matrix(node: str, devices: list[Device], kinds: Sequence[Kind]) -> Matrix:
    order = {kind: place for place, kind in enumerate(kinds)}
    ordered = sorted(devices, key=lambda device: order[device.kind])  # stable: by name within a kind
    return Matrix(
        node=node,
        devices=tuple(device.id for device in ordered),
        names=tuple(device.name for device in ordered),
        kinds=tuple(device.kind for device in ordered),
        cells=tuple(tuple(word(one, other) for other in ordered) for one in ordered),
    )


def nearest(device: Device, candidates: Iterable[Device]) -> tuple[Device, ...]:
    """Return the candidates that are nearest to a device (all that are equally near), in the order given.

    A candidate whose distance is unknown is never called near; the device itself is no candidate.
    """
    best: list[Device] = []
    least = Distance.UNKNOWN
    for candidate in candidates:
        away = distance(device, candidate)
        if away is Distance.SELF or away > least or away is Distance.UNKNOWN:
            continue
        if away < least:
            best, least = [], away
        best.append(candidate)
    return tuple(best)
