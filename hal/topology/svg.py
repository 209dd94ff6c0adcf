"""The picture of a machine: racks, machines, NUMA nodes, switches with their devices, in plain SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hal.model.device import Device
from hal.model.health import Health, Presence, Status
from hal.model.kind import Kind
from hal.topology.distance import is_switched, nvlink_bandwidth, nvlinks
from hal.topology.graph import Level, Topology, Vertex, build, rack_title
from hal.topology.svg_boxes import Box, flow, frame, grid, legend_row, page, painted_chip, stack, text_line

_ORDER = (Kind.DPU, Kind.GPU, Kind.RNIC, Kind.NVME, Kind.NIC, Kind.PMEM, Kind.UPMEM, Kind.MEMORY, Kind.CPU)
_KIND_COLOURS = {
    Kind.GPU: "#3949ab",
    Kind.RNIC: "#00838f",
    Kind.DPU: "#6a1b9a",
    Kind.PMEM: "#8d4b1f",
    Kind.UPMEM: "#ad1457",
    Kind.NVME: "#455a64",
    Kind.NIC: "#0277bd",
    Kind.MEMORY: "#827717",
    Kind.CPU: "#5f6368",
}
_HEALTH_COLOURS = {
    Health.HEALTHY: ("#e8f5e9", "#2e7d32"),
    Health.DEGRADED: ("#fff3cd", "#b26a00"),
    Health.SUSPECT: ("#f9e0f3", "#8e24aa"),
    Health.FAILED: ("#fddcd8", "#c62828"),
    Health.UNKNOWN: ("#e7eaf0", "#546e7a"),
}
_NUMA_WIDTH, _NODE_WIDTH, _PAGE_WIDTH = 830, 1750, 1800


def picture(devices: Iterable[Device], title: str = "") -> str:
    """Return an SVG document of some devices: well-formed XML, as large as it must be, no scripts, no links."""
    found = tuple(devices)
    drawing = _Drawing(found)
    nodes = drawing.topology.of_level(Level.NODE)
    said = title or f"Topology of {nodes[0].label if len(nodes) == 1 else f'{len(nodes)} machines'}"
    body: list[Box] = [text_line(said, size=20, bold=True), text_line(_summary(found), size=13), *drawing.top()]
    body.append(_legend(found))
    return page(stack(body, gap=12), said)


def _summary(devices: Sequence[Device]) -> str:
    counts: dict[str, int] = {}
    for device in devices:
        if device.kind in _ORDER and device.kind not in (Kind.CPU, Kind.MEMORY):
            counts[device.kind.value] = counts.get(device.kind.value, 0) + 1
    ill = sum(device.health is not Health.HEALTHY for device in devices)
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "no accelerators"
    return f"{listed}; {f'{ill} not healthy' if ill else 'all healthy'}"


def _legend(devices: Sequence[Device]) -> Box:
    kinds = {device.kind for device in devices if device.kind is not Kind.CPU and not _is_node_memory(device)}
    strips = [(kind.value, colour, colour) for kind, colour in _KIND_COLOURS.items() if kind in kinds]
    healths = [(health.value, *colours) for health, colours in _HEALTH_COLOURS.items()]
    return stack([legend_row("health", healths), legend_row("kind", strips)], gap=4)


class _Drawing:
    def __init__(self, devices: tuple[Device, ...]) -> None:
        self.topology: Topology = build(devices)
        self.behind: dict[str, list[Device]] = {}
        self.inner: set[str] = set()
        for region in devices:
            dimms = region.value("dimms")
            if region.kind is Kind.PMEM and isinstance(dimms, tuple):
                behind = [device for device in devices if _backs(device, region, {str(name) for name in dimms})]
                self.behind[region.id] = behind
                self.inner.update(device.id for device in behind)

    def top(self) -> list[Box]:
        boxes: list[Box] = []
        for vertex in self.topology.children(self.topology.root):
            if vertex.level is Level.RACK:
                nodes = [self.node(node) for node in self.topology.children(vertex)]
                boxes.append(frame(rack_title(vertex.label), flow(nodes, _PAGE_WIDTH), "#f1f3f4", "#80868b", size=17))
            else:
                boxes.append(self.node(vertex))
        return boxes

    def node(self, vertex: Vertex) -> Box:
        below = [one.device for one in self.topology.below(vertex) if one.device is not None]
        parts: list[Box] = []
        linked = _link_summary(below)
        if linked:
            parts.append(frame("", text_line(linked, size=13), "#ede7f6", "#673ab7"))
        numas = [child for child in self.topology.children(vertex) if child.level is Level.NUMA]
        rest = [child for child in self.topology.children(vertex) if child.level is not Level.NUMA]
        drawn = [self.numa(child) for child in sorted(numas, key=lambda child: int(child.label.split()[-1]))]
        if drawn:
            parts.append(flow(drawn, _NODE_WIDTH))
        if stray := self.groups(rest):
            parts.append(frame("no NUMA node", flow(stray, _NODE_WIDTH), "#ffffff", "#9aa0a6"))
        return frame(vertex.label, stack(parts), "#ffffff", "#3c4043", size=16)

    def numa(self, vertex: Vertex) -> Box:
        facts = [vertex.label]
        for child in self.topology.children(vertex):
            device = child.device
            if device is not None and device.kind is Kind.CPU:
                facts.append(f"CPUs {device.value('cpulist')}" if device.value("cpulist") else device.name)
            elif device is not None and _is_node_memory(device) and device.value("memory_bytes"):
                facts.append(_gibibytes(device.value("memory_bytes")))
        groups = self.groups(self.topology.children(vertex))
        return frame(" · ".join(facts), flow(groups, _NUMA_WIDTH), "#f8f9fa", "#9aa0a6", size=14)

    def groups(self, vertices: Sequence[Vertex]) -> list[Box]:
        """Return a box a switch, a box for the rest of each host bridge, and one for what is not on PCI."""
        boxes: list[Box] = []
        direct: list[Device] = []
        for vertex in vertices:
            if vertex.level is Level.DEVICE:
                if vertex.device is not None and self.is_drawn(vertex.device):
                    direct.append(vertex.device)
                continue
            alone: list[Device] = []
            for switch, devices in self.by_switch(vertex):
                if switch is None:
                    alone += devices
                elif devices:
                    boxes.append(self.group(f"PCIe switch {switch.label}", devices))
            if alone:
                boxes.append(self.group(f"host bridge {vertex.label}", alone))
        if direct:
            boxes.append(self.group("memory bus and others", direct))
        return boxes

    def by_switch(self, bridge: Vertex) -> list[tuple[Vertex | None, list[Device]]]:
        """Return the devices below a host bridge by the outermost switch above them, None for those without."""
        found: list[tuple[Vertex | None, list[Device]]] = []
        alone: list[Device] = []
        for child in self.topology.children(bridge):
            if child.level is Level.SWITCH:
                below = [one.device for one in self.topology.below(child) if self.is_top(one)]
                found.append((child, [device for device in below if device is not None]))
            elif child.level is Level.DEVICE:
                if child.device is not None and self.is_drawn(child.device):
                    alone.append(child.device)
            else:
                for switch, devices in self.by_switch(child):
                    if switch is None:
                        alone += devices
                    else:
                        found.append((switch, devices))
        found.append((None, alone))
        return found

    def is_top(self, vertex: Vertex) -> bool:
        """True for a device that gets a chip of its own: not a part of another device's."""
        above = self.topology.vertices.get(vertex.within or "")
        inner = above is not None and above.level is Level.DEVICE
        return vertex.level is Level.DEVICE and vertex.device is not None and not inner and self.is_drawn(vertex.device)

    def is_drawn(self, device: Device) -> bool:
        if device.kind in (Kind.PCI, Kind.SWITCH):
            return device.health is not Health.HEALTHY
        if device.kind is Kind.CPU or _is_node_memory(device):
            return device.health is not Health.HEALTHY
        return device.id not in self.inner

    def group(self, title: str, devices: Sequence[Device]) -> Box:
        place = {kind: index for index, kind in enumerate(_ORDER)}
        ordered = sorted(devices, key=lambda device: place.get(device.kind, len(place)))
        columns = 2 if len(ordered) <= 8 else 4
        return frame(title, grid([self.chip(device) for device in ordered], columns), "#ffffff", "#bdc1c6", size=12)

    def chip(self, device: Device) -> Box:
        fill, stroke = _HEALTH_COLOURS[device.health]
        vertex = self.topology.vertices[device.id]
        parts = [child.device for child in self.topology.below(vertex) if child.device is not None]
        parts += self.behind.get(device.id, [])
        lanes = nvlinks(device)
        badges = [f"NV{lanes}"] if lanes else []
        badges += ["C2C"] if any(link.type == "c2c" for link in device.links) else []
        return painted_chip(
            name=device.name,
            badge=" ".join(badges),
            lines=(_model(device), _third_line(device) or _part_count(parts)),
            fill=fill,
            stroke=stroke,
            strip=_KIND_COLOURS.get(device.kind, "#5f6368"),
            dashed=device.presence is not Presence.PRESENT,
            parts=[
                (part.name, *_HEALTH_COLOURS[part.health], _KIND_COLOURS.get(part.kind, "#5f6368")) for part in parts
            ],
        )


