"""BlueField DPUs: one device out of a card's functions, driven by sysfs, rshim, devlink, Redfish and SSH."""

from __future__ import annotations

from collections.abc import Iterable

from hal.drivers.contract import Context, Driver, DriverFactory
from hal.drivers.hookspecs import hookimpl
from hal.drivers.match import Match
from hal.model.kind import Kind

_MATCHES = (
    Match(kind=Kind.DPU, pci_vendor="15b3", pci_devices=("a2d6",), model="BlueField-2"),
    Match(kind=Kind.DPU, pci_vendor="15b3", pci_devices=("a2d9", "a2dc"), model="BlueField-3"),
    Match(kind=Kind.DPU, pci_vendor="15b3", pci_devices=("a2df",), model="BlueField-4"),
    Match(
        kind=Kind.DPU,
        pci_vendor="15b3",
        pci_devices=("c2d3", "c2d4", "c2d5", "c2d6"),
        model="BlueField management",
    ),
)


def _create(context: Context) -> Driver:
    from hal_bluefield.driver import BlueFieldDriver

    return BlueFieldDriver(context.hosts, context.environ)


@hookimpl
def hal_drivers() -> Iterable[DriverFactory]:
    """Name the driver and the cards it drives; touch nothing."""
    yield DriverFactory(name="bluefield", kinds=(Kind.DPU,), create=_create, matches=_MATCHES, priority=20)
