"""CPUs, NUMA nodes, NVDIMMs, CXL memory and UPMEM ranks as the kernel shows them."""

from __future__ import annotations

from hal_mocks.graph import Host, PmemNamespace, PmemRegion, UpmemDimm, UpmemRank
from hal_mocks.sysfs_files import Files

_ACPI_NFIT = "sys/devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00"
_ACPI_CXL = "sys/devices/platform/ACPI0017:00/root0"
_ND_MODES = {"raw": "raw", "sector": "safe", "fsdax": "memory", "devdax": "dax"}
_HOLDERS = {"sector": "btt", "fsdax": "pfn", "devdax": "dax"}
_FORMATS = {"optane": "0x0301", "nvdimm-n": "0x0101"}
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


def add_numa(files: Files, host: Host) -> None:
    """Add CPUs and NUMA nodes, and what ``/proc`` says about them."""
    cpus = sorted(cpu for node in host.numa for cpu in cpus_of(node.cpus))
    everything = cpu_list(cpus) if cpus else "0"
    files.files("sys/devices/system/cpu", dict.fromkeys(("online", "possible", "present"), everything))
    nodes = cpu_list([node.id for node in host.numa])
    files.files("sys/devices/system/node", dict.fromkeys(("online", "possible"), nodes))
    for node in host.numa:
        total = node.memory_bytes >> 10
        lines = (("MemTotal", total), ("MemFree", total), ("MemUsed", 0))
        files.files(
            f"sys/devices/system/node/node{node.id}",
            {
                "cpulist": node.cpus,
                "distance": " ".join(map(str, node.distances)),
                "meminfo": "\n".join(f"Node {node.id} {name + ':':<15} {value:>8} kB" for name, value in lines),
            },
        )
    model = f"model name\t: {host.cpu_model}\n" if host.cpu_model else ""
    files.file("proc/cpuinfo", "".join(f"processor\t: {cpu}\n{model}\n" for cpu in cpus).encode())
    total = sum(node.memory_bytes for node in host.numa) >> 10
    files.file("proc/meminfo", f"MemTotal:       {total} kB\nMemFree:        {total} kB")


def cpus_of(text: str) -> list[int]:
    """Return the CPUs of a kernel list."""
    found: list[int] = []
    for part in text.split(","):
        if part:
            low, _, high = part.partition("-")
            found += range(int(low), int(high or low) + 1)
    return found


def cpu_list(numbers: list[int]) -> str:
    """Return numbers as a kernel list (``0-3,8``)."""
    parts: list[str] = []
    first = last = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number == last + 1:
            last = number
            continue
        parts.append(f"{first}-{last}" if last > first else f"{first}")
        if number is not None:
            first = last = number
    return ",".join(parts)


def add_pmem(files: Files, host: Host, paths: dict[str, str], views: dict[str, RegionView]) -> None:
    """Add all regions: those of NVDIMMs on one bus, those of CXL devices below their decoder."""
    nvdimms = [region for region in host.pmem if not region.dimms[0].pci]
    expanders = [region for region in host.pmem if region.dimms[0].pci]
    if nvdimms:
        bus = f"{_ACPI_NFIT}/ndbus0"
        files.device(bus, "bus/nd", {"provider": "ACPI.NFIT", "wait_probe": 0}, {"DEVTYPE": "nd_bus"})
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
                },
                {"DEVTYPE": "nvdimm", "MODALIAS": "nd:t1"},
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
    }
    for number, dimm in enumerate(dimms):
        attributes[f"mapping{number}"] = f"{dimm},0,{share},{number}"
    files.device(path, "bus/nd", attributes, {"DEVTYPE": "nd_pmem", "MODALIAS": "nd:t2"}, "nd_region")
    number = int("".join(filter(str.isdigit, region.name)) or 0)
    for index, space in enumerate(region.namespaces):
        _add_namespace(files, path, space, address, f"{number}.{index}", numa)
        address += space.size_bytes
    seed = f"{path}/namespace{number}.{len(region.namespaces)}"
    files.device(
        seed,
        "bus/nd",
        {"size": 0, "uuid": "", "mode": "raw", "numa_node": numa, "devtype": "nd_namespace_pmem"},
        {"DEVTYPE": "nd_namespace_pmem", "MODALIAS": "nd:t5"},
    )
    files.file(f"{path}/namespace_seed", seed.rpartition("/")[2])


