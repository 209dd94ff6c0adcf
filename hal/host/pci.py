"""All PCI functions: what they are, how they are wired, who drives them."""

from __future__ import annotations

import os
from functools import lru_cache, partial

import msgspec

from hal.host.folder import Folder
from hal.host.identity import VENDORS
from hal.host.missing import NOT_THERE, Missing
from hal.host.numa import Place
from hal.host.pcie import CONVENTIONAL, Express, read_express
from hal.host.tree import Tree
from hal.model.attributes import Absence, Attribute

DEVICES = "bus/pci/devices"
_BRIDGE = "0604"
_CONFIG_BYTES = 256
_MOST_KNOWN = 256
_FIRST = ("uevent", "numa_node")
_ERRORS = ("aer_dev_fatal", "aer_dev_nonfatal", "aer_dev_correctable")
_REST_OF_LINK = ("current_link_width", "max_link_speed", "max_link_width")
_HEX = frozenset("0123456789abcdef")
_ZEROS = str.maketrans("123456789abcdef", "0" * 15)
_ADDRESSES = frozenset("0" * digits + ":00:00.0" for digits in range(4, 9))
_NO_DRIVER = Attribute(source="sysfs:driver", absent=Absence.DRIVER_NOT_BOUND)
_NOT_PLACED = Attribute(source="sysfs:numa_node", absent=Absence.NOT_REPORTED)


class Function(msgspec.Struct, eq=False):
    """One PCI function as found; ``place`` is filled by :class:`~hal.host.numa.Placement`.

    ``bridges`` runs from the host bridge to the parent. ``role`` is ``endpoint``, ``root-port``, ``switch-upstream``,
    ``switch-downstream`` or ``pci-bridge``. Vendor, device and class are hexadecimal without prefix, empty if unknown.
    """

    address: str
    path: str
    bridges: tuple[str, ...] = ()
    vendor: str = ""
    device: str = ""
    class_code: str = ""
    driver: str = ""
    role: str = "endpoint"
    attributes: dict[str, Attribute] = {}
    place: Place = (None, _NOT_PLACED)
    numa_told: str | Missing = NOT_THERE
    numa_why: Attribute | None = None

    @property
    def slot(self) -> str:
        """The address without the function number: what the functions of one card share."""
        return self.address.rpartition(".")[0]

    @property
    def is_bridge(self) -> bool:
        """True for a bridge from PCI to PCI: a root port or a port of a switch."""
        return self.class_code[:4] == _BRIDGE


def is_address(name: str) -> bool:
    """True for ``dddd:bb:dd.f``; the domain may have up to eight digits."""
    return name[-2:-1] == "." and name.translate(_ZEROS) in _ADDRESSES


def is_host_bridge(name: str) -> bool:
    """True for ``pci0000:15``."""
    return name[:3] == "pci" and name[-3:-2] == ":" and len(name) >= 10 and _HEX.issuperset(name[3:-3] + name[-2:])


def pci_ancestry(path: str) -> tuple[str, ...]:
    """Return the host bridges and functions on a path of sysfs, outermost first, the last one included."""
    return tuple(part for part in path.split("/") if is_address(part) or is_host_bridge(part))


def address_on(path: str) -> str | None:
    """Return the innermost PCI function on a path of sysfs."""
    for part in reversed(path.split("/")):
        if is_address(part):
            return part
    return None


def find_functions(tree: Tree) -> tuple[dict[str, Function], list[str]]:
    """Return all PCI functions by address, and the entries that are none."""
    functions: dict[str, Function] = {}
    ancestries: dict[str, tuple[str, ...]] = {}
    bridges: list[tuple[Function, Express | None]] = []
    linkless: set[tuple[str, str]] = set()
    strange: list[str] = []
    for name, folder in tree.walk(DEVICES):
        if folder is None or not is_address(name):
            strange.append(name)
            continue
        path = folder.path
        function = functions[name] = Function(name, path)
        above, _, last = path.rpartition("/")
        if last == name:
            function.bridges = ancestries.get(above) or ancestries.setdefault(above, pci_ancestry(above))
        _identify(folder, function)
        if function.is_bridge:
            ancestries[path] = (*function.bridges, name)
            express = _ask_config(folder, whole=not tree.trusted)
            if express is not None and express.max_width and express.width:
                function.attributes.update(_link_of(express))
                _read_errors(folder, function)
            else:
                _read_link(folder, function, linkless)
            bridges.append((function, express))
            continue
        _read_link(folder, function, linkless)
        group = folder.link("iommu_group")
        if group is not None:
            function.attributes["iommu_group"] = Attribute(group, "sysfs:iommu_group")
    for function, express in sorted(bridges, key=_depth):  # where a bridge stands depends on those above it
        function.role, source = _role(express, function, functions)
        function.attributes["pci_role"] = Attribute(function.role, source)
    return functions, strange


