"""RDMA NICs: what sysfs tells of them, and one-sided transfers through verbs or UCX. This module only registers."""

from __future__ import annotations

from collections.abc import Iterable

from hal.drivers.contract import Context, Driver, DriverFactory
from hal.drivers.hookspecs import hookimpl
from hal.drivers.match import Match
from hal.model.kind import Kind


def _create(context: Context) -> Driver:
    # Imported here, so that a machine without the hardware never pays for the driver.
    from hal_rdma.driver import RdmaDriver

    return RdmaDriver(context.hosts, context.environ)


@hookimpl
def hal_drivers() -> Iterable[DriverFactory]:
    """Name the driver and the hardware it drives; touch nothing."""
    yield DriverFactory(
        name="rdma",
        kinds=(Kind.RNIC,),
        create=_create,
        matches=(
            Match(kind=Kind.RNIC, subsystem="class/infiniband", model="RDMA device"),
            Match(kind=Kind.RNIC, pci_vendor="15b3", pci_class="0207", model="InfiniBand adapter"),
            Match(kind=Kind.RNIC, environment="HAL_RDMA_SOFTWARE", model="software RDMA NIC"),
        ),
        priority=20,
    )
