"""What a mock DPU measures. All values are simulated: load follows the services, heat and power follow the load."""

from __future__ import annotations

from hal.interfaces.dpu import BootState, DpuMode
from hal.model.attributes import Absence, Attribute, absent, known
from hal_mocks.dpu_services import ServiceTable
from hal_mocks.dpu_state import Card
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine

SOURCE = "mock-dpu"
HOT_CELSIUS = 106.0
"""What a card with the thermal fault reads, above the 105 degrees at which it throttles."""

_IDLE_CELSIUS, _CELSIUS_AT_LOAD = 47.0, 28.0
_IDLE_WATTS, _WATTS_AT_LOAD = 38.0, 37.0
_OS_MEMORY_SHARE = 0.06
_OF_THE_CORES = ("arm_utilization_percent", "memory_total_bytes", "memory_used_bytes", "uptime_seconds")


def measure(machine: Machine, card: Card, services: ServiceTable) -> dict[str, Attribute]:
    """Return the readings; what mode or boot state keeps from the host says so."""
    state = card.state()
    now = machine.clock.now()
    stage = BootState.READY if state.boot is None else state.boot.at(now)[0]
    if stage is BootState.OFF:
        reason = absent(Absence.NOT_REPORTED, SOURCE, "without power")
        return dict.fromkeys(("temperature_celsius", "power_watts", *_OF_THE_CORES), reason)
    cores, memory = services.reserved()
    load = min(1.0, cores / card.dpu.cores) if card.dpu.cores else 0.0
    hot = any(fault.type is FaultType.THERMAL for fault in machine.faults_of(card.id))
    readings = {
        "temperature_celsius": known(HOT_CELSIUS if hot else _IDLE_CELSIUS + _CELSIUS_AT_LOAD * load, SOURCE),
        "power_watts": known(_IDLE_WATTS + _WATTS_AT_LOAD * load, SOURCE),
    }
    if state.mode is DpuMode.RESTRICTED:
        reason = absent(Absence.PERMISSION, SOURCE, "restricted mode")
    elif state.mode is DpuMode.NIC:
        reason = absent(Absence.UNSUPPORTED, SOURCE, "the cores are inactive in NIC mode")
    elif stage is not BootState.READY:
        reason = absent(Absence.NOT_REPORTED, SOURCE, f"the card boots: {stage}")
    else:
        exposed = sum(exposure.size_bytes for exposure in state.exposures if exposure.backing == "memory")
        used = int(card.dpu.memory_bytes * _OS_MEMORY_SHARE) + memory + exposed
        up_since = state.since if state.boot is None else state.boot.ready_at
        values = (100.0 * load, card.dpu.memory_bytes, min(used, card.dpu.memory_bytes), max(0.0, now - up_since))
        return readings | {name: known(value, SOURCE) for name, value in zip(_OF_THE_CORES, values, strict=True)}
    return readings | dict.fromkeys(_OF_THE_CORES, reason)
