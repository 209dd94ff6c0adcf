"""CUDA through CuPy, which is imported here and nowhere else, when somebody first computes.

A GPU of NVML is the device of CUDA with the same PCI address. A MIG device is the one that ``CUDA_VISIBLE_DEVICES``
names: CUDA shows a process one MIG device only, and reads the variable once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hal.errors import (
    DeviceBusy,
    DeviceError,
    DeviceGone,
    HardwareFault,
    InvalidArgument,
    OutOfMemory,
    ProgramFault,
    UncorrectableError,
    Unsupported,
)
from hal_nvidia.board import Board, pci_address
from hal_nvidia.sharing import PIPES, Sharing, SharingMode

EXTRA = "pip install rackhal-nvidia[cuda12] (or [cuda13], as the driver's CUDA version says)"
VISIBLE = "CUDA_VISIBLE_DEVICES"
_OUT_OF_MEMORY = 2
_ARGUMENT = frozenset({1, 9, 11, 98, 301, 400, 500, 701})
_FAULT = frozenset({700, 702, 710, 714, 715, 716, 717, 718, 719})
_DATA_LOST = frozenset({214, 220, 226})
_GONE = frozenset({46, 100, 101, 304})
_NO_WAY = frozenset({209, 217, 222, 223, 801})
_REOPEN = "close the handle and open the device again in a new process; look for the fault in the program"


class Cuda:
    """CuPy, and the number by which CUDA knows one device in this process."""

    __slots__ = ("cupy", "number", "only", "runtime")

    def __init__(self, cupy: Any, number: int, only: bool) -> None:
        self.cupy = cupy
        self.runtime = cupy.cuda.runtime
        self.number = number
        self.only = only
        """True if CUDA shows no other device: then it is always the current one."""


def import_cupy() -> Any:
    """Return the module. Raises ``ImportError``."""
    import cupy

    return cupy


def attach(board: Board, device_id: str, sharing: Sharing, step: str, load: Callable[[], Any] = import_cupy) -> Cuda:
    """Find a device of NVML in CUDA and make its context. Raises ``Unsupported`` with what is missing."""
    try:
        cupy = load()
    except ImportError as error:
        raise Unsupported(
            f"computing needs CuPy: {' '.join(str(error).split())}", device=device_id, during=step, hint=EXTRA
        ) from None
    if sharing.mode is SharingMode.MPS and os.environ.get(PIPES) != sharing.pipes:
        raise Unsupported(
            f"this process is no client of the MPS daemon: {PIPES} is not {sharing.pipes}",
            device=device_id,
            during=step,
            hint="start the program with the lease's environment (lease.env())",
        )
    try:
        number, count = _number(cupy.cuda.runtime, board, device_id, step)
        cupy.cuda.runtime.setDevice(number)
        cupy.cuda.runtime.free(0)  # makes the context, so that later verbs find it made
    except Exception as error:  # a guard around the library: raised again as what it is
        raise translated(error, device_id, step) from error
    return Cuda(cupy, number, count == 1)


def _number(runtime: Any, board: Board, device_id: str, step: str) -> tuple[int, int]:
    count = runtime.getDeviceCount()
    visible = os.environ.get(VISIBLE, "")
    if device_id.startswith("MIG-"):
        names = [name.strip() for name in visible.split(",")]
        if device_id in names and names.index(device_id) < count:
            return names.index(device_id), count
    else:
        for number in range(count):
            if pci_address(runtime.deviceGetPCIBusId(number)) == board.address:
                return number, count
    shown = f"{VISIBLE} is {visible!r}" if VISIBLE in os.environ else f"{VISIBLE} is not set"
    raise Unsupported(
        f"CUDA does not show this device to this process ({shown})",
        device=device_id,
        during=step,
        hint=f"start the program with {VISIBLE}={device_id}: CUDA reads it once (lease.env() gives it)",
    )


def translated(error: BaseException, device: str, step: str) -> BaseException:
    """Return an error of CuPy as hal says it; what is none of CuPy's is left as it is."""
    if isinstance(error, DeviceError):
        return error
    name = type(error).__name__
    status = getattr(error, "status", None)
    text = " ".join(str(error).split())
    if name == "OutOfMemoryError" or (status == _OUT_OF_MEMORY and name.startswith("CUDA")):
        return OutOfMemory(text, device=device, during=step, hint="free buffers, or ask for less")
    if not isinstance(status, int) or not name.startswith("CUDA"):
        return error
    if status in _ARGUMENT:
        return InvalidArgument(text, device=device, during=step, hint="look at sizes, types and limits")
    if status in _FAULT:
        return ProgramFault(text, device=device, during=step, hint=_REOPEN, code=status)
    if status in _DATA_LOST:
        hint = "close the handle; the data is lost, and the device may need a reset"
        return UncorrectableError(text, device=device, during=step, hint=hint, code=status)
    if status in _GONE:
        if status == 46:
            return DeviceBusy(text, device=device, during=step, hint="another process has it to itself")
        return DeviceGone(text, device=device, during=step, hint="hal-probe list; look at dmesg")
    if status in _NO_WAY:
        return Unsupported(text, device=device, during=step, hint="copy through the host, or build for this GPU")
    return HardwareFault(text, device=device, during=step, hint="look at the device's health", code=status)


def ends_context(error: BaseException) -> bool:
    """True if CUDA will answer everything with this error from now on."""
    return isinstance(error, (ProgramFault, UncorrectableError))
