"""The state of a machine in Prometheus' text format, for node_exporter's textfile collector or a scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hal.agent.report import DriverReport
from hal.cli.render.describe import number_of, text_of
from hal.cli.render.text import clean
from hal.model.device import Device
from hal.model.health import Health

_METRICS = {
    "hal_device_info": "A device that was found; always 1.",
    "hal_device_health": "1 for the health that the device is in, 0 for the others.",
    "hal_device_condition": "A condition that holds or cannot be told; always 1.",
    "hal_device_capacity": "What a device has of a resource; the unit stands in the resource's name.",
    "hal_device_pci_link_speed_gigatransfers_per_second": "PCI link speed: now, and at most.",
    "hal_device_pci_link_lanes": "PCI link width: now, and at most.",
    "hal_devices": "How many devices of a kind were found, by health.",
    "hal_driver_ready": "1 if the driver can work here.",
    "hal_driver_discovery_seconds": "How long the driver took to discover.",
    "hal_probe_partial": "1 if a plugin failed or ran out of time, so that devices may be missing here.",
}


def metrics(devices: Sequence[Device], reports: Iterable[DriverReport], partial: bool) -> str:
    """Return all metrics; each family with its help and type before it."""
    lines: dict[str, list[str]] = {name: [] for name in _METRICS}

    def add(name: str, value: float, /, **labels: object) -> None:
        inner = ",".join(f'{key}="{_escape(str(text))}"' for key, text in labels.items())
        lines[name].append(f"{name}{{{inner}}} {value:.17g}" if inner else f"{name} {value:.17g}")

    counts: Counter[tuple[str, str, Health]] = Counter()
    for device in devices:
        who = {"node": device.location.node, "device": device.id}
        counts[device.location.node, device.kind.value, device.health] += 1
        add("hal_device_info", 1, **who, **_facts(device))
        for health in Health:
            add("hal_device_health", device.health is health, **who, health=health.value)
        for condition in device.conditions:
            add(
                "hal_device_condition",
                1,
                **who,
                type=condition.type,
                severity=condition.severity.value,
                status=condition.status.value,
                code="" if condition.code is None else condition.code,
            )
        for resource, amount in device.capacity.items():
            add("hal_device_capacity", amount, **who, resource=resource)
        for which, speed, lanes in (
            ("now", "link_speed_gts", "link_width"),
            ("max", "link_max_speed_gts", "link_max_width"),
        ):
            if (number := number_of(device, speed)) is not None:
                add("hal_device_pci_link_speed_gigatransfers_per_second", number, **who, which=which)
            if (number := number_of(device, lanes)) is not None:
                add("hal_device_pci_link_lanes", number, **who, which=which)
    for (node, kind, health), count in sorted(counts.items()):
        add("hal_devices", count, node=node, kind=kind, health=health.value)
    for report in reports:
        who = {"driver": report.driver, "plugin": report.plugin, "detail": report.readiness.detail}
        add("hal_driver_ready", report.readiness.ready, **who, cause=report.readiness.cause.value)
        add("hal_driver_discovery_seconds", report.seconds, **who)
    add("hal_probe_partial", partial)
    return "".join(
        f"# HELP {name} {said}\n# TYPE {name} gauge\n" + "\n".join(lines[name]) + "\n"
        for name, said in _METRICS.items()
        if lines[name]
    )


def _facts(device: Device) -> dict[str, object]:
    place = device.location
    return {
        "kind": device.kind.value,
        "name": device.name,
        "model": text_of(device, "model"),
        "driver": device.driver,
        "numa_node": "" if place.numa_node is None else place.numa_node,
        "pci_address": place.pci_address or "",
        "rack": place.rack or "",
        "parent": device.parent or "",
    }


def _escape(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace('"', '\\"')
