"""NVDIMMs, their regions and namespaces, and CXL memory as the kernel shows them."""

from __future__ import annotations

from hal_mocks.graph import Host, PmemNamespace, PmemRegion
from hal_mocks.sysfs_files import Files

_ACPI_NFIT = "sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00"
_ACPI_CXL = "sys/devices/platform/ACPI0017:00/root0"
_ND_MODES = {"raw": "raw", "sector": "safe", "fsdax": "memory", "devdax": "dax"}
_HOLDERS = {"sector": "btt", "fsdax": "pfn", "devdax": "dax"}
_FORMATS = {"optane": "0x0301", "nvdimm-n": "0x0101"}
_BUS_MAJOR, _DIMM_MAJOR, _CXL_MAJOR, _DAX_MAJOR, _BLOCK_MAJOR = 246, 247, 251, 252, 259
"""Numbers such as the kernel gives on the go; those of block devices it shares among drivers."""
_FIRST_PMEM = 512
_MOST_NAMESPACES = 16
_FIRST_ADDRESS = 0x100_0000_0000
_ALIGN = 2 << 20


class RegionView:
    """A region as its faults make it look: ``bad`` are ranges of bytes, ``gone`` modules that fell off their bus.

    A region that lacks a module is not there; the other modules are.
    """

    def __init__(
        self, read_only: bool = False, bad: tuple[tuple[int, int], ...] = (), gone: frozenset[str] = frozenset()
    ) -> None:
        self.read_only = read_only
        self.bad = bad
        self.gone = gone

    def badblocks(self) -> bytes:
        """Return the ``badblocks`` file: first sector of 512 bytes and how many."""
        lines = []
        for offset, length in sorted(self.bad):
            first, last = offset // 512, (offset + max(length, 1) - 1) // 512
            lines.append(f"{first} {last - first + 1}\n")
        return "".join(lines).encode()


def add_pmem(files: Files, host: Host, paths: dict[str, str], views: dict[str, RegionView]) -> None:
    """Add all regions: those of NVDIMMs on one bus, those of CXL devices below their decoder."""
    nvdimms = [region for region in host.pmem if not region.dimms[0].pci]
    expanders = [region for region in host.pmem if region.dimms[0].pci]
    if nvdimms:
        _add_bus(files, f"{_ACPI_NFIT}/ndbus0", "ACPI.NFIT")
    address = _FIRST_ADDRESS
    handle = 0
    for region in nvdimms:
        view = views[region.name]
        for dimm in region.dimms:
            if dimm.name in view.gone:
                handle += 1
                continue
            secured = "locked" if dimm.locked else "unlocked" if dimm.encrypted else "disabled"
            flags = "not_armed" if dimm.locked else ""
            vendor, _, _ = dimm.id.partition("-")
            files.device(
                f"{_ACPI_NFIT}/ndbus0/{dimm.name}",
                "bus/nd",
                {
                    "devtype": "nvdimm",
                    "state": "active",
                    "security": secured,
                    "frozen": 0,
                    "available_slots": 255,
                    "firmware/activate": "idle",
                    "firmware/result": "none",
                    "nfit/id": dimm.id,
                    "nfit/serial": f"0x{dimm.serial}",
                    "nfit/vendor": f"0x{vendor}",
                    "nfit/device": "0x097b",
                    "nfit/format": _FORMATS.get(dimm.media, "0x0301"),
                    "nfit/formats": 1,
                    "nfit/flags": flags,
                    "nfit/handle": f"{handle:#x}",
                    "nfit/phys_id": f"{handle + 0x20:#x}",
                    "nfit/rev_id": "0x0000",
                    "nfit/dirty_shutdown": 0,
                    "nfit/family": 0,
                    "nfit/dsm_mask": "0x0",
                    "commands": "",
                    "modalias": "nd:t1",
                },
                _numbered(_DIMM_MAJOR, handle, dimm.name, DEVTYPE="nvdimm", MODALIAS="nd:t1"),
                "nvdimm",
            )
            handle += 1
        if not view.gone:
            names = [dimm.name for dimm in region.dimms]
            _add_region(files, region, f"{_ACPI_NFIT}/ndbus0", address, view, names)
        address += region.size_bytes
    if expanders:
        _add_cxl(files, expanders, paths, views, address, handle)


