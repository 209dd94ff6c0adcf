"""UPMEM's memory that computes: ranks found in sysfs, driven through the host library of UPMEM's SDK."""

from __future__ import annotations

from collections.abc import Iterable

from hal.drivers.contract import Context, Driver, DriverFactory
from hal.drivers.hookspecs import hookimpl
from hal.drivers.match import Match
from hal.model.kind import Kind


def _create(context: Context) -> Driver:
    from hal_upmem.driver import UpmemDriver

    return UpmemDriver(context.hosts, context.environ)


@hookimpl
def hal_drivers() -> Iterable[DriverFactory]:
    """Name the driver and the hardware it drives; touch nothing."""
    yield DriverFactory(
        name="upmem",
        kinds=(Kind.UPMEM, Kind.MEMORY),
        create=_create,
        matches=(Match(kind=Kind.UPMEM, subsystem="class/dpu_rank", model="UPMEM rank"),),
        priority=20,
    )
