"""The namespaces of a region of the running machine, as sysfs tells them, and where each can be reached.

Facts: Documentation/driver-api/nvdimm/nvdimm.rst; drivers/nvdimm/{namespace,pfn,dax,btt}_devs.c. ``resource`` can only
be read by root; for others places are reckoned from the order and the sizes.
"""

from __future__ import annotations

import os

import msgspec

from hal.interfaces.pmem import Namespace, NamespaceMode

_MODES = {"memory": NamespaceMode.FSDAX, "dax": NamespaceMode.DEVDAX, "safe": NamespaceMode.SECTOR}
_SECTOR_BYTES = 512


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace and its device node ("" while it has none).

    ``data_offset_bytes`` is where what the node shows begins in the region, ``usable_bytes`` how much it shows: the
    kernel keeps some of a namespace for itself. ``badblocks`` is the node's own list, "" where only the region has one.
    """

    namespace: Namespace
    node: str
    data_offset_bytes: int
    usable_bytes: int
    badblocks: str = ""

    @property
    def is_dax(self) -> bool:
        """True for device DAX, which has no read(2) and no write(2)."""
        return self.node.startswith("/dev/dax")


def line(path: str) -> str:
    """Return an attribute, "" if it is not there or may not be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""


def number(path: str) -> int | None:
    """Return an attribute that is a number, decimal or hexadecimal; None for everything else."""
    try:
        return int(line(path), 0)
    except ValueError:
        return None


def region_spaces(region: str) -> list[Space]:
    """Return the namespaces of a region's folder by their place; those of size 0 are seeds and none."""
    start = number(region + "/resource")
    found: list[Space] = []
    reckoned = 0
    for name in sorted(_names(region, "namespace"), key=_natural):
        folder = f"{region}/{name}"
        size = number(folder + "/size") or 0
        if size <= 0:
            continue
        place = number(folder + "/resource")
        offset = place - start if place is not None and start is not None and place >= start else reckoned
        reckoned = max(reckoned, offset + size)
        found.append(_space(region, name, size, offset, start))
    return sorted(found, key=lambda space: space.namespace.offset_bytes)


def dax_space(name: str) -> Space | None:
    """Return a DAX device of no region as the one namespace that it is, None if it is gone."""
    folder = os.path.realpath(f"/sys/bus/dax/devices/{name}")
    size = number(folder + "/size")
    if not size:
        return None
    namespace = Namespace(name=name, uuid="", mode=NamespaceMode.DEVDAX, size_bytes=size, offset_bytes=0)
    return Space(namespace=namespace, node=f"/dev/{name}", data_offset_bytes=0, usable_bytes=size)


def _space(region: str, name: str, size: int, offset: int, start: int | None) -> Space:
    folder = f"{region}/{name}"
    mode = _MODES.get(line(folder + "/mode"), NamespaceMode.RAW)
    holder = line(folder + "/holder")
    above = f"{region}/{holder}" if holder and os.path.isdir(f"{region}/{holder}") else folder
    node, data, usable, badblocks = "", None, None, ""
    sector = 0
    for inner in _names(above, "dax"):
        if "." in inner and os.path.exists(f"{above}/{inner}/size"):
            node, usable = f"/dev/{inner}", number(f"{above}/{inner}/size")
            data = number(f"{above}/{inner}/resource")
            data = number(above + "/resource") if data is None else data
    for block in _names(above + "/block", "pmem"):
        node = f"/dev/{block}"
        usable = (number(f"{above}/block/{block}/size") or 0) * _SECTOR_BYTES
        data = number(above + "/resource")
        badblocks = f"{above}/block/{block}/badblocks"
        if mode is NamespaceMode.SECTOR:
            sector = number(above + "/sector_size") or _SECTOR_BYTES
    usable = size if usable is None else usable
    begin = data - start if data is not None and start is not None else offset + max(0, size - usable)
    return Space(
        namespace=Namespace(
            name=name,
            uuid=line(above + "/uuid") or line(folder + "/uuid"),  # the one that ndctl shows: of what claims it
            mode=mode,
            size_bytes=size,
            offset_bytes=offset,
            sector_bytes=sector,
        ),
        node=node,
        data_offset_bytes=begin,
        usable_bytes=usable,
        badblocks=badblocks if badblocks and os.path.exists(badblocks) else "",
    )


def _names(folder: str, prefix: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.startswith(prefix) and name[-1:].isalnum()]
    except OSError:
        return []


def _natural(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.removeprefix("namespace").split(".") if part.isdecimal())
