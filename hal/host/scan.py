"""One look at one machine: what the finders share while devices are gathered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hal.drivers.contract import Problem
from hal.host.conditions import judge
from hal.host.missing import Missing
from hal.host.numa import Place, Placement
from hal.host.pci import Function, find_functions
from hal.host.tree import HostTree, parse_number
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Absence, Attribute
from hal.model.device import Device, Location
from hal.model.kind import Kind

DRIVER = "sysfs"


class Scan:
    """Devices found so far, and the PCI functions that they have taken for themselves.

    Ids and names are unique: a second device with the same serial number keeps the place where it sits as its id, and
    a problem says so.
    """

    def __init__(
        self,
        host: HostTree,
        node: str,
        rack: str | None = None,
        overrides: Mapping[str, int] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self.host = host
        self.tree = host.sys
        self.node = node
        self.rack = rack
        self.deadline = deadline
        self.devices: list[Device] = []
        self.problems: list[Problem] = []
        self.taken: set[str] = set()
        self.parents: dict[str, str] = {}
        self._ids: set[str] = set()
        self._names: set[str] = set()
        self._out_of_time = False
        self.functions, strange = find_functions(self.tree)
        for name in strange:
            self.complain(f"{name!r} in bus/pci/devices is no PCI function, or a link that leads nowhere")
        self.placement = Placement(self.tree, overrides)
        self.placement.place(self.functions)
        self.slots = self._find_slots()

    def complain(self, detail: str, *, fatal: bool = False, hint: str = "") -> None:
        """Note a problem; a fatal one makes the report partial."""
        self.problems.append(Problem(source=DRIVER, step="discover", detail=detail, hint=hint, fatal=fatal))

    def expired(self) -> bool:
        """True, and noted once, when the deadline has passed: what is not found by now is not looked for."""
        if self.deadline is not None and not self._out_of_time and self.deadline.expired:
            self._out_of_time = True
            self.complain("the deadline passed before everything was looked at", fatal=True, hint="--timeout")
        return self._out_of_time

    def add(
        self,
        *,
        id: str | None,
        else_id: str,
        kind: Kind,
        name: str,
        location: Location,
        attributes: dict[str, Attribute],
        aliases: Iterable[str] = (),
        capacity: dict[str, int] | None = None,
        parent: str | None = None,
    ) -> str:
        """Add a device and return its id: ``id`` if it has one that nothing else claims, ``else_id`` if not."""
        ids, names = self._ids, self._names
        chosen = id
        if chosen is None or chosen in ids:
            if chosen is not None:
                self.complain(f"{name} has the identity {id} of another device", hint="its firmware repeats a number")
            chosen = f"{self.node}/{else_id}"
            if chosen in ids:
                chosen = _unused(chosen, ids)
        ids.add(chosen)
        if name in names:
            name = _unused(name, names)
        names.add(name)
        self.devices.append(
            Device(
                id=chosen,
                kind=kind,
                name=name,
                driver=DRIVER,
                location=location,
                aliases=tuple(aliases),
                attributes=attributes,
                capacity=capacity or {},
                parent=parent,
                conditions=judge(chosen, attributes),
            )
        )
        return chosen

    def take(self, address: str | None) -> tuple[str, ...]:
        """Take a PCI function for a device; return its alias, unless another device of it came first."""
        if address is None or address in self.taken:
            return ()
        self.taken.add(address)
        return ("pci:" + address,)

    def locate(self, function: Function | None, place: Place | None = None) -> Location:
        """Return where a device of a PCI function, or without one, sits."""
        if function is None:
            return Location(node=self.node, rack=self.rack, numa_node=place[0] if place else None)
        return Location(
            node=self.node,
            rack=self.rack,
            numa_node=function.place[0],
            pci_address=function.address,
            pci_path=function.bridges,
            slot=self.slots.get(function.slot) if self.slots else None,
        )

    def facts(self, function: Function | None, place: Place | None = None) -> dict[str, Attribute]:
        """Return the attributes that a device has from its PCI function, or from its place alone."""
        if function is None:
            return {} if place is None else {"numa_node": place[1]}
        return {**function.attributes, "numa_node": function.place[1]}

    def _find_slots(self) -> dict[str, str]:
        slots: dict[str, str] = {}
        for name in self.tree.names("bus/pci/slots"):
            address = self.tree.line(f"bus/pci/slots/{name}/address")
            if isinstance(address, str):
                slots[address] = name
        return slots


def _unused(wanted: str, used: set[str]) -> str:
    if wanted not in used:
        return wanted
    number = 2
    while f"{wanted}-{number}" in used:
        number += 1
    return f"{wanted}-{number}"


def word(found: str | Missing) -> str | None:
    """Return a text that can be part of an id: without blanks or slashes, and not all zeros."""
    if not isinstance(found, str):
        return None
    text = found.strip().replace(" ", "_").replace("/", "_")
    return text if text.strip("0:-x_.") and text.isprintable() else None


def malformed(source: str, detail: str) -> Attribute:
    """Return an attribute whose text makes no sense."""
    return Attribute(source=source, absent=Absence.MALFORMED, detail=detail)


def one_line(found: str | Missing, source: str) -> Attribute:
    """Return the attribute that a text amounts to, if it is one printable line."""
    if not isinstance(found, str):
        return found.attribute(source)
    return Attribute(found, source) if found.isprintable() else malformed(source, "control characters")


def whole_number(found: str | Missing, source: str) -> Attribute:
    """Return the attribute that a text amounts to, if it is a whole number of at most 64 bits."""
    number = parse_number(found) if isinstance(found, str) else found
    return Attribute(number, source) if isinstance(number, int) else number.attribute(source)