def _model(device: Device) -> str:
    for name in ("model", "media", "part_number", "mode"):
        value = device.value(name)
        if value:
            return str(value).removeprefix("NVIDIA ").removeprefix("Mellanox ")
    return device.kind.value


def _third_line(device: Device) -> str:
    if device.health is not Health.HEALTHY:
        types = [condition.type for condition in device.conditions if condition.status is not Status.FALSE]
        return f"{device.health}: {types[0]}" if types else f"{device.health}: {device.presence}"
    size = device.capacity.get("size_bytes") or device.value("size_bytes") or device.capacity.get("mram_bytes")
    if device.kind in (Kind.PMEM, Kind.UPMEM) and size:
        return _gibibytes(size)
    speed, width = device.value("link_speed_gts"), device.value("link_width")
    if speed and width:
        return f"{speed:g} GT/s x{width}" if isinstance(speed, (int, float)) else f"{speed} x{width}"
    return _gibibytes(size) if size else device.location.pci_address or ""


def _part_count(parts: Sequence[Device]) -> str:
    return f"{len(parts)} {parts[0].kind.value}" if parts else ""


def _gibibytes(count: object) -> str:
    if not isinstance(count, (int, float)):
        return ""
    gibibytes = count / (1 << 30)
    return f"{gibibytes / 1024:.3g} TiB" if gibibytes >= 1000 else f"{gibibytes:.3g} GiB"