def _depth(bridge: tuple[Function, Express | None]) -> int:
    return len(bridge[0].bridges)


def _identify(folder: Folder, function: Function) -> None:
    uevent, function.numa_told = folder.read_many(_FIRST)
    usual = _usual(uevent) if isinstance(uevent, str) else None
    if usual is not None:
        function.vendor, function.device, function.class_code, function.driver, attributes = usual
        function.attributes = dict(attributes)
    else:
        attributes = function.attributes
        function.vendor = _read_id(folder, "vendor", 4, attributes)
        function.device = _read_id(folder, "device", 4, attributes)
        function.class_code = _read_id(folder, "class", 6, attributes)
        function.driver = folder.link("driver") or ""
        _name_vendor_and_driver(attributes, function.vendor, function.driver, "sysfs:driver")


_Usual = tuple[str, str, str, str, dict[str, Attribute]]
_USUAL: dict[str, _Usual] = {}


def _usual(uevent: str) -> _Usual | None:
    """Return vendor, device, class, driver and attributes from a uevent as the kernel writes it, else None.

    Many functions of a machine differ in nothing but their address, which comes last.
    """
    begin = uevent.partition("\nPCI_S")[0]  # PCI_SUBSYS_ID and PCI_SLOT_NAME
    known = _USUAL.get(begin)
    if known is not None:
        return known
    lines = begin.split("\n")
    driver = lines.pop(0)[7:] if begin.startswith("DRIVER=") else ""
    if len(lines) < 2 or not lines[0].startswith("PCI_CLASS=") or not lines[1].startswith("PCI_ID="):
        return None
    code = (lines[0][10:].lower() or "-").zfill(6)
    vendor, _, device = lines[1][7:].lower().partition(":")
    if (len(code), len(vendor), len(device)) != (6, 4, 4) or not _HEX.issuperset(code + vendor + device):
        return None
    driver = driver if driver.isprintable() else ""
    attributes = {
        "pci_vendor": Attribute(vendor, "sysfs:uevent"),
        "pci_device": Attribute(device, "sysfs:uevent"),
        "pci_class": Attribute(code, "sysfs:uevent"),
    }
    _name_vendor_and_driver(attributes, vendor, driver, "sysfs:uevent")
    known = vendor, device, code, driver, attributes
    if len(_USUAL) < _MOST_KNOWN:
        _USUAL[begin] = known
    return known


def _name_vendor_and_driver(attributes: dict[str, Attribute], vendor: str, driver: str, source: str) -> None:
    named = VENDORS.get(vendor)
    if named is not None:
        attributes["vendor"] = Attribute(named, "pci-ids")
    attributes["pci_driver"] = Attribute(driver, source) if driver else _NO_DRIVER


def _read_id(folder: Folder, name: str, digits: int, attributes: dict[str, Attribute]) -> str:
    """Take a number from the file of its own, where the uevent is not as the kernel writes it."""
    found = folder.read(name)
    if isinstance(found, str):
        text = found.lower().removeprefix("0x").zfill(digits)
        if len(text) == digits and _HEX.issuperset(text):
            attributes["pci_" + name] = Attribute(text, "sysfs:" + name)
            return text
        found = Missing(Absence.MALFORMED, "not a hexadecimal number")
    attributes["pci_" + name] = found.attribute("sysfs:" + name)
    return ""


def _speed(text: str | Missing, source: str) -> Attribute:
    if not isinstance(text, str):
        return text.attribute(source)
    number = text.partition(" ")[0]
    if number.lower() == "unknown":
        return Attribute(source=source, absent=Absence.NOT_REPORTED, detail="unknown")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        return Attribute(source=source, absent=Absence.MALFORMED, detail="not a speed")
    return Attribute(value, source)


