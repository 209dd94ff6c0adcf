"""All PCI functions: what they are, how they are wired, who drives them."""

from __future__ import annotations

from hal.host.identity import VENDORS
from hal.host.numa import Place
from hal.host.pcie import express_role
from hal.host.tree import Missing, Tree
from hal.model.attributes import Absence, Attribute

DEVICES = "bus/pci/devices"
_BRIDGE = "0604"
_HEX = frozenset("0123456789abcdef")
_NO_DRIVER = Attribute(source="sysfs:driver", absent=Absence.DRIVER_NOT_BOUND)
_NOT_PLACED = Attribute(source="sysfs:numa_node", absent=Absence.NOT_REPORTED)
_NO_SPEED = Attribute(source="sysfs:current_link_speed", absent=Absence.NOT_REPORTED)
_LINK_FILES = (
    ("link_speed_gts", "current_link_speed", True),
    ("link_width", "current_link_width", False),
    ("link_max_speed_gts", "max_link_speed", True),
    ("link_max_width", "max_link_width", False),
)


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
    strange: list[str] = []
    for name in tree.names(DEVICES):
        if not is_address(name):
            strange.append(name)
            continue
        entry = f"{DEVICES}/{name}"
        path = tree.resolve(entry)
        if path is None:
            strange.append(name)
            continue
        functions[name] = _read_function(tree, name, path)
    for function in sorted(functions.values(), key=lambda one: len(one.bridges)):
        if function.is_bridge:
            function.role = _role(tree, function, functions)
            function.attributes["pci_role"] = Attribute(function.role, "sysfs:config")
    return functions, strange


def _read_function(tree: Tree, address: str, path: str) -> Function:
    function = Function(address, path)
    ancestry = pci_ancestry(path)
    function.bridges = ancestry[:-1] if ancestry and ancestry[-1] == address else ()
    uevent = tree.read(path + "/uevent")
    fields: dict[str, str] = {}
    if isinstance(uevent, str):
        for line in uevent.split("\n"):
            key, _, value = line.partition("=")
            fields[key] = value
    attributes = function.attributes
    vendor, _, device = fields.get("PCI_ID", "").lower().partition(":")
    function.vendor = _identify(tree, path, "vendor", vendor, 4, attributes)
    function.device = _identify(tree, path, "device", device, 4, attributes)
    function.class_code = _identify(tree, path, "class", fields.get("PCI_CLASS", "").lower().zfill(6), 6, attributes)
    named = VENDORS.get(function.vendor)
    if named is not None:
        attributes["vendor"] = Attribute(named, "pci-ids")
    driver = fields.get("DRIVER") or ("" if fields else tree.link(path + "/driver"))
    if driver and driver.isprintable():
        function.driver = driver
        attributes["pci_driver"] = Attribute(driver, "sysfs:uevent")
    else:
        attributes["pci_driver"] = _NO_DRIVER
    _read_link(tree, path, attributes)
    group = tree.link(path + "/iommu_group")
    if group is not None:
        attributes["iommu_group"] = Attribute(group, "sysfs:iommu_group")
    return function


def _identify(tree: Tree, path: str, name: str, told: str, digits: int, attributes: dict[str, Attribute]) -> str:
    """Take a number from the uevent if it is one, else from the file of its own."""
    if len(told) == digits and _HEX.issuperset(told) and told != "000000":
        attributes["pci_" + name] = Attribute(told, "sysfs:uevent")
        return told
    found = tree.read(f"{path}/{name}")
    if isinstance(found, str):
        text = found.lower().removeprefix("0x").zfill(digits)
        if len(text) == digits and _HEX.issuperset(text):
            attributes["pci_" + name] = Attribute(text, "sysfs:" + name)
            return text
        found = Missing(Absence.MALFORMED, "not a hexadecimal number")
    attributes["pci_" + name] = found.attribute("sysfs:" + name)
    return ""


def _read_link(tree: Tree, path: str, attributes: dict[str, Attribute]) -> None:
    """Read speed and width, now and at most; a function without a link costs one look."""
    for name, file, is_speed in _LINK_FILES:
        text = tree.read(f"{path}/{file}")
        if isinstance(text, str):
            attributes[name] = _speed(text, file) if is_speed else _width(text, file)
        elif text.reason is Absence.NOT_REPORTED and file == "current_link_speed" and not text.detail:
            return
        else:
            attributes[name] = text.attribute("sysfs:" + file)


_SPEEDS: dict[tuple[str, str], Attribute] = {}


def _speed(text: str, file: str) -> Attribute:
    known = _SPEEDS.get((text, file))
    if known is not None:
        return known
    source = "sysfs:" + file
    number = text.partition(" ")[0]
    if number.lower() == "unknown":
        return Attribute(source=source, absent=Absence.NOT_REPORTED, detail="unknown")
    try:
        value = float(number)
    except ValueError:
        return Attribute(source=source, absent=Absence.MALFORMED, detail="not a speed")
    if not 0 < value < 1e6:
        return Attribute(source=source, absent=Absence.MALFORMED, detail="not a speed")
    found = Attribute(value, source)
    if len(_SPEEDS) < 64:
        _SPEEDS[text, file] = found
    return found


def _width(text: str, file: str) -> Attribute:
    source = "sysfs:" + file
    if not text.isdecimal() or len(text) > 3:
        return Attribute(source=source, absent=Absence.MALFORMED, detail="not a width")
    lanes = int(text)
    if lanes in (0, 63, 255):  # all ones in the register: nobody answers
        return Attribute(source=source, absent=Absence.NOT_REPORTED, detail=f"no link ({lanes})")
    return Attribute(lanes, source)


def _role(tree: Tree, function: Function, functions: dict[str, Function]) -> str:
    """Say what a bridge is: from its PCI Express capability if that can be read, else from where it stands."""
    config = tree.read_bytes(function.path + "/config", 256)
    told = express_role(config) if isinstance(config, bytes) else None
    if told:
        return told
    if told == "" and "link_max_width" not in function.attributes and "link_width" not in function.attributes:
        return "pci-bridge"
    parent = functions.get(function.bridges[-1]) if function.bridges else None
    if parent is None or not parent.is_bridge:
        return "root-port"
    return "switch-downstream" if parent.role == "switch-upstream" else "switch-upstream"
