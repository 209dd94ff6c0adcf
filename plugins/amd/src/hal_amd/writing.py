"""Writing one of the kernel's files, with its refusals as errors of hal."""

from __future__ import annotations

import errno
import os

from hal.errors import AccessDenied, DeviceBusy, DeviceError, DeviceGone, HardwareFault, InvalidArgument, Unsupported
from hal.host.tree import Tree


def write(tree: Tree, path: str, text: str, device_id: str, step: str) -> None:
    """Write an attribute. The kernel decides in that call, and says no by its error."""
    try:
        descriptor = os.open(os.path.join(tree.folder, path), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise refusal(error, f"writing {text} to {path.rpartition('/')[2]}", device_id, step) from error


def refusal(error: OSError, what: str, device_id: str, step: str) -> DeviceError:
    """Return what an error of the operating system means for a GPU."""
    words = f"{what}: {error.strerror}"
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return AccessDenied(words, device=device_id, during=step, hint="do it as root, on the host")
        case errno.EBUSY:
            return DeviceBusy(words, device=device_id, during=step, hint="end the processes that use it")
        case errno.EINVAL:
            return InvalidArgument(words, device=device_id, during=step, hint="look at dmesg for what it takes")
        case errno.ENOENT | errno.EOPNOTSUPP:
            return Unsupported(words, device=device_id, during=step, hint="a newer kernel, or another board")
        case errno.ENODEV | errno.ENXIO:
            return DeviceGone(words, device=device_id, during=step, hint="reboot the node")
    return HardwareFault(words, device=device_id, during=step, hint="look at dmesg", code=error.errno)
