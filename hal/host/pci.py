"""All PCI functions: what they are, how they are wired, who drives them."""

from __future__ import annotations

import os
import re
from functools import partial

from hal.host.identity import VENDORS
from hal.host.missing import NOT_THERE, Missing
from hal.host.numa import Place
from hal.host.pcie import CONVENTIONAL, Express, read_express
from hal.host.tree import Tree
from hal.model.attributes import Absence, Attribute

DEVICES = "bus/pci/devices"
_BRIDGE = "0604"
_HEX = frozenset("0123456789abcdef")
_NO_DRIVER = Attribute(source="sysfs:driver", absent=Absence.DRIVER_NOT_BOUND)
_NOT_PLACED = Attribute(source="sysfs:numa_node", absent=Absence.NOT_REPORTED)
_UEVENT = re.compile(
    r"(?:DRIVER=([^\n]*)\n)?PCI_CLASS=([0-9A-Fa-f]{1,6})\nPCI_ID=([0-9A-Fa-f]{4}):([0-9A-Fa-f]{4})(?:\n|$)"
)
_FILES = ("uevent", "numa_node")
_LINK_FILES = ("current_link_width", "max_link_speed", "max_link_width")


class Function:
    """One PCI function as found; ``place`` is filled by :class:`~hal.host.numa.Placement`.

    ``bridges`` runs from the host bridge to the parent. ``role`` is ``endpoint``, ``root-port``, ``switch-upstream``,
    ``switch-downstream`` or ``pci-bridge``. Vendor, device and class are hexadecimal without prefix, empty if unknown.
    """

    __slots__ = (
        "address",
        "attributes",
        "bridges",
        "class_code",
        "device",
        "driver",
        "numa_told",
        "numa_why",
        "path",
        "place",
        "role",
        "vendor",
    )

    def __init__(self, address: str, path: str) -> None:
        self.address = address
        self.path = path
        self.bridges: tuple[str, ...] = ()
        self.vendor = self.device = self.class_code = self.driver = ""
        self.role = "endpoint"
        self.attributes: dict[str, Attribute] = {}
        self.place: Place = (None, _NOT_PLACED)
        self.numa_told: str | Missing = NOT_THERE
        self.numa_why: Attribute | None = None

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
    if len(name) < 12 or name[-2] != "." or name[-5] != ":" or name[-8] != ":":
        return False
    domain = name[:-8]
    return len(domain) <= 8 and _HEX.issuperset(domain + name[-7:-5] + name[-4:-2] + name[-1])


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
    strange: list[str] = []
    for name, path in tree.entries(DEVICES):
        if path is None or not is_address(name):
            strange.append(name)
            continue
        function = functions[name] = _read_function(tree, name, path)
        above, _, last = path.rpartition("/")
        if last == name:
            bridges = ancestries.get(above)
            if bridges is None:
                bridges = ancestries[above] = pci_ancestry(above)
            function.bridges = bridges
            ancestries[path] = (*bridges, name)
    for function in sorted(functions.values(), key=lambda one: len(one.bridges)):
        if function.is_bridge:
            express = _ask_config(tree, function)
            if express is not None and express.max_width and express.width:
                _take_link(function.attributes, express)
            else:
                _read_link(tree, function)
            function.role, source = _role(express, function, functions)
            function.attributes["pci_role"] = Attribute(function.role, source)
    return functions, strange


