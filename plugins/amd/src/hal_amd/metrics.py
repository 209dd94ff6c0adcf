"""The firmware's own table (``gpu_metrics``): energy, and why clocks are low.

The table begins with its size (16 bits), format and content revision (8 bits each), as ``kgd_pp_interface.h`` has it.
In format 1 the energy lies at byte 24 from content revision 1 on, in 2^-16 J; content revision 3 adds at byte 112 why
clocks are lowered: bits 0 to 15 for power, 16 to 31 for current, 32 to 55 for heat, 56 to 63 for the rest.
"""

from __future__ import annotations

import struct

import msgspec

_HEADER = struct.Struct("<HBB")
_WORD = struct.Struct("<Q")
_ENERGY = 24
_THROTTLE = 112
_NOT_TOLD = (1 << 64) - 1
_JOULES = 2.0**-16
_POWER = 0x0000_0000_FFFF_FFFF
_HEAT = 0x00FF_FFFF_0000_0000


class Metrics(msgspec.Struct, frozen=True):
    """What a table tells; None for what its revision does not have."""

    energy_joules: float | None = None
    reasons: tuple[str, ...] | None = None


def parse(data: bytes) -> Metrics | None:
    """Return what a table tells, None if it is cut off or of a format that is not known here."""
    if len(data) < _HEADER.size:
        return None
    size, layout, content = _HEADER.unpack_from(data)
    if layout != 1 or content < 1 or not _ENERGY + 8 <= size <= len(data):
        return None
    energy: int = _WORD.unpack_from(data, _ENERGY)[0]
    reasons: tuple[str, ...] | None = None
    if content == 3 and size >= _THROTTLE + 8:
        status: int = _WORD.unpack_from(data, _THROTTLE)[0]
        if status != _NOT_TOLD:
            reasons = _words(status)
    return Metrics(None if energy == _NOT_TOLD else energy * _JOULES, reasons)


def _words(status: int) -> tuple[str, ...]:
    found = []
    if status & _POWER:
        found.append("sw-power-cap")
    if status & _HEAT:
        found.append("sw-thermal-slowdown")
    return tuple(found)
