"""Persistent memory: NVDIMMs, regions with their namespaces, and DAX devices of no region."""

from __future__ import annotations

from hal.host.numa import Place
from hal.host.scan import Scan, malformed, word
from hal.host.storage import size_of_block
from hal.host.tree import Tree
from hal.model.attributes import Absence, Attribute
from hal.model.kind import Kind

_ND = "bus/nd/devices"
_BLOCK = "class/block"
_DAX = "bus/dax/devices"
_CHILDREN = ("namespace", "btt", "pfn", "dax")
_MODES = {"memory": "fsdax", "dax": "devdax", "safe": "sector", "raw": "raw"}
_MEDIA = {"0x0101": "NVDIMM-N", "0x101": "NVDIMM-N", "0x0201": "block", "0x201": "block"}


def find_regions(scan: Scan) -> dict[str, str]:
    """Add NVDIMMs and regions; return the folders of the regions, with their ids."""
    tree = scan.tree
    names = tree.names(_ND)
    dimms: dict[str, str] = {}
    for name in names:
        if name.startswith("nmem"):
            path = tree.resolve(f"{_ND}/{name}")
            if path is not None and not scan.expired():
                dimms[name] = _add_dimm(scan, name, path)
    folders: dict[str, str] = {}
    for name in names:
        if name.startswith("region"):
            path = tree.resolve(f"{_ND}/{name}")
            if path is not None:
                folders[path] = name
    loose: list[tuple[str, str]] = []
    for base in (_BLOCK, _DAX):  # a recording may lack bus/nd
        for name in tree.names(base):
            if name.startswith("pmem") or base == _DAX:
                path = tree.resolve(f"{base}/{name}")
                region = _region_above(path)
                if region is not None:
                    folders.setdefault(region, region.rpartition("/")[2])
                elif path is not None and base == _BLOCK:
                    loose.append((name, path))
    regions: dict[str, str] = {}
    for path, name in folders.items():
        if scan.expired():
            return regions
        regions[path] = _add_region(scan, name, path, dimms)
    for name, path in loose:
        _add_loose(scan, name, path)
    return regions


def _region_above(path: str | None) -> str | None:
    """Return the folder of the region that a block or DAX device belongs to."""
    if path is None or "/ndbus" not in path:
        return None
    parts = path.split("/")
    for index in range(len(parts) - 1, 0, -1):
        if parts[index].startswith("region") and parts[index - 1].startswith("ndbus"):
            return "/".join(parts[: index + 1])
    return None


def _add_dimm(scan: Scan, name: str, path: str) -> str:
    tree = scan.tree
    behind = _cxl_device(tree, path)
    if behind is not None:
        return behind
    place = scan.placement.place_folder(name, path)
    facts = scan.facts(None, place)
    serial = tree.line(path + "/nfit/serial")
    text = word(serial)
    own = text.removeprefix("0x") if text is not None else None
    facts["serial"] = (
        Attribute(own, "sysfs:nfit/serial")
        if own is not None
        else Attribute(source="sysfs:nfit/serial", absent=Absence.NOT_REPORTED)
        if isinstance(serial, str)
        else serial.attribute("sysfs:nfit/serial")
    )
    identity = tree.line(path + "/nfit/id")
    if isinstance(identity, str):
        facts["dimm_id"] = Attribute(identity, "sysfs:nfit/id")
    security = tree.line(path + "/security")
    if isinstance(security, str):
        facts["locked"] = Attribute(security == "locked", "sysfs:security")
        facts["encrypted"] = Attribute(security in ("locked", "unlocked", "frozen"), "sysfs:security")
    flags = tree.line(path + "/nfit/flags")
    if isinstance(flags, str):
        facts["flags"] = Attribute(tuple(flags.split()), "sysfs:nfit/flags")
    return scan.add(
        id=None if own is None else "dimm-" + own,
        else_id=f"dimm/{name}",
        kind=Kind.MEMORY,
        name=name,
        location=scan.locate(None, place),
        attributes=facts,
        aliases=("nd:" + name, *(("serial:" + own,) if own is not None else ())),
    )


