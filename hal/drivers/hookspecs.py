"""The three hooks. They register, they never work: no hardware is touched, no file is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import pluggy

from hal.drivers.contract import DriverFactory
from hal.model.device import Device
from hal.model.health import Condition
from hal.model.lease import AllocatedDevice

hookspec = pluggy.HookspecMarker("hal")
hookimpl = pluggy.HookimplMarker("hal")


class Exporter(msgspec.Struct, frozen=True, kw_only=True):
    """Turns leased devices into environment variables that a vendor's software obeys."""

    name: str
    environment: Callable[[Sequence[AllocatedDevice]], Mapping[str, str]]


class HealthRule(msgspec.Struct, frozen=True, kw_only=True):
    """Turns a device's attributes into conditions; pure, with the time as an argument."""

    name: str
    judge: Callable[[Device, float], Sequence[Condition]]


@hookspec
def hal_drivers() -> Iterable[DriverFactory]:
    """Name the drivers that this plugin offers."""
    return ()


@hookspec
def hal_exporters() -> Iterable[Exporter]:
    """Name the exporters that this plugin offers."""
    return ()


@hookspec
def hal_health_rules() -> Iterable[HealthRule]:
    """Name the health rules that this plugin offers."""
    return ()
