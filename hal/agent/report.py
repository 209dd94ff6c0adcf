"""How one driver did in a survey."""

from __future__ import annotations

import msgspec

from hal.drivers.contract import Problem, Readiness
from hal.model.kind import Kind

SYSFS = "sysfs"


class DriverReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one driver found, how long it took, what went wrong."""

    driver: str
    plugin: str
    kinds: tuple[Kind, ...]
    readiness: Readiness
    device_count: int = 0
    problems: tuple[Problem, ...] = ()
    seconds: float = 0.0