def _cxl_device(tree: Tree, path: str) -> str | None:
    """Return the id of the CXL memory device that an nvdimm is another face of, None for a DIMM of its own.

    The kernel writes ``cxl/id`` as a signed decimal number (``drivers/cxl/pmem.c``), and the same serial number in
    hexadecimal at the memory device, which is where the device is described.
    """
    number = word(tree.line(path + "/cxl/id"))
    if number is None or not number.removeprefix("-").isdecimal() or not tree.names("bus/cxl/devices"):
        return None
    return f"dimm-{int(number) & 0xFFFF_FFFF_FFFF_FFFF:x}"


def _add_region(scan: Scan, name: str, path: str, dimms: dict[str, str]) -> str:
    tree = scan.tree
    below = tree.names(path)
    children = [child for child in below if child.startswith(_CHILDREN) and child[-1:].isdecimal()]
    place = scan.placement.place_folder(name, path, children)
    facts = scan.facts(None, place)
    cookie = tree.line(path + "/set_cookie")
    text = word(cookie)
    own = text.lower().removeprefix("0x") if text is not None else None
    facts["set_cookie"] = (
        Attribute(cookie, "sysfs:set_cookie")
        if own is not None and isinstance(cookie, str)
        else Attribute(source="sysfs:set_cookie", absent=Absence.NOT_REPORTED)
        if isinstance(cookie, str)
        else cookie.attribute("sysfs:set_cookie")
    )
    size = tree.count(path, "size")
    facts["size_bytes"] = facts["memory_bytes"] = size
    facts["available_bytes"] = tree.count(path, "available_size")
    facts["persistence_domain"] = tree.text(path, "persistence_domain")
    read_only = tree.count(path, "read_only")
    facts["read_only"] = Attribute(read_only.value != 0, read_only.source) if read_only.known else read_only
    facts["bad_blocks"] = _bad_blocks(tree, path, children)
    mapped, media = _mappings(tree, path, below, dimms)
    facts["dimms"] = mapped
    facts["media"] = media
    aliases = ["nd:" + name]
    modes: list[str] = []
    for child in children:
        mode = _mode(tree, f"{path}/{child}", child)
        if mode:
            modes.append(mode)
        if child.startswith("namespace"):
            aliases.append("nd:" + child)
        aliases += ["block:" + block for block in tree.names(f"{path}/{child}/block")]
        aliases += [
            "dax:" + inner for inner in tree.names(f"{path}/{child}") if inner.startswith("dax") and "." in inner
        ]
    modes = list(dict.fromkeys(modes))
    facts["mode"] = (
        Attribute(modes[0] if len(modes) == 1 else tuple(modes), "sysfs:mode")
        if modes
        else Attribute(source="sysfs:mode", absent=Absence.NOT_REPORTED, detail="no namespace yet")
    )
    return scan.add(
        id=None if own is None else "pmem-" + own,
        else_id=f"pmem/{name}",
        kind=Kind.PMEM,
        name=name,
        location=scan.locate(None, place),
        attributes=facts,
        aliases=dict.fromkeys(aliases),
        capacity={"memory_bytes": size.value} if isinstance(size.value, int) else None,
    )


def _mode(tree: Tree, path: str, child: str) -> str:
    """Return how a namespace is offered. One of size 0 is a seed for the next and offers nothing."""
    if not child.startswith("namespace"):
        return {"b": "sector", "p": "fsdax", "d": "devdax"}[child[0]] if tree.names(f"{path}/block") else ""
    size = tree.number(path + "/size")
    if size == 0:
        return ""
    mode = tree.line(path + "/mode")
    return _MODES.get(mode, mode) if isinstance(mode, str) else ""


def _bad_blocks(tree: Tree, path: str, children: list[str]) -> Attribute:
    """Count the bad sectors of a region, as its bus knows them or as its block devices do, whichever knows more.

    The bus writes what a scrub found; the block layer adds what was found in use, and what an administrator wrote.
    """
    own = _listed_blocks(tree, path + "/badblocks")
    below = [
        _listed_blocks(tree, f"{path}/{child}/block/{block}/badblocks")
        for child in children
        for block in tree.names(f"{path}/{child}/block")
    ]
    counted = sum(found.value for found in below if isinstance(found.value, int))
    if counted and own.absent is not Absence.MALFORMED and counted > (own.value if isinstance(own.value, int) else 0):
        return Attribute(counted, "sysfs:block/badblocks")
    return own