def _backs(device: Device, region: Device, dimms: set[str]) -> bool:
    """True for a DIMM that a region names, by its id, name or serial number."""
    if device.kind is not Kind.MEMORY or device.location.node != region.location.node:
        return False
    return not dimms.isdisjoint((device.id, device.name, device.id.removeprefix("dimm-")))


def _is_node_memory(device: Device) -> bool:
    return device.kind is Kind.MEMORY and not device.id.startswith("dimm-")


def _link_summary(devices: Sequence[Device]) -> str:
    """Say in one line how the GPUs are linked: too many lines to draw, and all alike."""
    linked = [device for device in devices if any(link.type == "nvlink" for link in device.links)]
    if not linked:
        return ""
    lanes = {nvlinks(device) for device in linked}
    rates = {nvlink_bandwidth(device) for device in linked}
    ids = {device.id for device in linked}
    direct = any(link.peer in ids and not is_switched(link) for device in linked for link in device.links)
    down = sum(link.state != "up" for device in linked for link in device.links if link.type == "nvlink")
    count = f"{min(lanes)}" if len(lanes) == 1 else f"{min(lanes)} to {max(lanes)}"
    names = linked[0].name if len(linked) == 1 else f"{linked[0].name} to {linked[-1].name}"
    rate = f", {max(rates) / 1e9:.0f} GB/s each way a GPU" if max(rates) > 0 else ""
    state = f"; {down} down" if down else ""
    return f"NVLink {'directly' if direct else 'through NVSwitch'}: {names}, {count} links a GPU{rate}{state}"
