"""A device in few words: its model, its link, what matters of its kind."""

from __future__ import annotations

from collections.abc import Callable

from hal.cli.render.text import clean
from hal.model.device import Device
from hal.model.health import Health, Presence, Status
from hal.model.kind import Kind
from hal.topology.distance import nvlinks

NOTHING = "-"
HIDDEN_KINDS = frozenset({Kind.SWITCH, Kind.PCI})
_GENERATIONS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}


def size(count: object) -> str:
    """Return a size in binary units with at most three digits that matter (``80 GiB``, ``1.5 TiB``)."""
    if not isinstance(count, (int, float)) or isinstance(count, bool):
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def decimal_size(count: object) -> str:
    """Return a size in the decimal units that disks are sold in (``3.84 TB``)."""
    if not isinstance(count, (int, float)) or isinstance(count, bool):
        return ""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if abs(value) < 1000 or unit == "PB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"


def text_of(device: Device, name: str) -> str:
    """Return an attribute's value as clean text, or an empty string."""
    value = device.value(name)
    if value is None:
        return ""
    if isinstance(value, tuple):
        return clean(", ".join(str(part) for part in value))
    return clean(f"{value:g}" if isinstance(value, float) else str(value))


def number_of(device: Device, name: str) -> float | None:
    """Return an attribute's value if it is a number."""
    value = device.value(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def model(device: Device) -> str:
    """Return what people call the device, or its PCI ids."""
    for attribute in ("model", "cpu_model", "part_number", "media"):
        name = text_of(device, attribute)
        if name:
            return name
    vendor, number = text_of(device, "pci_vendor"), text_of(device, "pci_device")
    return f"{vendor}:{number}" if vendor or number else NOTHING


def numa(device: Device) -> str:
    """Return the NUMA node."""
    node = device.location.numa_node
    return NOTHING if node is None else str(node)


def link(device: Device) -> str:
    """Return the PCI link now, and what it can be if that is more (``gen1 x8 / gen5 x16``)."""
    now = _link(device, "link_speed_gts", "link_width")
    best = _link(device, "link_max_speed_gts", "link_max_width")
    if now == NOTHING or best in (NOTHING, now):
        return now
    return f"{now} / {best}"


def _link(device: Device, speed_name: str, width_name: str) -> str:
    speed, lanes = number_of(device, speed_name), number_of(device, width_name)
    if not speed or not lanes:
        return NOTHING
    generation = _GENERATIONS.get(float(speed))
    return f"gen{generation} x{lanes:.0f}" if generation else f"{speed:g} GT/s x{lanes:.0f}"


def trouble(device: Device) -> str:
    """Return the worst that is known about a device that is not healthy, else an empty string."""
    said = [
        f"{condition.type}: {condition.evidence}" if condition.evidence else condition.type
        for condition in device.conditions
        if condition.status is not Status.FALSE
    ]
    if device.health is Health.HEALTHY:
        return ""
    if not said and device.presence is not Presence.PRESENT:
        said = ["does not answer" if device.presence is Presence.GHOST else "is missing"]
    return clean("; ".join(said))


def detail(device: Device) -> str:
    """Return what matters of the device's kind, after what is wrong with it."""
    facts = [fact for fact in _FACTS.get(device.kind, _pci)(device) if fact]
    wrong = trouble(device)
    return ", ".join([wrong, *facts] if wrong else facts)


def _memory(device: Device) -> str:
    return size(device.capacity.get("memory_bytes") or device.value("memory_bytes"))


def _unit(device: Device, name: str, unit: str) -> str:
    text = text_of(device, name)
    return f"{text} {unit}" if text else ""


def _gpu(device: Device) -> list[str]:
    lanes = nvlinks(device)
    capability = text_of(device, "compute_capability")
    mig = text_of(device, "mig_mode")
    return [
        _memory(device),
        f"cc {capability}" if capability else "",
        f"{lanes} NVLinks" if lanes else "",
        f"MIG {mig}" if mig and mig not in ("disabled", "unsupported", "False") else "",
    ]


def _rnic(device: Device) -> list[str]:
    state = text_of(device, "port_state").lower()
    return [
        state if state not in ("active", "up") else "",
        text_of(device, "link_layer"),
        _unit(device, "rate_gbps", "Gb/s"),
        text_of(device, "netdev"),
    ]


def _dpu(device: Device) -> list[str]:
    mode, generation = text_of(device, "mode"), text_of(device, "generation")
    return [
        generation if generation not in model(device) else "",
        f"{mode} mode" if mode else "",
        _unit(device, "cores", "cores"),
        _memory(device),
        f"firmware {text_of(device, 'firmware')}" if device.value("firmware") else "",
    ]


def _pmem(device: Device) -> list[str]:
    bytes_ = device.capacity.get("size_bytes") or device.value("size_bytes")
    dimms = device.value("dimms")
    count = len(dimms) if isinstance(dimms, tuple) else 0
    domain, way = text_of(device, "persistence_domain"), text_of(device, "persistence")
    if domain and domain != "none":
        lasting = f"persistent from {domain}"
    else:  # a file's bytes last, though no processor's flush makes them
        lasting = f"persistent by {way}" if way and way != "none" else "volatile" if domain else ""
    return [
        size(bytes_),
        text_of(device, "mode"),
        lasting,
        f"{count} DIMMs" if count > 1 else "",
    ]


def _upmem(device: Device) -> list[str]:
    clock = number_of(device, "clock_hz")
    dpus = device.capacity.get("dpus") or device.value("dpus")
    memory = device.capacity.get("mram_bytes") or device.value("mram_bytes")
    return [
        f"{dpus} dpus" if dpus else "",
        f"{size(memory)} MRAM" if memory else "",
        f"{clock / 1e6:.0f} MHz" if clock else "",
    ]


def _cpu(device: Device) -> list[str]:
    listed = text_of(device, "cpulist")
    return [f"CPUs {listed}" if listed else ""]


def _nic(device: Device) -> list[str]:
    state, speed = text_of(device, "operstate"), number_of(device, "speed_mbps")
    rate = "" if not speed or speed < 0 else f"{speed / 1000:g} Gb/s" if speed >= 1000 else f"{speed:g} Mb/s"
    return [state, rate, text_of(device, "netdev") if text_of(device, "netdev") != device.name else ""]


def _nvme(device: Device) -> list[str]:
    return [decimal_size(device.value("size_bytes"))]


def _pci(device: Device) -> list[str]:
    code, driver = text_of(device, "pci_class"), text_of(device, "pci_driver")
    return [f"class {code}" if code else "", driver]


_FACTS: dict[Kind, Callable[[Device], list[str]]] = {
    Kind.GPU: _gpu,
    Kind.RNIC: _rnic,
    Kind.DPU: _dpu,
    Kind.PMEM: _pmem,
    Kind.UPMEM: _upmem,
    Kind.CPU: _cpu,
    Kind.MEMORY: lambda device: [_memory(device)],
    Kind.NIC: _nic,
    Kind.NVME: _nvme,
}
