"""NVIDIA GPUs: NVML manages them, CuPy computes on them. This module only registers."""

from __future__ import annotations

from collections.abc import Iterable

from hal.drivers.contract import Context, Driver, DriverFactory
from hal.drivers.hookspecs import Exporter, hookimpl
from hal.drivers.match import Match
from hal.model.kind import Kind


def _create(context: Context) -> Driver:
    # Imported here, so that a machine without such a GPU never pays for the driver.
    if all(host.root is not None for host in context.hosts):
        from hal_nvidia.elsewhere import Elsewhere

        return Elsewhere()
    from hal_nvidia.driver import make_driver

    return make_driver(context)


@hookimpl
def hal_drivers() -> Iterable[DriverFactory]:
    """Name the driver and the hardware it drives; touch nothing."""
    yield DriverFactory(
        name="nvidia",
        kinds=(Kind.GPU,),
        create=_create,
        matches=(
            Match(kind=Kind.GPU, pci_vendor="10de", pci_class="0302", model="NVIDIA GPU"),
            Match(kind=Kind.GPU, pci_vendor="10de", pci_class="0300", model="NVIDIA GPU"),
        ),
        priority=20,
    )


@hookimpl
def hal_exporters() -> Iterable[Exporter]:
    """Name what tells CUDA about shares of a GPU."""
    from hal_nvidia.sharing import exported

    yield Exporter(name="nvidia", environment=exported)