def _add_namespace(files: Files, region: str, space: PmemNamespace, address: int, number: str, numa: int) -> None:
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
            "sector_size": 512,
            "numa_node": numa,
            "target_node": numa,
            "resource": f"{address:#x}",
            "devtype": "nd_namespace_pmem",
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
        files.device(above, "bus/nd", facts, {"DEVTYPE": f"nd_{holder}", "MODALIAS": "nd:t7"}, "nd_pmem")
    if space.mode == "devdax":
        facts = {"size": space.size_bytes, "target_node": numa, "numa_node": numa, "align": _ALIGN}
        facts["resource"] = f"{address:#x}"
        files.device(f"{above}/dax{number}", "bus/dax", facts, {"DEVNAME": f"dax{number}"}, "device_dax")
        return
    block = f"pmem{number.partition('.')[0]}" + ("" if number.endswith(".0") else f".{number.partition('.')[2]}")
    block += "s" if space.mode == "sector" else ""
    facts = {"size": space.size_bytes // 512, "ro": 0, "removable": 0, "queue/dax": int(space.mode != "sector")}
    files.device(f"{above}/block/{block}", "class/block", facts, {"DEVNAME": block, "DEVTYPE": "disk"})
    files.link(f"{above}/block/{block}/device", above)


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
        files.device(bus, "bus/nd", {"provider": "CXL", "wait_probe": 0}, {"DEVTYPE": "nd_bus"})
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
                {"DEVTYPE": "cxl_memdev", "DEVNAME": f"cxl/{dimm.name}"},
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
            dax = f"{path}/dax_region{number_}/dax{number_}.0"
            files.device(f"{path}/dax_region{number_}", "bus/cxl", {"devtype": "cxl_dax_region"}, {})
            files.device(dax, "bus/dax", facts, {"DEVNAME": f"dax{number_}.0"}, "device_dax")
            files.file(f"{path}/numa_node", region.numa_node)
        else:
            bridged = []
            for dimm in region.dimms:
                bridged.append(f"nmem{first_nmem}")
                facts = {"devtype": "nvdimm", "state": "active", "security": "disabled"}
                facts["cxl/id"] = str(int(dimm.serial, 16))  # decimal, as drivers/cxl/pmem.c writes it
                files.device(f"{bus}/nmem{first_nmem}", "bus/nd", facts, {"DEVTYPE": "nvdimm"}, "nvdimm")
                first_nmem += 1
            _add_region(files, region, bus, address, views[region.name], bridged)
        address += region.size_bytes


def add_upmem_rank(files: Files, dimm: UpmemDimm, rank: UpmemRank) -> None:
    """Add a rank with the attributes of UPMEM's driver."""
    number = int("".join(filter(str.isdigit, rank.name)) or 0)
    above = f"sys/devices/platform/dpu_region_mem.{number}"
    files.file(f"{above}/numa_node", dimm.numa_node)
    path = f"{above}/dpu_rank/{rank.name}"
    division = 2
    files.device(
        path,
        "class/dpu_rank",
        {
            "is_owned": 0,
            "usage_count": 0,
            "mode": "perf",
            "rank_id": number,
            "rank_index": rank.index,
            "rank_count": len(dimm.ranks),
            "channel_id": dimm.channel,
            "slot_index": dimm.slot,
            "nb_ci": rank.control_interfaces,
            "nb_dpus_per_ci": rank.dpus_per_ci,
            "mram_size": rank.mram_bytes,
            "fck_frequency": rank.clock_hz * division // 1_000_000,
            "clock_division": division,
            "dpu_chip_id": {"v1A": 8, "v1B": 9}.get(rank.chip, 8),
            "backend_id": 0,
            "byte_order": "0x0",
            "part_number": dimm.part_number,
            "serial_number": dimm.serial,
            "mcu_version": "1.0",
            "debug_mode": 0,
            "signal_led": 0,
        },
        {"DEVNAME": rank.name},
    )
    files.link(f"{path}/device", above)