def _add_region(files: Files, region: PmemRegion, bus: str, address: int, view: RegionView, dimms: list[str]) -> None:
    path = f"{bus}/{region.name}"
    numa = region.numa_node
    used = sum(space.size_bytes for space in region.namespaces)
    share = region.size_bytes // len(region.dimms)
    attributes: dict[str, str | bytes | int] = {
        "size": region.size_bytes,
        "available_size": region.size_bytes - used,
        "max_available_extent": region.size_bytes - used,
        "resource": f"{address:#x}",
        "nstype": 5,
        "set_cookie": region.set_cookie,
        "mappings": len(region.dimms),
        "persistence_domain": region.persistence_domain,
        "deep_flush": 1,
        "read_only": int(view.read_only),
        "numa_node": numa,
        "target_node": numa,
        "align": f"{16 << 20:#x}",
        "badblocks": view.badblocks(),
        "init_namespaces": f"{len(region.namespaces)}/{len(region.namespaces)}",
        "devtype": "nd_pmem",
        "modalias": "nd:t2",
    }
    for number, dimm in enumerate(dimms):
        attributes[f"mapping{number}"] = f"{dimm},0,{share},{number}"
    files.device(path, "bus/nd", attributes, {"DEVTYPE": "nd_pmem", "MODALIAS": "nd:t2"}, "nd_region")
    number = int("".join(filter(str.isdigit, region.name)) or 0)
    taken = set()
    at = address
    for space in region.namespaces:
        at = at if space.offset_bytes is None else address + space.offset_bytes
        index = int(space.name.rpartition(".")[2])
        taken.add(index)
        _add_namespace(files, path, space, at, number, index, numa)
        at += space.size_bytes
    free = next(index for index in range(len(taken) + 1) if index not in taken)
    seed = f"{path}/namespace{number}.{free}"
    facts: dict[str, str | bytes | int] = {"size": 0, "uuid": "", "mode": "raw", "alt_name": "", "sector_size": ""}
    facts |= {"numa_node": numa, "nstype": 5, "devtype": "nd_namespace_pmem", "modalias": "nd:t5", "holder": ""}
    facts |= {"force_raw": 0, "holder_class": "", "resource": "0x0", "target_node": numa}
    files.device(
        seed,
        "bus/nd",
        facts,
        {"DEVTYPE": "nd_namespace_pmem", "MODALIAS": "nd:t5"},
    )
    files.file(f"{path}/namespace_seed", seed.rpartition("/")[2])


def _add_bus(files: Files, bus: str, provider: str) -> None:
    """Add a bus of NVDIMMs and its control device, by which ndctl knows it. It passes no commands on."""
    facts: dict[str, str | bytes | int] = {"provider": provider, "wait_probe": 0, "commands": "", "nfit/revision": 1}
    if provider != "ACPI.NFIT":
        del facts["nfit/revision"]
    files.device(bus, "bus/nd", {**facts, "modalias": "nd:t0"}, {"DEVTYPE": "nd_bus", "MODALIAS": "nd:t0"}, "nd_bus")
    number = int(bus.rpartition("ndbus")[2])
    control = f"{bus}/nd/ndctl{number}"
    files.device(control, "class/nd", {}, _numbered(_BUS_MAJOR, number, f"ndctl{number}"))
    files.link(f"{control}/device", bus)


def _numbered(major: int, minor: int, node: str, **more: str) -> dict[str, str | int]:
    return {"MAJOR": major, "MINOR": minor, "DEVNAME": node, **more}


