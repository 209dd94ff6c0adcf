"""UCX's UCP as a data plane, through a thin binding of our own (cffi, ABI mode: no compiler is needed)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hal.errors import HalError

if TYPE_CHECKING:
    from hal.model.device import Device
    from hal_rdma.transport import Opening, Transport


def why_not_ucx(device: Device, environ: Mapping[str, str]) -> str:
    """Return why UCX cannot carry this device's bytes, empty if it can. Loads nothing."""
    from hal_rdma.software import transports_of
    from hal_rdma.ucx.library import choose_library

    software = bool(transports_of(device))
    if not software and device.location.pci_address is None:
        return (
            "UCX aborts the process on soft-RoCE (openucx/ucx issue 9736); verbs carry it: apt install python3-pyverbs"
        )
    try:
        choose_library(environ, software=software)
    except HalError as error:
        return error.message
    return ""


def open_ucx(opening: Opening) -> Transport:
    """Open a NIC's data plane: load libucp, once a process, and make a context of the device's transports."""
    from hal_rdma.software import transports_of
    from hal_rdma.ucx.library import choose_library, load_library
    from hal_rdma.ucx.transport import SoftwareTransport, UcxTransport

    software = bool(transports_of(opening.device))
    library = load_library(choose_library(opening.environ, software=software))
    return SoftwareTransport(opening, library) if software else UcxTransport(opening, library)
