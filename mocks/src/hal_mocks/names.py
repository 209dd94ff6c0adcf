"""What the devices of a graph are called: id, short name and aliases, and how to find one by any of them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from hal.model.kind import Kind
from hal_mocks.graph import Graph, Host


class Named(msgspec.Struct, frozen=True):
    """A device's names. ``aliases`` are those of the device model (``pci:0000:17:00.0``)."""

    id: str
    name: str
    node: str
    kind: Kind
    aliases: tuple[str, ...] = ()


def devices_of(host: Host) -> Iterator[Named]:
    """Yield all devices of a host that faults can happen to."""
    node = host.name
    for gpu in host.gpus:
        yield Named(gpu.uuid, gpu.name, node, Kind.GPU, _aliases(pci=gpu.pci, uuid=gpu.uuid, serial=gpu.serial))
    for rnic in host.rnics:
        guid = rnic.node_guid.replace(":", "")
        aliases = _aliases(pci=rnic.pci, guid=guid, rdma=rnic.name, netdev=rnic.netdev)
        yield Named(f"rnic-{guid}", rnic.name, node, Kind.RNIC, aliases)
    for dpu in host.dpus:
        pci = tuple(f"pci:{address}" for address in dpu.pci[-1:])
        yield Named(
            f"dpu-{dpu.serial}", dpu.name, node, Kind.DPU, (*pci, *_aliases(rshim=dpu.rshim, serial=dpu.serial))
        )
    for region in host.pmem:
        cookie = region.set_cookie.removeprefix("0x")
        own = _aliases(cxl=region.name) if region.persistence_domain == "none" else _aliases(nd=region.name)
        yield Named(f"pmem-{cookie}", region.name, node, Kind.PMEM, own)
        for dimm in region.dimms:
            own = _aliases(cxl=dimm.name) if dimm.pci else _aliases(nd=dimm.name)
            aliases = (*_aliases(pci=dimm.pci, serial=dimm.serial), *own)
            yield Named(f"dimm-{dimm.serial}", dimm.name, node, Kind.MEMORY, aliases)
    serials = {dimm.name: dimm.serial for dimm in host.upmem_dimms}
    for module in host.upmem_dimms:
        yield Named(f"dimm-{module.serial}", module.name, node, Kind.MEMORY, _aliases(serial=module.serial))
    for rank in host.upmem_ranks:
        yield Named(f"upmem-{serials[rank.dimm]}-{rank.index}", rank.name, node, Kind.UPMEM, _aliases(rank=rank.name))
    seen: set[str] = set()
    for nvme in host.nvmes:
        by_place = nvme.serial in seen or not nvme.serial  # a serial number that two drives have is no identity
        seen.add(nvme.serial)
        own_id = f"{node}/pci/{nvme.pci}" if by_place else f"nvme-{nvme.serial}"
        aliases = _aliases(pci=nvme.pci, serial=nvme.serial, block=f"{nvme.name}n1")
        yield Named(own_id, nvme.name, node, Kind.NVME, aliases)
    for nic in host.nics:
        yield Named(f"{node}/nic/{nic.name}", nic.name, node, Kind.NIC, _aliases(pci=nic.pci, netdev=nic.name))


def ids_of(host: Host) -> dict[str, str]:
    """Return the short name of every device id of a host."""
    return {device.id: device.name for device in devices_of(host)}


class Names:
    """All names of a graph. A name that several hosts have needs its host: ``rack-1-n2/gpu0``."""

    def __init__(self, graph: Graph) -> None:
        self.by_id: dict[str, Named] = {}
        self.by_name: dict[str, list[Named]] = {}
        for host in graph.hosts:
            for device in devices_of(host):
                self.by_id[device.id] = device
                for name in (device.name, *device.aliases):
                    self.by_name.setdefault(name, []).append(device)
                    self.by_name.setdefault(f"{device.node}/{name}", []).append(device)

    def find(self, name: str) -> list[Named]:
        """Return the devices of an id, a short name or an alias, with or without their host before it."""
        exact = self.by_id.get(name)
        if exact is not None:
            return [exact]
        found = self.by_name.get(name, [])
        return list({device.id: device for device in found}.values())


def _aliases(**names: str) -> tuple[str, ...]:
    return tuple(f"{space}:{name}" for space, name in names.items() if name)