def _read_function(tree: Tree, address: str, path: str) -> Function:
    function = Function(address, path)
    uevent, function.numa_told = tree.read_many(path, _FILES)
    attributes = function.attributes
    driver: str | None
    usual = _UEVENT.match(uevent) if isinstance(uevent, str) else None
    if usual is not None:
        driver, code, vendor, device = usual.groups()
        function.vendor, function.device = vendor.lower(), device.lower()
        function.class_code = code.lower().zfill(6)
        attributes["pci_vendor"] = Attribute(function.vendor, "sysfs:uevent")
        attributes["pci_device"] = Attribute(function.device, "sysfs:uevent")
        attributes["pci_class"] = Attribute(function.class_code, "sysfs:uevent")
    else:
        function.vendor = _identify(tree, path, "vendor", 4, attributes)
        function.device = _identify(tree, path, "device", 4, attributes)
        function.class_code = _identify(tree, path, "class", 6, attributes)
        driver = tree.link(path + "/driver")
    named = VENDORS.get(function.vendor)
    if named is not None:
        attributes["vendor"] = Attribute(named, "pci-ids")
    if driver and driver.isprintable():
        function.driver = driver
        attributes["pci_driver"] = Attribute(driver, "sysfs:uevent" if usual is not None else "sysfs:driver")
    else:
        attributes["pci_driver"] = _NO_DRIVER
    if not function.is_bridge:
        _read_link(tree, function)
        group = tree.link(path + "/iommu_group")
        if group is not None:
            attributes["iommu_group"] = Attribute(group, "sysfs:iommu_group")
    return function


def _identify(tree: Tree, path: str, name: str, digits: int, attributes: dict[str, Attribute]) -> str:
    """Take a number from the file of its own, where the uevent is not as the kernel writes it."""
    found = tree.read(f"{path}/{name}")
    if isinstance(found, str):
        text = found.lower().removeprefix("0x").zfill(digits)
        if len(text) == digits and _HEX.issuperset(text):
            attributes["pci_" + name] = Attribute(text, "sysfs:" + name)
            return text
        found = Missing(Absence.MALFORMED, "not a hexadecimal number")
    attributes["pci_" + name] = found.attribute("sysfs:" + name)
    return ""


_KNOWN: dict[tuple[str, str], Attribute] = {}
_MOST_KNOWN = 256


def _speed(text: str | Missing, file: str) -> Attribute:
    if not isinstance(text, str):
        return text.attribute("sysfs:" + file)
    known = _KNOWN.get((text, file))
    return known if known is not None else _remember(text, file, _parse_speed(text, "sysfs:" + file))


def _width(text: str | Missing, file: str) -> Attribute:
    if not isinstance(text, str):
        return text.attribute("sysfs:" + file)
    known = _KNOWN.get((text, file))
    return known if known is not None else _remember(text, file, _parse_width(text, "sysfs:" + file))


def _remember(text: str, file: str, found: Attribute) -> Attribute:
    if len(_KNOWN) < _MOST_KNOWN:
        _KNOWN[text, file] = found
    return found


def _parse_speed(text: str, source: str) -> Attribute:
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


def _parse_width(text: str, source: str) -> Attribute:
    if not text.isdecimal() or len(text) > 3:
        return Attribute(source=source, absent=Absence.MALFORMED, detail="not a width")
    lanes = int(text)
    if lanes in (0, 63, 255):  # all ones in the register: nobody answers
        return Attribute(source=source, absent=Absence.NOT_REPORTED, detail=f"no link ({lanes})")
    return Attribute(lanes, source)


def _read_link(tree: Tree, function: Function) -> None:
    """Read speed and width, now and at most; a function without a link has none of the four files."""
    speed = tree.read(function.path + "/current_link_speed")
    if speed is NOT_THERE:
        return
    attributes = function.attributes
    attributes["link_speed_gts"] = _speed(speed, "current_link_speed")
    width, max_speed, max_width = tree.read_many(function.path, _LINK_FILES)
    attributes["link_width"] = _width(width, "current_link_width")
    attributes["link_max_speed_gts"] = _speed(max_speed, "max_link_speed")
    attributes["link_max_width"] = _width(max_width, "max_link_width")


def _take_link(attributes: dict[str, Attribute], express: Express) -> None:
    attributes["link_speed_gts"] = Attribute(express.speed_gts, "sysfs:config")
    attributes["link_width"] = Attribute(express.width, "sysfs:config")
    attributes["link_max_speed_gts"] = Attribute(express.max_speed_gts, "sysfs:config")
    attributes["link_max_width"] = Attribute(express.max_width, "sysfs:config")


def _ask_config(tree: Tree, function: Function) -> Express | None:
    config = tree.open(function.path + "/config")
    if not isinstance(config, int):
        return None
    try:
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
