"""Facts about a device that carry where they came from, or why they are missing."""

from __future__ import annotations

from enum import StrEnum

import msgspec

Scalar = str | int | float | bool
Value = Scalar | tuple[Scalar, ...]


class Absence(StrEnum):
    """Why a value is not there. Absence is never zero and never an empty string."""

    PERMISSION = "permission"
    DRIVER_NOT_BOUND = "driver-not-bound"
    TIMEOUT = "timeout"
    UNSUPPORTED = "unsupported"
    NOT_REPORTED = "not-reported"
    MALFORMED = "malformed"
    DEVICE_LOST = "device-lost"
    ERROR = "error"


class Attribute(msgspec.Struct, frozen=True, omit_defaults=True, array_like=False):
    """One fact: a value and its source, or no value and the reason.

    ``source`` names where the value was read (``sysfs:numa_node``, ``parent``, ``nvml``, ``override``); with no value
    it names where it was looked for. ``detail`` adds words to an absence.
    """

    value: Value | None = None
    source: str = ""
    absent: Absence | None = None
    detail: str = ""

    @property
    def known(self) -> bool:
        """True if there is a value."""
        return self.absent is None and self.value is not None


def known(value: Value, source: str) -> Attribute:
    """Return an attribute that has a value."""
    return Attribute(value=value, source=source)


def absent(reason: Absence, source: str, detail: str = "") -> Attribute:
    """Return an attribute that is missing, and why."""
    return Attribute(source=source, absent=reason, detail=detail)
