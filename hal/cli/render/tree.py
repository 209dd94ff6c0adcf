"""The tree of a machine: NUMA nodes, host bridges, switches, and what hangs below them."""

from __future__ import annotations

from collections.abc import Iterator

from hal.cli.render import describe
from hal.cli.render.text import Style, clean, cut, width
from hal.model.health import Health
from hal.model.kind import Kind
from hal.topology.graph import Level, Topology, Vertex, rack_title

_PLACES = (Level.HOST_BRIDGE, Level.SWITCH)


def tree(topology: Topology, columns: int | None = None, style: Style | None = None, all: bool = False) -> list[str]:
    """Return the tree's lines. Root and downstream ports, bare PCI functions, empty bridges come with ``all`` only."""
    drawing = _Tree(topology, columns, style or Style(), all)
    return [line for vertex in topology.children(topology.root) for line in drawing.lines(vertex)]


class _Tree:
    def __init__(self, topology: Topology, columns: int | None, style: Style, all: bool) -> None:
        self.topology = topology
        self.columns = columns
        self.style = style
        self.all = all
        self.worth = {
            vertex.id
            for vertex in topology.vertices.values()
            if self._speaks(vertex) or any(self._speaks(below) for below in topology.below(vertex))
        }

    def _speaks(self, vertex: Vertex) -> bool:
        device = vertex.device
        if vertex.level is Level.DEVICE and device is not None:
            return self.all or device.kind not in describe.HIDDEN_KINDS
        return self.all or vertex.level in (Level.RACK, Level.NODE, Level.NUMA)

    def lines(self, vertex: Vertex, first: str = "", rest: str = "") -> Iterator[str]:
        """Yield a vertex's line, then those of what it contains, with the branches drawn before them."""
        label, painted = self._label(vertex)
        if self.columns is None or len(first) + width(label) <= self.columns:
            yield (first + painted).rstrip()
        else:
            yield cut(first + label, self.columns)
        children = list(self._visible(vertex))
        for place, child in enumerate(children):
            final = place == len(children) - 1
            yield from self.lines(child, rest + ("└─ " if final else "├─ "), rest + ("   " if final else "│  "))

    def _visible(self, vertex: Vertex) -> Iterator[Vertex]:
        """Yield children, going straight through ports that say nothing."""
        children = self.topology.children(vertex)
        for child in sorted(children, key=lambda child: child.level is not Level.DEVICE):  # CPUs and memory first
            if child.id not in self.worth:
                continue
            if child.level is Level.BRIDGE and not self.all:
                yield from self._visible(child)
            else:
                yield child

    def _label(self, vertex: Vertex) -> tuple[str, str]:
        device = vertex.device
        if vertex.level is not Level.DEVICE or device is None:
            text = {
                Level.RACK: rack_title(vertex.label),
                Level.SWITCH: f"switch {vertex.label}",
                Level.BRIDGE: f"port {vertex.label}",
            }.get(vertex.level, vertex.label)
            text = clean(text)
            return text, text if vertex.level in (*_PLACES, Level.BRIDGE) else self.style.bold(text)
        head = clean(f"{device.kind.value} {device.name}" if _needs_kind(device.kind, device.name) else device.name)
        model, link = describe.model(device), describe.link(device)
        facts = [
            *([model] if model != describe.NOTHING else []),
            *([link] if link != describe.NOTHING else []),
            *([describe.detail(device)] if describe.detail(device) else []),
        ]
        health = "" if device.health is Health.HEALTHY else f"  {device.health.value}"
        tail = ("  " + ", ".join(facts)) if facts else ""
        return head + health + tail, self.style.bold(head) + self.style.health(health, device.health) + tail


def _needs_kind(kind: Kind, name: str) -> bool:
    return kind.value not in name and kind not in (Kind.RNIC, Kind.NIC)
