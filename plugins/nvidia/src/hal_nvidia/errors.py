"""NVML's return codes as errors and absences of hal.

Codes are those of ``nvmlReturn_t`` (NVML API reference, "Device Structs"); they never change their numbers.
"""

from __future__ import annotations

from typing import Any

from hal.errors import (
    AccessDenied,
    DeadlineExceeded,
    DeviceBusy,
    DeviceError,
    DeviceGone,
    DeviceNotFound,
    HardwareFault,
    InvalidArgument,
    OutOfMemory,
    Unsupported,
)
from hal.model.attributes import Absence, Attribute

UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
INSUFFICIENT_POWER = 8
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
OPERATING_SYSTEM = 17
VERSION_MISMATCH = 18
IN_USE = 19
MEMORY = 20
NO_DATA = 21
VGPU_ECC_NOT_SUPPORTED = 22
INSUFFICIENT_RESOURCES = 23
ARGUMENT_VERSION_MISMATCH = 25
DEPRECATED = 26
NOT_READY = 27
GPU_NOT_FOUND = 28
INVALID_STATE = 29

SOURCE = "nvml"
NEVER = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH, DEPRECATED, VGPU_ECC_NOT_SUPPORTED})
"""Answers that asking again does not change: the board, the driver or the firmware cannot."""
LOST = frozenset({GPU_IS_LOST, GPU_NOT_FOUND})

_ABSENT = {
    **dict.fromkeys(NEVER, Absence.UNSUPPORTED),
    **dict.fromkeys(LOST, Absence.DEVICE_LOST),
    NO_PERMISSION: Absence.PERMISSION,
    OPERATING_SYSTEM: Absence.PERMISSION,
    TIMEOUT: Absence.TIMEOUT,
    NOT_READY: Absence.TIMEOUT,
    NO_DATA: Absence.NOT_REPORTED,
    NOT_FOUND: Absence.NOT_REPORTED,
    DRIVER_NOT_LOADED: Absence.DRIVER_NOT_BOUND,
}
_RAISED: dict[int, tuple[type[DeviceError], str]] = {
    **dict.fromkeys(NEVER, (Unsupported, "another board, or a newer driver")),
    GPU_IS_LOST: (DeviceGone, "look at dmesg for its XID; reset the GPU, or reboot the node"),
    GPU_NOT_FOUND: (DeviceGone, "look at dmesg for its XID; reset the GPU, or reboot the node"),
    NO_PERMISSION: (AccessDenied, "do it as root"),
    OPERATING_SYSTEM: (AccessDenied, "look at the rights of /dev/nvidia* and at the container's device rules"),
    INVALID_ARGUMENT: (InvalidArgument, "hal-probe describe shows what the device can do"),
    NOT_FOUND: (DeviceNotFound, "hal-probe list"),
    TIMEOUT: (DeadlineExceeded, "look at the device's health before trying again"),
    NOT_READY: (DeadlineExceeded, "try again: the GPU is being reset or initialised"),
    IN_USE: (DeviceBusy, "end the processes that use it: hal-probe describe names them"),
    INVALID_STATE: (DeviceBusy, "end what uses it, or reset it"),
    INSUFFICIENT_RESOURCES: (DeviceBusy, "destroy a partition, or choose a smaller profile"),
    MEMORY: (OutOfMemory, "free memory of the machine"),
    RESET_REQUIRED: (HardwareFault, "reset the GPU"),
    INSUFFICIENT_POWER: (HardwareFault, "plug in the board's power cables"),
}


def code_of(error: BaseException) -> int | None:
    """Return the code of an error that NVML's binding raised, None for any other error."""
    value = getattr(error, "value", None)
    if isinstance(value, int) and any(kind.__name__ == "NVMLError" for kind in type(error).__mro__):
        return value  # by name: the binding makes a class for each code, and is not imported for this
    return None


def absent_of(code: int, detail: str = "") -> Attribute:
    """Return the absence that a code stands for."""
    return Attribute(source=SOURCE, absent=_ABSENT.get(code, Absence.ERROR), detail=detail)


def absent(error: BaseException) -> Attribute:
    """Return the absence that an error of NVML stands for."""
    return absent_of(code_of(error) or 0, str(error))


def raised(error: Any, device: str, step: str) -> DeviceError:
    """Return the error of hal that an error of NVML stands for."""
    code = code_of(error) or 0
    kind, hint = _RAISED.get(code, (HardwareFault, "look at dmesg, and at the device's health"))
    text = f"NVML: {error}"
    if kind is HardwareFault:
        return HardwareFault(text, device=device, during=step, hint=hint, code=code)
    return kind(text, device=device, during=step, hint=hint)
