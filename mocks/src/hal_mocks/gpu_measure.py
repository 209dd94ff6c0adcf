"""What can be measured on a mock GPU at one time, worked out from faults, heat and use. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence

from hal.model.attributes import Absence, Attribute, Value, absent, known
from hal.model.device import Device
from hal.model.health import Action
from hal_mocks.base import tell_lies
from hal_mocks.faults import Fault, FaultType
from hal_mocks.gpu_describe import SOURCE, Place
from hal_mocks.gpu_thermal import CLOCKS, OTHER_CLOCKS, Thermal, clock_of

PCIE_GTS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
"""What a lane carries by PCIe generation, in GT/s."""

_REPLAYS_PER_SECOND = 2.0


def measured(
    place: Place,
    faults: tuple[Fault, ...],
    thermal: Thermal,
    *,
    power_limit_watts: float,
    used_bytes: int,
    received_bytes: int,
    sent_bytes: int,
    action: Action,
) -> dict[str, Attribute]:
    """Return everything that can be measured on a whole GPU, lies included."""
    clocks = CLOCKS.get(place.gpu.architecture, OTHER_CLOCKS)
    sm_clock_hz, reasons = clock_of(thermal, clocks)
    values: dict[str, Value] = {
        "gpu_utilization_percent": round(100 * thermal.utilization),
        "memory_used_bytes": used_bytes,
        "memory_free_bytes": place.gpu.memory_bytes - used_bytes,
        "memory_total_bytes": place.gpu.memory_bytes,
        "power_watts": round(thermal.power_watts, 3),
        "power_limit_watts": power_limit_watts,
        "energy_joules": thermal.energy_joules,
        "temperature_celsius": round(thermal.temperature_celsius, 1),
        "sm_clock_hz": sm_clock_hz,
        "sm_max_clock_hz": clocks.sm_max_hz,
        "memory_clock_hz": clocks.memory_hz,
        "clock_event_reasons": reasons,
        "pcie_received_bytes": received_bytes,
        "pcie_sent_bytes": sent_bytes,
        "pcie_replays": int(thermal.replays),
        "recovery_action": str(action),
    }
    attributes = {name: known(value, SOURCE) for name, value in values.items()}
    link = link_now(place.device, faults)
    for name in ("speed_gts", "width", "max_speed_gts", "max_width"):
        attributes[f"pcie_{name}"] = link.get(f"link_{name}") or absent(Absence.NOT_REPORTED, SOURCE, "no PCIe link")
    return tell_lies(attributes, faults)


def replays_per_second(faults: Sequence[Fault]) -> float:
    """Return how often a PCIe packet is sent again, with what faults have left of the link."""
    poor = any(fault.type in (FaultType.LINK_DEGRADED, FaultType.FLAP) for fault in faults)
    return _REPLAYS_PER_SECOND if poor else 0.0


def link_now(device: Device, faults: tuple[Fault, ...]) -> dict[str, Attribute]:
    """Return the PCIe link as it is: what faults have left of it."""
    link = {name: value for name, value in device.attributes.items() if name.startswith("link_")}
    for fault in faults:
        if fault.type is FaultType.LINK_DEGRADED and link:
            if fault.generation:
                link["link_speed_gts"] = known(PCIE_GTS.get(fault.generation, 2.5), SOURCE)
            if fault.width:
                link["link_width"] = known(fault.width, SOURCE)
    return link


def nvlinks_up(faults: tuple[Fault, ...], now: float) -> bool:
    """True unless a fault holds the NVLinks down at this moment."""
    return not any(fault.type in (FaultType.LINK_DOWN, FaultType.FLAP) and fault.holds_down(now) for fault in faults)
