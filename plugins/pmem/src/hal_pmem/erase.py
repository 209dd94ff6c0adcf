"""Making a range of a file or block device zero: by punching it out where that is safe, by writing where it is not.

Facts: fallocate(2).
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
_ZEROS = bytes(4 << 20)
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


def erase(descriptor: int, offset: int, length: int) -> None:
    """Make a range zero and keep its space. Raises ``OSError``."""
    if not _fallocate(descriptor, _ZERO_RANGE | _KEEP_SIZE, offset, length):
        overwrite(descriptor, offset, length)


def overwrite(descriptor: int, offset: int, length: int) -> None:
    """Write zeros; on persistent memory the kernel clears poison under whole pages. Raises ``OSError``."""
    done = 0
    while done < length:
        done += os.pwrite(descriptor, memoryview(_ZEROS)[: length - done], offset + done)


def replace_blocks(descriptor: int, offset: int, length: int) -> None:
    """Give the blocks of a range of a file back and take others, which are zero. Raises ``OSError``."""
    if not _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
        raise OSError(errno.EOPNOTSUPP, "the file system cannot exchange single blocks of a file")
    os.posix_fallocate(descriptor, offset, length)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> bool:
    """True if the kernel did it, False if this file system cannot."""
    ffi, libc = _libc()
    if libc.fallocate(descriptor, mode, offset, length) == 0:
        return True
    if ffi.errno in _CANNOT:
        return False
    raise OSError(ffi.errno, os.strerror(ffi.errno))


@functools.cache
def _libc() -> tuple[Any, Any]:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("int fallocate(int descriptor, int mode, int64_t offset, int64_t length);")
    return ffi, ffi.dlopen(None)