def _width(text: str | Missing, source: str) -> Attribute:
    if not isinstance(text, str):
        return text.attribute(source)
    if not text.isdecimal() or len(text) > 3:
        return Attribute(source=source, absent=Absence.MALFORMED, detail="not a width")
    lanes = int(text)
    if lanes in (0, 63, 255):  # all ones in the register: nobody answers
        return Attribute(source=source, absent=Absence.NOT_REPORTED, detail=f"no link ({lanes})")
    return Attribute(lanes, source)


def _read_link(folder: Folder, function: Function, linkless: set[tuple[str, str]]) -> None:
    """Read speed and width, now and at most; a function without a link has none of the four files.

    ``linkless`` are the vendors and devices without so far: for the next of the sort it is quicker to look first.
    """
    sort = function.vendor, function.device
    if (sort in linkless or not function.vendor) and folder.lacks("current_link_speed"):
        return
    speed = folder.read("current_link_speed")
    if speed is NOT_THERE:
        linkless.add(sort)
        return
    function.attributes.update(_link(speed, *folder.read_many(_REST_OF_LINK)))
    _read_errors(folder, function)


def _read_errors(folder: Folder, function: Function) -> None:
    """Count what Advanced Error Reporting has counted since the function came up, if the kernel handles its errors.

    Each file ends with a line of the total (Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats).
    """
    if folder.lacks(_ERRORS[0]):
        return
    counts = folder.read_many(_ERRORS)
    if counts[0] is not NOT_THERE:
        function.attributes.update(_errors(*counts))


@lru_cache(_MOST_KNOWN)
def _errors(fatal: str | Missing, nonfatal: str | Missing, correctable: str | Missing) -> dict[str, Attribute]:
    counts = zip(("fatal", "nonfatal", "correctable"), (fatal, nonfatal, correctable), strict=True)
    return {f"pci_{name}_errors": _total(text, f"sysfs:aer_dev_{name}") for name, text in counts}


def _total(text: str | Missing, source: str) -> Attribute:
    if not isinstance(text, str):
        return text.attribute(source)
    name, _, count = text.rpartition("\n")[2].partition(" ")
    if not name.startswith("TOTAL_ERR_") or not count.isdecimal() or len(count) > 20:
        return Attribute(source=source, absent=Absence.MALFORMED, detail="no line of the total")
    return Attribute(int(count), source)


@lru_cache(_MOST_KNOWN)
def _link(
    speed: str | Missing, width: str | Missing, max_speed: str | Missing, max_width: str | Missing
) -> dict[str, Attribute]:
    return {
        "link_speed_gts": _speed(speed, "sysfs:current_link_speed"),
        "link_width": _width(width, "sysfs:current_link_width"),
        "link_max_speed_gts": _speed(max_speed, "sysfs:max_link_speed"),
        "link_max_width": _width(max_width, "sysfs:max_link_width"),
    }


@lru_cache(_MOST_KNOWN)
def _link_of(express: Express) -> dict[str, Attribute]:
    return {
        "link_speed_gts": Attribute(express.speed_gts, "sysfs:config"),
        "link_width": Attribute(express.width, "sysfs:config"),
        "link_max_speed_gts": Attribute(express.max_speed_gts, "sysfs:config"),
        "link_max_width": Attribute(express.max_width, "sysfs:config"),
    }


def _ask_config(folder: Folder, *, whole: bool) -> Express | None:
    """Read what a function says of itself; ``whole`` where reading costs no word with the hardware."""
    config = folder.open("config")
    if not isinstance(config, int):
        return None
    try:
        if whole:
            data = os.read(config, _CONFIG_BYTES)
            return read_express(lambda length, offset: data[offset : offset + length])
        return read_express(partial(os.pread, config))
    except OSError:  # a folder or a pipe in place of it
        return None
    finally:
        os.close(config)


def _role(express: Express | None, function: Function, functions: dict[str, Function]) -> tuple[str, str]:
    """Say what a bridge is: from its PCI Express capability if that can be read, else from where it stands."""
    if express is not None and express.role:
        return express.role, "sysfs:config"
    if express is CONVENTIONAL and "link_speed_gts" not in function.attributes:
        return "pci-bridge", "sysfs:config"
    parent = functions.get(function.bridges[-1]) if function.bridges else None
    if parent is None or not parent.is_bridge:
        return "root-port", "position"
    return ("switch-downstream" if parent.role == "switch-upstream" else "switch-upstream"), "position"
