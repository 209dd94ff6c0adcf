"""Data through verbs: reliable connections of libibverbs, by Debian's python3-pyverbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hal.model.device import Device
    from hal_rdma.transport import Opening, Transport


def why_not_verbs(device: Device, environ: Mapping[str, str]) -> str:
    """Return why verbs cannot carry this device's data, or an empty text; opens nothing."""
    from hal.drivers.contract import HostRoot
    from hal.model.device import alias
    from hal_rdma.readiness import why_no_device_file
    from hal_rdma.verbs.binding import why_no_binding

    name = alias(device, "rdma")
    if name is None:
        return "the device is no RDMA device of the kernel"
    why, remedy = why_no_device_file(HostRoot(node=device.location.node), name)
    return f"{why} (try: {remedy})" if why else why_no_binding()


def open_verbs(opening: Opening) -> Transport:
    """Open the device by verbs."""
    from hal_rdma.verbs.session import VerbsTransport

    return VerbsTransport(opening)
