"""Who uses which bytes: locks of the open file description, which the kernel drops with the last mapping.

A mapping keeps its descriptor open for as long as any of its memory is reachable, also after it was closed while
somebody still had an array of it. So a range that nobody has locked is one that nobody of ours can reach.
Facts: fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_FLOCK = struct.Struct("@hhqqi0q")  # struct flock: type, whence, start, length, process


def hold(descriptor: int, offset: int, length: int) -> None:
    """Mark a range as used for as long as the description is open. Raises ``OSError``."""
    asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, length, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, asked)


def is_held(path: str, offset: int, length: int) -> bool:
    """True if anybody uses a byte of a range of a file. Asks, and locks nothing. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0)
        found: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
        return found != fcntl.F_UNLCK
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(descriptor: int, *, shared: bool = False) -> Iterator[None]:
    """Be the only one who changes what a file's label says, or with ``shared`` keep others from changing it."""
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
