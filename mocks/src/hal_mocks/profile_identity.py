"""Serials, GUIDs, UUIDs and MAC addresses: the same for the same (seed, profile, host, name), and never twice."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from hal_mocks.graph import Dimm, Dpu, Gpu, Host, Nic, Nvme, PmemRegion, Rnic, RnicPort, UpmemDimm

replace = msgspec.structs.replace


class Names:
    """A source of identities for one host."""

    def __init__(self, seed: int, profile: str, host: str) -> None:
        self._key = f"{seed}\0{profile}\0{host}\0".encode()

    def hex(self, name: str, what: str, digits: int) -> str:
        """Return so many hex digits."""
        return blake2b(self._key + f"{name}\0{what}".encode(), digest_size=(digits + 1) // 2).hexdigest()[:digits]

    def digits(self, name: str, what: str, count: int) -> str:
        """Return so many decimal digits."""
        return str(int(self.hex(name, what, 16), 16) % 10**count).zfill(count)

    def uuid(self, name: str, what: str = "uuid") -> str:
        """Return a UUID of version 4's form."""
        text = self.hex(name, what, 32)
        variant = "89ab"[int(text[16], 16) % 4]
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"

    def mac(self, name: str) -> str:
        """Return a locally administered MAC address: forty bits, so that ten thousand NICs do not meet."""
        text = self.hex(name, "mac", 10)
        return "a2:" + ":".join(text[at : at + 2] for at in range(0, 10, 2))


def guid_of(mac: str) -> str:
    """Return the node GUID that belongs to a MAC address: ``0300`` in its middle, as Mellanox firmware makes it."""
    text = mac.replace(":", "")
    return f"{text[:6]}0300{text[6:]}"


def grouped(digits: str) -> str:
    """Return a GUID as the kernel prints it: in groups of four hex digits."""
    return ":".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def identify(host: Host, seed: int, profile: str) -> Host:
    """Return the host with every identity that was left empty filled in."""
    names = Names(seed, profile, host.name)
    gpus = tuple(_gpu(gpu, names) for gpu in host.gpus)
    rnics = tuple(_rnic(rnic, names, lid) for lid, rnic in enumerate(host.rnics, 1))
    dpus = tuple(_dpu(dpu, names) for dpu in host.dpus)
    nvmes = tuple(_nvme(nvme, names) for nvme in host.nvmes)
    pmem = tuple(_region(region, names) for region in host.pmem)
    serials = {address: dpu.serial for dpu in dpus for address in dpu.pci}
    serials |= {gpu.pci: gpu.serial for gpu in gpus if gpu.pci}
    serials |= {nvme.pci: nvme.serial for nvme in nvmes}
    serials |= {dimm.pci: dimm.serial for region in pmem for dimm in region.dimms if dimm.pci}
    pci = tuple(
        replace(function, serial=serials[function.address]) if function.address in serials else function
        for function in host.pci
    )
    return replace(
        host,
        pci=pci,
        gpus=gpus,
        rnics=rnics,
        dpus=dpus,
        nvmes=nvmes,
        pmem=pmem,
        nics=tuple(_nic(nic, names) for nic in host.nics),
        upmem_dimms=tuple(_upmem(dimm, names) for dimm in host.upmem_dimms),
    )


def _gpu(gpu: Gpu, names: Names) -> Gpu:
    return replace(
        gpu,
        uuid=gpu.uuid or f"GPU-{names.uuid(gpu.name)}",
        serial=gpu.serial or f"165{names.digits(gpu.name, 'serial', 10)}",
    )


def _rnic(rnic: Rnic, names: Names, lid: int) -> Rnic:
    mac = rnic.mac or names.mac(rnic.name)
    guid = rnic.node_guid or guid_of(mac)
    return replace(rnic, mac=mac, node_guid=guid, ports=tuple(_port(port, mac, guid, lid) for port in rnic.ports))


def _port(port: RnicPort, mac: str, guid: str, lid: int) -> RnicPort:
    if port.link_layer == "InfiniBand":
        return replace(port, lid=lid, gids=(f"fe80:0000:0000:0000:{grouped(guid)}",), gid_types=("IB/RoCE v1",))
    octets = [int(part, 16) for part in mac.split(":")]
    octets[0] ^= 2
    local = "fe80:0000:0000:0000:{:02x}{:02x}:{:02x}ff:fe{:02x}:{:02x}{:02x}".format(*octets)
    mapped = f"0000:0000:0000:0000:0000:ffff:0a{octets[3]:02x}:{octets[4]:02x}{octets[5]:02x}"
    return replace(
        port,
        gids=(local, local, mapped, mapped),
        gid_types=("IB/RoCE v1", "RoCE v2", "IB/RoCE v1", "RoCE v2"),
    )


def _dpu(dpu: Dpu, names: Names) -> Dpu:
    return replace(dpu, serial=dpu.serial or f"MT23{names.hex(dpu.name, 'serial', 8).upper()}")


def _nvme(nvme: Nvme, names: Names) -> Nvme:
    return replace(nvme, serial=nvme.serial or f"S6EW{names.digits(nvme.name, 'serial', 10)}")


def _nic(nic: Nic, names: Names) -> Nic:
    return replace(nic, mac=nic.mac or names.mac(nic.name))


def _region(region: PmemRegion, names: Names) -> PmemRegion:
    dimms = tuple(_dimm(dimm, names) for dimm in region.dimms)
    spaces = tuple(space if space.uuid else replace(space, uuid=names.uuid(space.name)) for space in region.namespaces)
    volatile = region.persistence_domain == "none"  # no interleave set of persistent memory: a UUID of its own
    cookie = region.set_cookie or (
        names.uuid(region.name, "cookie") if volatile else "0x1" + names.hex(region.name, "cookie", 15)
    )
    return replace(region, dimms=dimms, namespaces=spaces, set_cookie=cookie)


def _dimm(dimm: Dimm, names: Names) -> Dimm:
    serial = dimm.serial or f"1{names.hex(dimm.name, 'serial', 7)}"
    return replace(dimm, serial=serial, id=dimm.id if "-" in dimm.id else f"{dimm.id}-a2-2117-{serial}")


def _upmem(dimm: UpmemDimm, names: Names) -> UpmemDimm:
    return replace(dimm, serial=dimm.serial or f"UP{names.hex(dimm.name, 'serial', 10).upper()}")