def _listed_blocks(tree: Tree, path: str) -> Attribute:
    """Count the sectors of a list: lines of a first sector and a length."""
    text = tree.read(path)
    if not isinstance(text, str):
        if text.reason is Absence.NOT_REPORTED and text.detail:  # an empty file: none
            return Attribute(0, "sysfs:badblocks")
        return text.attribute("sysfs:badblocks")
    total = 0
    for line in text.split("\n"):
        parts = line.split()
        if len(parts) != 2 or not all(part.isdecimal() and len(part) < 16 for part in parts):
            return malformed("sysfs:badblocks", f"{line[:40]!r}")
        total += int(parts[1])
    return Attribute(total, "sysfs:badblocks")


def _mappings(tree: Tree, path: str, below: list[str], dimms: dict[str, str]) -> tuple[Attribute, Attribute]:
    """Return the DIMMs that a region is interleaved over, and their media as far as the first one tells."""
    found: list[str] = []
    media = Attribute(source="sysfs:nfit/format", absent=Absence.NOT_REPORTED)
    for name in below:
        if not name.startswith("mapping") or not name[7:].isdecimal():
            continue
        text = tree.line(f"{path}/{name}")
        if not isinstance(text, str):
            continue
        dimm = text.partition(",")[0]
        found.append(dimms.get(dimm, dimm))
        if not media.known and dimm in dimms:
            code = tree.line(f"{_ND}/{dimm}/nfit/format")
            if isinstance(code, str) and code in _MEDIA:
                media = Attribute(_MEDIA[code], "sysfs:nfit/format")
    if found:
        return Attribute(tuple(found), "sysfs:mappings"), media
    return Attribute(source="sysfs:mappings", absent=Absence.NOT_REPORTED), media


def _add_loose(scan: Scan, name: str, path: str) -> None:
    """Add a ``pmem`` block device of which the recording holds no region."""
    tree = scan.tree
    place = scan.placement.place_folder(name, path)
    facts = scan.facts(None, place)
    facts["size_bytes"] = facts["memory_bytes"] = size = size_of_block(tree, path)
    facts["mode"] = Attribute("fsdax", "sysfs:class/block")
    scan.add(
        id=None,
        else_id=f"pmem/{name}",
        kind=Kind.PMEM,
        name=name,
        location=scan.locate(None, place),
        attributes=facts,
        aliases=("block:" + name,),
        capacity={"memory_bytes": size.value} if isinstance(size.value, int) else None,
    )


def find_dax(scan: Scan, regions: dict[str, str]) -> None:
    """Add the DAX devices that no region of NVDIMMs or CXL memory offers: memory that the firmware set aside.

    ``regions`` are the folders of the regions found. Such memory is volatile: its persistence domain is ``none``.
    """
    tree = scan.tree
    for name in tree.names(_DAX):
        path = tree.resolve(f"{_DAX}/{name}")
        if path is None or "." not in name or _region_above(path) is not None:
            continue
        if any(path.startswith(folder + "/") for folder in regions):
            continue
        if scan.expired():
            return
        place: Place = scan.placement.place_folder(name, path)
        facts = scan.facts(None, place)
        facts["size_bytes"] = facts["memory_bytes"] = size = tree.count(path, "size")
        facts["target_node"] = tree.count(path, "target_node")
        facts["mode"] = Attribute("devdax", "sysfs:bus/dax")
        facts["persistence_domain"] = Attribute("none", "sysfs:bus/dax")
        scan.add(
            id=None,
            else_id=f"dax/{name}",
            kind=Kind.PMEM,
            name=name,
            location=scan.locate(None, place),
            attributes=facts,
            aliases=("dax:" + name,),
            capacity={"memory_bytes": size.value} if isinstance(size.value, int) else None,
        )
