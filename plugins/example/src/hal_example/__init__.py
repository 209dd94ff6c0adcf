"""A complete plugin, made to be copied: memory cards of an imaginary vendor, ACME. This module only registers."""

from __future__ import annotations

from collections.abc import Iterable

from hal.drivers.contract import Context, Driver, DriverFactory
from hal.drivers.hookspecs import hookimpl
from hal.drivers.match import Match
from hal.model.kind import Kind


def _create(context: Context) -> Driver:
    # Imported here, so that a machine without the hardware never pays for the driver.
    from hal_example.driver import ExampleDriver

    return ExampleDriver(context.hosts)


@hookimpl
def hal_drivers() -> Iterable[DriverFactory]:
    """Name the driver and the hardware it drives; touch nothing."""
    yield DriverFactory(
        name="example",
        kinds=(Kind.PMEM,),
        create=_create,
        matches=(Match(kind=Kind.PMEM, subsystem="class/acme", model="ACME memory card"),),
        priority=20,
    )
