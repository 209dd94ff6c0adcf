"""What sysfs tells of a rank, as the interface wants it."""

from __future__ import annotations

import msgspec

from hal.interfaces.upmem import Rank
from hal.model.device import Device

_IRAM_INSTRUCTION_BYTES = 6
"""An instruction has 48 bits (UPMEM's documentation of the chip)."""


class Chip(msgspec.Struct, frozen=True):
    """What a model of the chip has (UPMEM's documentation: v1A and v1B)."""

    name: str
    wram_bytes: int
    iram_bytes: int
    tasklets: int


_V1A = Chip("v1A", 64 << 10, 4096 * _IRAM_INSTRUCTION_BYTES, 24)
_V1B = Chip("v1B", 62 << 10, 3968 * _IRAM_INSTRUCTION_BYTES, 16)
_CHIPS = {8: _V1A, 9: _V1B}


def chip_of(chip_id: int | None) -> Chip:
    """Return the chip of a ``dpu_chip_id``; one that is not known is taken for a v1A, by far the most frequent."""
    return _CHIPS.get(chip_id or 8, _V1A)


class Shape(msgspec.Struct, frozen=True):
    """The units of a rank by their numbers: ``interface * units_per_interface + place``."""

    interfaces: int
    per_interface: int
    mram_bytes: int
    clock_hz: int
    chip: Chip

    def place(self, unit: int) -> tuple[int, int]:
        """Return a unit's control interface and its place there."""
        return divmod(unit, self.per_interface)

    def facts(self, working: tuple[int, ...]) -> Rank:
        """Return the interface's facts, given which units work."""
        every = range(self.interfaces * self.per_interface)
        return Rank(
            dpus=working,
            disabled=tuple(unit for unit in every if unit not in set(working)),
            mram_bytes=self.mram_bytes,
            wram_bytes=self.chip.wram_bytes,
            iram_bytes=self.chip.iram_bytes,
            tasklets=self.chip.tasklets,
            clock_hz=self.clock_hz,
            chip=self.chip.name,
        )


def shape_of(device: Device, chip_id: int | None) -> Shape:
    """Return a rank's shape by its attributes; what sysfs does not tell is what every known rank has."""

    def number(name: str, usual: int) -> int:
        value = device.value(name)
        return value if isinstance(value, int) and value > 0 else usual

    return Shape(
        interfaces=number("control_interfaces", 8),
        per_interface=number("dpus_per_ci", 8),
        mram_bytes=number("mram_bytes", 64 << 20),
        clock_hz=number("clock_hz", 350_000_000),
        chip=chip_of(chip_id),
    )
