"""AMD GPUs: the kernel's amdgpu and KFD drivers tell of them through sysfs. This module only registers."""

from __future__ import annotations

from collections.abc import Iterable

from hal.drivers.contract import Context, Driver, DriverFactory
from hal.drivers.hookspecs import Exporter, hookimpl
from hal.drivers.match import Match
from hal.model.kind import Kind


def _create(context: Context) -> Driver:
    # Imported here, so that a machine without such a GPU never pays for the driver.
    from hal_amd.resetting import make_driver

    return make_driver(context)


@hookimpl
def hal_drivers() -> Iterable[DriverFactory]:
    """Name the driver and the hardware it drives; touch nothing."""
    yield DriverFactory(
        name="amd",
        kinds=(Kind.GPU,),
        create=_create,
        matches=(
            Match(kind=Kind.GPU, pci_vendor="1002", pci_class="1200", model="AMD accelerator"),
            Match(kind=Kind.GPU, pci_vendor="1002", pci_class="0380", model="AMD accelerator"),
            Match(kind=Kind.GPU, pci_vendor="1002", pci_class="0302", model="AMD GPU"),
            Match(kind=Kind.GPU, pci_vendor="1002", pci_class="0300", model="AMD GPU"),
        ),
        priority=20,
    )


@hookimpl
def hal_exporters() -> Iterable[Exporter]:
    """Name what tells ROCm about partitions, and about GPUs that have no UUID."""
    from hal_amd.visible import exported

    yield Exporter(name="amd", environment=exported)
