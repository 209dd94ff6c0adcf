"""GPUs of the graph as devices: identity, place, wiring. What changes with time is added by the driver."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from hal.interfaces.gpu import Ancestor, Partition, Peer, PeerAccess
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device, Link, Location
from hal.model.kind import Kind
from hal_mocks.gpu_mig import profiles_of
from hal_mocks.gpu_store import Record
from hal_mocks.graph import Gpu, Graph, Host

NAME = "mock-gpu"
SOURCE = "mock"
_VENDORS = {"10de": "NVIDIA", "1002": "AMD", "8086": "Intel"}
_SWITCH = "switch"


class Place(msgspec.Struct, frozen=True):
    """One GPU, the host that it is in, and the device that it makes."""

    host: Host
    gpu: Gpu
    device: Device


def places_of(graph: Graph) -> dict[str, Place]:
    """Return every GPU of a machine by its id."""
    return {
        gpu.uuid: Place(host, gpu, _device(host, gpu, bridges))
        for host in graph.hosts
        for bridges in ({function.address: function.parent for function in host.pci},)
        for gpu in host.gpus
    }


def _device(host: Host, gpu: Gpu, bridges: dict[str, str]) -> Device:
    path: list[str] = []
    above = bridges.get(gpu.pci)
    while above is not None:
        path.append(above)
        above = bridges.get(above)
    path.reverse()
    attributes = {
        "vendor": known("NVIDIA", SOURCE),
        "model": known(gpu.model, SOURCE),
        "uuid": known(gpu.uuid, SOURCE),
        "architecture": known(gpu.architecture, SOURCE),
        "compute_capability": known(gpu.compute_capability, SOURCE),
        "memory_bytes": known(gpu.memory_bytes, SOURCE),
        "memory_bandwidth_bytes_per_second": known(gpu.memory_bandwidth_bytes_per_second, SOURCE),
        "multiprocessors": known(gpu.multiprocessors, SOURCE),
        "power_limit_watts": known(gpu.power_limit_watts, SOURCE),
        "coherent": known(gpu.coherent, SOURCE),
    }
    if gpu.serial:
        attributes["serial"] = known(gpu.serial, SOURCE)
    if gpu.mig:
        attributes["partition_placements"] = known(tuple(profile.line for profile in profiles_of(gpu)), SOURCE)
    function = host.function(gpu.pci)
    numa_node = None
    if function is not None:
        numa_node = function.numa_node if function.numa_node >= 0 else None
        attributes |= {
            "vendor": known(_VENDORS.get(function.vendor, function.vendor), SOURCE),
            "pci_vendor": known(function.vendor, SOURCE),
            "pci_device": known(function.device, SOURCE),
            "pci_class": known(function.class_code, SOURCE),
            "link_speed_gts": known(function.speed_gts, SOURCE),
            "link_width": known(function.width, SOURCE),
            "link_max_speed_gts": known(function.max_speed_gts, SOURCE),
            "link_max_width": known(function.max_width, SOURCE),
        }
        if function.driver:
            attributes["pci_driver"] = known(function.driver, SOURCE)
    attributes["numa_node"] = (
        known(numa_node, SOURCE)
        if numa_node is not None
        else absent(Absence.NOT_REPORTED, SOURCE, "the firmware does not say")
    )
    return Device(
        id=gpu.uuid,
        kind=Kind.GPU,
        name=gpu.name,
        driver=NAME,
        location=Location(
            node=host.name,
            rack=host.rack or None,
            numa_node=numa_node,
            pci_address=gpu.pci or None,
            pci_path=tuple(path),
        ),
        aliases=((f"pci:{gpu.pci}",) if gpu.pci else ()) + (f"uuid:{gpu.uuid}",),
        attributes=attributes,
        capacity={"memory_bytes": gpu.memory_bytes},
        links=tuple(_links(host, gpu, numa_node)),
        allocatable=True,
    )


def _links(host: Host, gpu: Gpu, numa_node: int | None) -> Iterator[Link]:
    by_name = {other.name: other for other in host.gpus}
    for nvlink in gpu.nvlinks:
        if nvlink.peer == _SWITCH:
            for other in host.gpus:
                if other is not gpu and any(theirs.peer == _SWITCH for theirs in other.nvlinks):
                    yield Link(
                        type="nvlink",
                        peer=other.uuid,
                        lanes=nvlink.links,
                        bandwidth_bytes_per_second=nvlink.bandwidth_bytes_per_second,
                        detail="through a switch: all peers share these lanes",
                    )
        else:
            peer = by_name.get(nvlink.peer)
            yield Link(
                type="nvlink",
                peer=peer.uuid if peer is not None else None,
                lanes=nvlink.links,
                bandwidth_bytes_per_second=nvlink.bandwidth_bytes_per_second,
            )
    if gpu.coherent and numa_node is not None:
        yield Link(type="c2c", peer=f"{host.name}/cpu/{numa_node}")


def partition_device(gpu: Device, partition: Partition) -> Device:
    """Return a partition as a device: a child that shares its GPU's fate."""
    keep = ("vendor", "architecture", "compute_capability", "numa_node", "pci_vendor", "pci_device")
    attributes = {name: gpu.attributes[name] for name in keep if name in gpu.attributes}
    attributes |= {
        "model": known(f"{gpu.value('model')} MIG {partition.profile}", SOURCE),
        "uuid": known(partition.id, SOURCE),
        "memory_bytes": known(partition.memory_bytes, SOURCE),
        "mig_profile": known(partition.profile, SOURCE),
        "mig_start": known(partition.start, SOURCE),
        "compute_slices": known(partition.compute_slices, SOURCE),
    }
    return Device(
        id=partition.id,
        kind=Kind.GPU,
        name=f"{gpu.name}-mig{partition.start}",
        driver=NAME,
        location=msgspec.structs.replace(gpu.location),
        aliases=(f"uuid:{partition.id}",),
        attributes=attributes,
        capacity={"memory_bytes": partition.memory_bytes},
        parent=gpu.id,
        allocatable=True,
    )


