"""What the texts of amdgpu and KFD mean. Nothing here reads a file, and no text makes it raise.

Formats are those of the kernel's documentation (gpu/amdgpu: driver-misc, thermal, ras, xgmi) and of KFD's topology.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

_STATE = re.compile(r"\s*\w+\s*:\s*(\d{1,7})\s*mhz\s*(\*?)\s*", re.IGNORECASE | re.ASCII)
_COUNT = re.compile(r"\s*(ue|ce|de)\s*:\s*(\d{1,19})\s*", re.ASCII)
_PAGE = re.compile(r"\s*0x[0-9a-f]+\s*:\s*0x[0-9a-f]+\s*:\s*([RPF])\s*", re.IGNORECASE)
_MODE = re.compile(r"\b(?:[SDTQC]PX|NPS\d{1,2})\b", re.ASCII)
_LARGEST = (1 << 64) - 1
_ARCHITECTURES = (
    ("gfx90a", "CDNA 2"),
    ("gfx908", "CDNA"),
    ("gfx94", "CDNA 3"),
    ("gfx95", "CDNA 4"),
    ("gfx90", "GCN 5"),
    ("gfx101", "RDNA"),
    ("gfx103", "RDNA 2"),
    ("gfx110", "RDNA 3"),
    ("gfx115", "RDNA 3.5"),
    ("gfx120", "RDNA 4"),
)


class Clocks(msgspec.Struct, frozen=True):
    """Of a table of clock states: the one that is marked (None if none is) and the highest, in Hz."""

    current_hz: int | None
    max_hz: int


def properties(text: str) -> dict[str, int]:
    """Return the numbers of a KFD ``properties`` file (lines of a name and a number); other lines are left out."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        if name and value.isascii() and value.isdecimal() and len(value) <= 20 and int(value) <= _LARGEST:
            found[name] = int(value)
    return found


def clocks(text: str) -> Clocks | None:
    """Return what ``pp_dpm_sclk`` or ``pp_dpm_mclk`` tells (lines such as ``1: 2100Mhz *``), None if nothing."""
    current: int | None = None
    most = 0
    for line in text.splitlines():
        state = _STATE.fullmatch(line)
        if state is None:
            continue
        hertz = int(state[1]) * 1_000_000
        most = max(most, hertz)
        if state[2]:
            current = hertz
    return Clocks(current, most) if most else None


def error_counts(text: str) -> dict[str, int] | None:
    """Return the counts of ``ras/*_err_count`` (``ue``, ``ce``, newer kernels also ``de``), None if it has neither."""
    found = {count[1]: int(count[2]) for line in text.splitlines() if (count := _COUNT.fullmatch(line)) is not None}
    return found if "ue" in found or "ce" in found else None


def bad_pages(text: str) -> dict[str, int]:
    """Return how many lines of ``ras/gpu_vram_bad_pages`` have each flag: R reserved, P pending, F cannot be."""
    found = {"R": 0, "P": 0, "F": 0}
    for line in text.splitlines():
        page = _PAGE.fullmatch(line)
        if page is not None:
            found[page[1].upper()] += 1
    return found


def modes(text: str) -> tuple[str, ...]:
    """Return the partition modes in a text (``SPX, DPX, QPX, CPX``; ``NPS1, NPS4``); other words are none."""
    return tuple(_MODE.findall(text.upper()))


def unique_id(text: str) -> str | None:
    """Return a GPU's number as 16 hexadecimal digits, None for one that says nothing (all zeros, or all ones)."""
    digits = text.strip().lower().removeprefix("0x")
    try:
        number = int(digits, 16) if digits.isalnum() else 0
    except ValueError:
        return None
    return f"{number:016x}" if 0 < number < _LARGEST else None


def speed_gts(text: str) -> float | None:
    """Return a link's speed (``16.0 GT/s PCIe``), None if it is not known."""
    try:
        speed = float(text.partition(" ")[0])
    except ValueError:
        return None
    return speed if 0 < speed < 1e6 else None


def gfx_target(version: int) -> str | None:
    """Return the compiler's name of a KFD ``gfx_target_version`` (90402: ``gfx942``), None for none."""
    if not 10_000 <= version < 1_000_000:
        return None
    return f"gfx{version // 10_000}{version // 100 % 100:x}{version % 100:x}"


def architecture(target: str) -> str | None:
    """Return what AMD calls the family of a target, None for one that is not known here."""
    return next((name for start, name in _ARCHITECTURES if target.startswith(start)), None)


def place(found: Mapping[str, int]) -> tuple[str, int] | None:
    """Return the PCI address of a KFD node, and the number of the partition, from its properties.

    ``location_id`` holds bus, device and function in its lower 16 bits, and a partition's number in the upper four.
    """
    location = found.get("location_id")
    if location is None or location > 0xFFFFFFFF:
        return None
    address = f"{found.get('domain', 0):04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"
    return address, location >> 28
