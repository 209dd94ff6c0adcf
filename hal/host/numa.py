"""NUMA nodes, and on which of them a device sits: firmware often does not say, so there are rules in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from hal.host.missing import EMPTY, Missing
from hal.host.tree import parse_number
from hal.model.attributes import Absence, Attribute

if TYPE_CHECKING:
    from hal.host.pci import Function
    from hal.host.tree import Tree

NODES = "devices/system/node"
_MOST_CPUS = 1 << 20

Place = tuple[int | None, Attribute]


def parse_cpulist(text: str) -> set[int] | None:
    """Return the CPUs of a kernel list (``0-3,8``), or None if it is none."""
    cpus: set[int] = set()
    for part in text.split(","):
        part = part.strip()
        if not part:
            continue
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            return None
        if not 0 <= low <= high < _MOST_CPUS:
            return None
        cpus.update(range(low, high + 1))
    return cpus


class Placement:
    """The nodes of a machine and the rules: override, the device's own word, its parent's, its local CPUs, its
    siblings', and the only node there is. The attribute's source tells which rule spoke.
    """

    def __init__(self, tree: Tree, overrides: Mapping[str, int] | None = None) -> None:
        self._tree = tree
        self._overrides = overrides or {}
        self.cpus: dict[int, set[int]] = {}
        self.cpulists: dict[int, Attribute] = {}
        for name in tree.names(NODES):
            if not name.startswith("node") or not name[4:].isdecimal() or len(name) > 9:
                continue
            listed: str | Missing = tree.read(f"{NODES}/{name}/cpulist")
            node = int(name[4:])
            if listed is EMPTY:  # a node of memory alone
                listed = ""
            cpus = parse_cpulist(listed) if isinstance(listed, str) else None
            self.cpus[node] = cpus or set()
            if cpus is not None:
                self.cpulists[node] = Attribute(str(listed), "sysfs:cpulist")
            else:
                why = Missing(Absence.MALFORMED, "no list of CPUs") if isinstance(listed, str) else listed
                self.cpulists[node] = why.attribute("sysfs:cpulist")
        self._only = next(iter(self.cpus)) if len(self.cpus) == 1 else None
        self._bridges: dict[str, int | None] = {}
        self._believed: dict[str | Missing, int | Attribute] = {}
        self._places: dict[tuple[int, str], Place] = {}

    def place(self, functions: Mapping[str, Function]) -> None:
        """Give every PCI function its node."""
        pending: list[Function] = []
        told: dict[str, set[int]] = {}
        for function in sorted(functions.values(), key=_depth):
            found = self._direct(function, functions)
            if found is None:
                pending.append(function)
                continue
            node, source = found
            self._settle(function, node, source)
            if function.bridges:
                told.setdefault(function.bridges[0], set()).add(node)
        for function in pending:
            siblings = told.get(function.bridges[0], ()) if function.bridges else ()
            if len(siblings) == 1:
                self._settle(function, next(iter(siblings)), "sibling")
            elif self._only is not None:
                self._settle(function, self._only, "single-node")
            else:
                function.place = (None, self._unknown(function.numa_why))

    def _settle(self, function: Function, node: int, source: str) -> None:
        place = self._places.get((node, source))
        if place is None:
            place = self._places[node, source] = (node, Attribute(node, source))
        function.place = place

    def _direct(self, function: Function, functions: Mapping[str, Function]) -> tuple[int, str] | None:
        overrides = self._overrides
        if overrides:
            for name in (function.address, *reversed(function.bridges)):
                if name in overrides:
                    return overrides[name], "override"
        told = function.numa_told
        own = self._believed.get(told)
        if own is None:
            own = self._believed[told] = self._believe(parse_number(told) if isinstance(told, str) else told)
        if isinstance(own, int):
            return own, "sysfs:numa_node"
        function.numa_why = own
        if function.bridges:
            parent = functions.get(function.bridges[-1])
            above = parent.place[0] if parent is not None else self._bridge(function)
            if above is not None:
                return above, "parent"
        local = self._tree.read(function.path + "/local_cpulist")
        node = self.node_of_cpus(local) if isinstance(local, str) else None
        return None if node is None else (node, "local_cpulist")

    def _bridge(self, function: Function) -> int | None:
        """The word of a host bridge's own folder, read once."""
        bridge = function.bridges[-1]
        if bridge not in self._bridges:
            own = self._believe(self._tree.number(function.path.rpartition("/")[0] + "/numa_node"))
            self._bridges[bridge] = own if isinstance(own, int) else None
        return self._bridges[bridge]

    def _believe(self, number: int | Missing) -> int | Attribute:
        """Return a node that can be true, or why it is not believed."""
        if isinstance(number, int):
            if number >= 0 and (not self.cpus or number in self.cpus):
                return number
            if number == -1:
                return Attribute(source="sysfs:numa_node", absent=Absence.NOT_REPORTED, detail="the firmware says -1")
            return Attribute(source="sysfs:numa_node", absent=Absence.MALFORMED, detail=f"there is no node {number}")
        return number.attribute("sysfs:numa_node")

    def node_of_cpus(self, text: str) -> int | None:
        """Return the one node whose CPUs a list meets, or None if there is not exactly one."""
        cpus = parse_cpulist(text)
        if not cpus:
            return None
        met = [node for node, its in self.cpus.items() if its & cpus]
        return met[0] if len(met) == 1 else None

    def place_folder(self, name: str, path: str, children: Iterable[str] = ()) -> Place:
        """Place a device that is no PCI function: its own word, its children's, its ancestors', the only node."""
        if name in self._overrides:
            node = self._overrides[name]
            return node, Attribute(node, "override")
        own = self._believe(self._tree.number(path + "/numa_node"))
        if isinstance(own, int):
            return own, Attribute(own, "sysfs:numa_node")
        for child in children:
            found = self._believe(self._tree.number(f"{path}/{child}/numa_node"))
            if isinstance(found, int):
                return found, Attribute(found, "child")
        above = path.rpartition("/")[0]
        while above.startswith("devices/") and above.count("/") > 0:
            found = self._believe(self._tree.number(above + "/numa_node"))
            if isinstance(found, int):
                return found, Attribute(found, "parent")
            above = above.rpartition("/")[0]
        if self._only is not None:
            return self._only, Attribute(self._only, "single-node")
        return None, self._unknown(own)

    def _unknown(self, why: Attribute | None) -> Attribute:
        return why or Attribute(source="sysfs:numa_node", absent=Absence.NOT_REPORTED)


def _depth(function: Function) -> int:
    return len(function.bridges)