def _add_namespace(
    files: Files, region: str, space: PmemNamespace, address: int, above_number: int, index: int, numa: int
) -> None:
    number = f"{above_number}.{index}"
    minor = above_number * _MOST_NAMESPACES + index
    holder = _HOLDERS.get(space.mode)
    held = f"{holder}{number}" if holder else ""
    files.device(
        f"{region}/{space.name}",
        "bus/nd",
        {
            "size": space.size_bytes,
            "uuid": space.uuid,
            "mode": _ND_MODES[space.mode],
            "holder": held,
            "holder_class": {"sector": "btt", "fsdax": "pfn", "devdax": "dax"}.get(space.mode, ""),
            "alt_name": "",
            "sector_size": "[512] 4096",
            "numa_node": numa,
            "target_node": numa,
            "resource": f"{address:#x}",
            "devtype": "nd_namespace_pmem",
            "nstype": 5,
            "force_raw": 0,
            "modalias": "nd:t5",
        },
        {"DEVTYPE": "nd_namespace_pmem", "MODALIAS": "nd:t5"},
        "nd_pmem",
    )
    above = f"{region}/{space.name}"
    facts: dict[str, str | bytes | int]
    if holder:
        above = f"{region}/{held}"
        facts = {"mode": "pmem", "uuid": space.uuid, "namespace": space.name, "size": space.size_bytes}
        if holder != "btt":
            facts |= {"align": _ALIGN, "resource": f"{address:#x}", "numa_node": numa}
        else:
            facts |= {"sector_size": "512 520 528 [4096] 4104 4160 4224", "log_zero_flags": "Y"}
        facts["modalias"] = alias = "nd:t8" if holder == "dax" else "nd:t5"
        files.device(above, "bus/nd", facts, {"DEVTYPE": f"nd_{holder}", "MODALIAS": alias}, "nd_pmem")
    if space.mode == "devdax":
        facts = {"size": space.size_bytes, "target_node": numa, "numa_node": numa, "align": _ALIGN}
        facts["resource"] = f"{address:#x}"
        _add_dax(files, above, f"dax{number}", above_number, minor, facts)
        return
    block = f"pmem{number.partition('.')[0]}" + ("" if number.endswith(".0") else f".{number.partition('.')[2]}")
    block += "s" if space.mode == "sector" else ""
    facts = {"size": space.size_bytes // 512, "ro": 0, "removable": 0, "queue/dax": int(space.mode != "sector")}
    numbers = _numbered(_BLOCK_MAJOR, _FIRST_PMEM + minor, block, DEVTYPE="disk")
    files.device(f"{above}/block/{block}", "class/block", facts, numbers)
    files.link(f"{above}/block/{block}/device", above)


def _add_dax(files: Files, above: str, name: str, region: int, minor: int, facts: dict[str, str | bytes | int]) -> None:
    """Add a DAX device and the region that it is all of (Documentation/ABI/testing/sysfs-bus-dax)."""
    size = facts["size"]
    files.files(f"{above}/dax_region", {"id": region, "size": size, "align": _ALIGN, "available_size": 0})
    numbers = _numbered(_DAX_MAJOR, minor, name)
    files.device(f"{above}/{name}", "bus/dax", {**facts, "modalias": "dax:t0"}, numbers, "device_dax")


def _add_cxl(
    files: Files,
    regions: list[PmemRegion],
    paths: dict[str, str],
    views: dict[str, RegionView],
    address: int,
    first_nmem: int,
) -> None:
    """Add CXL memory devices and their regions (Documentation/ABI/testing/sysfs-bus-cxl).

    A volatile region has a UUID here too, which kernels leave empty: it is what the region can be known by again.
    """
    files.device(_ACPI_CXL, "bus/cxl", {"devtype": "cxl_port"}, {"DEVTYPE": "cxl_port"})
    decoder = f"{_ACPI_CXL}/decoder0.0"
    files.device(decoder, "bus/cxl", {"devtype": "cxl_decoder_root"}, {"DEVTYPE": "cxl_decoder_root"})
    bridge = f"{_ACPI_CXL}/nvdimm-bridge0"
    bus = f"{bridge}/ndbus{min(first_nmem, 1)}"
    persistent = [region for region in regions if region.persistence_domain != "none"]
    if persistent:
        files.device(bridge, "bus/cxl", {"devtype": "cxl_nvdimm_bridge"}, {"DEVTYPE": "cxl_nvdimm_bridge"})
        _add_bus(files, bus, "CXL")
    for region in regions:
        volatile = region.persistence_domain == "none"
        for dimm in region.dimms:
            if dimm.name in views[region.name].gone:
                continue
            above = paths[dimm.pci]
            files.device(
                f"{above}/{dimm.name}",
                "bus/cxl",
                {
                    "serial": f"0x{dimm.serial}",
                    "firmware_version": dimm.firmware,
                    "numa_node": region.numa_node,
                    "payload_max": 4096,
                    "label_storage_size": 0 if volatile else 131072,
                    "ram/size": f"{dimm.capacity_bytes if volatile else 0:#x}",
                    "pmem/size": f"{0 if volatile else dimm.capacity_bytes:#x}",
                    "security/state": "locked" if dimm.locked else "disabled",
                },
                _numbered(_CXL_MAJOR, int(dimm.name[3:]), f"cxl/{dimm.name}", DEVTYPE="cxl_memdev"),
                "cxl_mem",
            )
        if views[region.name].gone:
            first_nmem += 0 if volatile else len(region.dimms)
            address += region.size_bytes
            continue
        path = f"{decoder}/{region.name}"
        attributes: dict[str, str | bytes | int] = {
            "mode": "ram" if volatile else "pmem",
            "size": f"{region.size_bytes:#x}",
            "resource": f"{address:#x}",
            "uuid": region.set_cookie if volatile else region.namespaces[0].uuid if region.namespaces else "",
            "interleave_ways": len(region.dimms),
            "interleave_granularity": region.granule_bytes * 4,
            "commit": 1,
        }
        for number in range(len(region.dimms)):
            attributes[f"target{number}"] = f"decoder{number + 1}.0"
        files.device(path, "bus/cxl", attributes, {"DEVTYPE": "cxl_region"}, "cxl_region")
        if volatile:
            number_ = "".join(filter(str.isdigit, region.name)) or "0"
            facts: dict[str, str | bytes | int] = {
                "size": region.size_bytes,
                "target_node": region.numa_node,
                "numa_node": region.numa_node,
                "align": _ALIGN,
                "resource": f"{address:#x}",
            }
            files.device(f"{path}/dax_region{number_}", "bus/cxl", {"devtype": "cxl_dax_region"}, {})
            _add_dax(files, f"{path}/dax_region{number_}", f"dax{number_}.0", int(number_), int(number_), facts)
            files.file(f"{path}/numa_node", region.numa_node)
        else:
            bridged = []
            for dimm in region.dimms:
                bridged.append(f"nmem{first_nmem}")
                facts = {"devtype": "nvdimm", "state": "active", "security": "disabled", "commands": ""}
                facts["modalias"] = "nd:t1"
                facts["cxl/id"] = str(int(dimm.serial, 16))  # decimal, as drivers/cxl/pmem.c writes it
                numbers = _numbered(_DIMM_MAJOR, first_nmem, f"nmem{first_nmem}", DEVTYPE="nvdimm")
                files.device(f"{bus}/nmem{first_nmem}", "bus/nd", facts, numbers, "nvdimm")
                first_nmem += 1
            _add_region(files, region, bus, address, views[region.name], bridged)
        address += region.size_bytes
