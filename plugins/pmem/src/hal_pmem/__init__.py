"""Persistent memory for rackhal: NVDIMMs, CXL memory, DAX devices, plain files. This module only registers."""

from __future__ import annotations

from collections.abc import Iterable

from hal.drivers.contract import Context, Driver, DriverFactory
from hal.drivers.hookspecs import hookimpl
from hal.drivers.match import Match
from hal.model.kind import Kind


def _create(context: Context) -> Driver:
    # Imported here, so that a machine without the hardware never pays for the driver.
    from hal_pmem.driver import PmemDriver

    return PmemDriver(context.hosts, context.environ)


@hookimpl
def hal_drivers() -> Iterable[DriverFactory]:
    """Name the driver and the hardware it drives; touch nothing."""
    yield DriverFactory(
        name="pmem",
        kinds=(Kind.PMEM, Kind.MEMORY),
        create=_create,
        matches=(
            Match(kind=Kind.PMEM, environment="HAL_PMEM_FILES", model="region in a file"),
            Match(kind=Kind.PMEM, subsystem="bus/nd/devices", model="persistent memory"),
            Match(kind=Kind.PMEM, subsystem="bus/dax/devices", model="DAX device"),
            Match(kind=Kind.PMEM, pci_class="0502", model="CXL memory device"),
        ),
        priority=20,
    )
