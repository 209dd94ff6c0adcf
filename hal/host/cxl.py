"""CXL memory devices and the regions made of them (Documentation/ABI/testing/sysfs-bus-cxl)."""

from __future__ import annotations

from hal.host.pci import address_on
from hal.host.scan import Scan, word
from hal.model.attributes import Absence, Attribute
from hal.model.kind import Kind

_CXL = "bus/cxl/devices"


def find_cxl(scan: Scan, pmem_regions: dict[str, str]) -> dict[str, str]:
    """Add the memory devices, and the regions that are not also regions of persistent memory.

    Returns the folders of the regions with their ids. ``pmem_regions`` are the folders of the latter: a persistent CXL
    region shows itself again on the NVDIMM bridge's bus, with the identity that software uses.
    """
    tree = scan.tree
    names = tree.names(_CXL)
    for name in names:
        if name.startswith("mem") and name[3:].isdecimal() and not scan.expired():
            path = tree.resolve(f"{_CXL}/{name}")
            if path is not None:
                _add_memory(scan, name, path)
    bridged = any("/nvdimm-bridge" in folder for folder in pmem_regions)
    regions: dict[str, str] = {}
    for name in names:
        if name.startswith("region") and name[6:].isdecimal() and not scan.expired():
            path = tree.resolve(f"{_CXL}/{name}")
            if path is None or (bridged and tree.line(path + "/mode") == "pmem"):
                continue
            regions[path] = _add_region(scan, name, path)
    return regions


def _add_memory(scan: Scan, name: str, path: str) -> None:
    tree = scan.tree
    address = address_on(path)
    function = scan.functions.get(address) if address is not None else None
    place = None
    if function is None or function.place[0] is None:
        place = scan.placement.place_folder(name, path)
    facts = scan.facts(function, place)
    if place is not None:
        facts["numa_node"] = place[1]
    serial = word(tree.line(path + "/serial"))
    own = serial.removeprefix("0x") if serial is not None else None
    facts["serial"] = (
        Attribute(own, "sysfs:serial")
        if own is not None
        else Attribute(source="sysfs:serial", absent=Absence.NOT_REPORTED)
    )
    facts["firmware"] = tree.text(path, "firmware_version")
    ram, pmem = tree.count(path, "ram/size"), tree.count(path, "pmem/size")
    facts["ram_bytes"], facts["pmem_bytes"] = ram, pmem
    sizes = [size.value for size in (ram, pmem) if isinstance(size.value, int)]
    if sizes:
        facts["memory_bytes"] = Attribute(sum(sizes), "sysfs:ram/size+pmem/size")
    scan.add(
        id=None if own is None else "dimm-" + own,
        else_id=f"pci/{address}" if address is not None else f"cxl/{name}",
        kind=Kind.MEMORY,
        name=name,
        location=scan.locate(function, place),
        attributes=facts,
        aliases=(*scan.take(address), "cxl:" + name, *(("serial:" + own,) if own is not None else ())),
        capacity={"memory_bytes": sum(sizes)} if sizes else None,
    )


def _add_region(scan: Scan, name: str, path: str) -> str:
    tree = scan.tree
    outer = [child for child in tree.names(path) if child.startswith("dax_region")]
    children = [f"{one}/{child}" for one in outer for child in tree.names(f"{path}/{one}") if child.startswith("dax")]
    place = scan.placement.place_folder("cxl-" + name, path, children)
    facts = scan.facts(None, place)
    size = tree.count(path, "size")
    facts["size_bytes"] = facts["memory_bytes"] = size
    kind = tree.line(path + "/mode")
    facts["media"] = Attribute("cxl", "sysfs:bus/cxl")
    facts["persistence_domain"] = (
        Attribute("memory_controller" if kind == "pmem" else "none", "sysfs:mode")
        if isinstance(kind, str)
        else kind.attribute("sysfs:mode")
    )
    facts["interleave_ways"] = tree.count(path, "interleave_ways")
    uuid = word(tree.line(path + "/uuid"))
    return scan.add(
        id=None if uuid is None else "pmem-" + uuid,
        else_id=f"cxl/{name}",
        kind=Kind.PMEM,
        name="cxl-" + name,
        location=scan.locate(None, place),
        attributes=facts,
        aliases=("cxl:" + name, *("dax:" + child.rpartition("/")[2] for child in children)),
        capacity={"memory_bytes": size.value} if isinstance(size.value, int) else None,
    )
