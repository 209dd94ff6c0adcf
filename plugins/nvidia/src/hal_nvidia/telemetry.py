"""What was read of a GPU, as the telemetry of :mod:`hal.interfaces.gpu`: names with units, and absences with reasons.

NVML's units: milliwatts, millijoules, degrees Celsius, MHz, bytes; a PCIe generation is told by number.
Besides the names of the interface: ``nvlink_crc_errors``, ``nvlink_replay_errors``, ``nvlink_recovery_errors`` (totals
of all links since the driver was loaded; from fields that newer boards no longer fill), ``remapped_rows_pending``,
``ecc_uncorrected`` (since the last reset).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hal.interfaces.gpu import CLOCK_EVENT_REASONS
from hal.model.attributes import Absence, Attribute, Value, absent, known
from hal.model.health import Action
from hal_nvidia import errors as e
from hal_nvidia import sampling as s

GTS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
"""Transfers a second of one lane, in 10^9, by PCIe generation."""

RECOVERY = {
    0: Action.NONE,
    1: Action.RESET,
    2: Action.REBOOT,
    3: Action.DRAIN_RESET,
    4: Action.DRAIN_RESET,
    5: Action.RESTART_APP,
    6: Action.RESET,
    7: Action.REBOOT,
}
"""``nvmlDeviceGpuRecoveryAction_t``: none, GPU reset, node reboot, drain P2P, drain and reset, recover the IMEX domain
(its daemon and the programs on it are started anew), bus reset, system reboot."""

OF_A_PARTITION = frozenset({"memory_used_bytes", "memory_free_bytes", "memory_total_bytes", "recovery_action"})
"""What a MIG device is told: its own memory, and what its GPU needs. The rest is the whole GPU's."""


def reasons_of(mask: int) -> tuple[str, ...]:
    """Return the names of the bits of ``nvmlClocksEventReasons``."""
    return tuple(name for bit, name in enumerate(CLOCK_EVENT_REASONS) if mask >> bit & 1)


def _recovery(value: int) -> Value:
    return str(RECOVERY.get(value, Action.RESET))


_TOLD: tuple[tuple[str, Any, Callable[[Any], Value]], ...] = (
    ("gpu_utilization_percent", "utilization", lambda rates: int(rates.gpu)),
    ("memory_used_bytes", "memory", lambda memory: int(memory.used)),
    ("memory_free_bytes", "memory", lambda memory: int(memory.free)),
    ("memory_total_bytes", "memory", lambda memory: int(memory.total)),
    ("power_watts", "power", lambda milliwatts: milliwatts / 1000),
    ("power_limit_watts", "power_limit", lambda milliwatts: milliwatts / 1000),
    ("energy_joules", "energy", lambda millijoules: millijoules / 1000),
    ("temperature_celsius", "temperature", int),
    ("sm_clock_hz", "sm_clock", lambda mhz: mhz * 1_000_000),
    ("sm_max_clock_hz", "sm_max_clock", lambda mhz: mhz * 1_000_000),
    ("memory_clock_hz", "memory_clock", lambda mhz: mhz * 1_000_000),
    ("clock_event_reasons", "reasons", reasons_of),
    ("pcie_speed_gts", "pcie_generation", lambda generation: GTS.get(generation, 0.0)),
    ("pcie_max_speed_gts", "pcie_max_generation", lambda generation: GTS.get(generation, 0.0)),
    ("pcie_width", "pcie_width", int),
    ("pcie_max_width", "pcie_max_width", int),
    ("pcie_replays", "pcie_replays", int),
    ("pcie_received_bytes", s.PCIE_RECEIVED, int),
    ("pcie_sent_bytes", s.PCIE_SENT, int),
    ("nvlink_replay_errors", s.NVLINK_REPLAY, int),
    ("nvlink_recovery_errors", s.NVLINK_RECOVERY, int),
    ("nvlink_crc_errors", s.NVLINK_CRC_FLIT, int),
    ("recovery_action", s.RECOVERY_ACTION, _recovery),
    ("remapped_rows_pending", "remapped", lambda rows: bool(rows[2])),
    ("ecc_uncorrected", "uncorrected", int),
)


def attributes(found: s.Reading) -> dict[str, Attribute]:
    """Return what a reading tells."""
    told: dict[str, Attribute] = {}
    for name, key, convert in _TOLD:
        value = found.get(key)
        if isinstance(value, Exception) or value is None:
            told[name] = e.absent(value) if value is not None else absent(Absence.NOT_REPORTED, e.SOURCE)
        else:
            told[name] = Attribute(convert(value), e.SOURCE)
    return told


def of_a_partition(told: dict[str, Attribute], memory: Any) -> dict[str, Attribute]:
    """Return what a MIG device is told of its GPU's reading, with its own memory (``nvmlMemory_t``, or an error)."""
    for name in told:
        if name not in OF_A_PARTITION:
            told[name] = absent(Absence.UNSUPPORTED, e.SOURCE, "a partition is not told")
    for name, field in (("memory_used_bytes", "used"), ("memory_free_bytes", "free"), ("memory_total_bytes", "total")):
        told[name] = e.absent(memory) if isinstance(memory, Exception) else known(int(getattr(memory, field)), e.SOURCE)
    return told