def mode_attributes(gpu: Gpu, record: Record) -> dict[str, Attribute]:
    """Return the modes, as they are and as the next reset will make them."""
    attributes = {"ecc_mode": known(_word(record.ecc), SOURCE)}
    if record.ecc_pending != record.ecc:
        attributes["ecc_mode_pending"] = known(_word(record.ecc_pending), SOURCE)
    if not gpu.mig:
        attributes["mig_mode"] = absent(Absence.UNSUPPORTED, SOURCE, "this board cannot be divided")
        return attributes
    attributes["mig_mode"] = known(_word(record.partitioning), SOURCE)
    if record.partitioning_pending != record.partitioning:
        attributes["mig_mode_pending"] = known(_word(record.partitioning_pending), SOURCE)
    return attributes


def _word(enabled: bool) -> str:
    return "enabled" if enabled else "disabled"


def peers_of(place: Place, places: dict[str, Place], links_up: bool) -> list[Peer]:
    """Return the other GPUs of the same host, nearest first."""
    found = []
    for other in places.values():
        if other.host is not place.host or other is place:
            continue
        link = next((link for link in place.device.links if link.peer == other.device.id), None)
        up = link is not None and links_up
        found.append(
            Peer(
                device=other.device.id,
                ancestor=ancestor(place, other),
                access=PeerAccess.OK,
                nvlinks=link.lanes if link is not None and up else 0,
                through_switch=link is not None and up and bool(link.detail),
            )
        )
    order = tuple(Ancestor)
    found.sort(key=lambda peer: (-peer.nvlinks, order.index(peer.ancestor)))
    return found


def ancestor(one: Place, other: Place) -> Ancestor:
    """Return what two GPUs of a host share, as ``nvmlDeviceGetTopologyCommonAncestor`` says it."""
    here, there = one.device.location, other.device.location
    shared = 0
    for mine, theirs in zip(here.pci_path, there.pci_path, strict=False):
        if mine != theirs:
            break
        shared += 1
    roles = {function.address: function.role for function in one.host.pci}
    if shared and roles.get(here.pci_path[shared - 1], "").startswith("switch"):
        below = (*here.pci_path[shared:], *there.pci_path[shared:])
        return Ancestor.MULTIPLE if any(roles.get(b) == "switch-upstream" for b in below) else Ancestor.SINGLE
    if shared:
        return Ancestor.HOST_BRIDGE
    same_node = here.numa_node is not None and here.numa_node == there.numa_node
    return Ancestor.NODE if same_node else Ancestor.SYSTEM
