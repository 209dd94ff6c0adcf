"""Zeroing namespaces of the kernel's: block devices by the kernel, which clears poison with it, DAX by storing zeros.

Facts: BLKZEROOUT of linux/fs.h; drivers/nvdimm/pmem.c, which clears the poison under whole sectors that are written.
"""

from __future__ import annotations

import fcntl
import os
import struct

from hal.interfaces.deadline import Deadline
from hal_pmem import locks
from hal_pmem.memory import Memory, map_memory
from hal_pmem.spaces import Space

_BLKZEROOUT = 0x127F
_STEP_BYTES = 64 << 20
_ZEROS = bytes(4 << 20)


def zero_block_device(node: str, offset: int, length: int) -> None:
    """Zero whole sectors of a block device. Raises ``OSError``."""
    descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", offset, length))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def zero_memory(memory: Memory, offset: int, length: int) -> None:
    """Store zeros and persist them."""
    zeros = memoryview(_ZEROS)
    for place in range(offset, offset + length, len(_ZEROS)):
        part = min(len(_ZEROS), offset + length - place)
        memory.copy_persist(memory.address + place, zeros[:part])


def zero_space(space: Space, deadline: Deadline) -> None:
    """Zero all that a namespace's node shows, in steps between which the deadline is looked at. Raises ``OSError``."""
    if not space.is_dax:
        for offset in range(0, space.usable_bytes, _STEP_BYTES):
            deadline.check(during="scrub")
            zero_block_device(space.node, offset, min(_STEP_BYTES, space.usable_bytes - offset))
        return
    descriptor = os.open(space.node, os.O_RDWR | os.O_CLOEXEC)
    try:
        locks.hold(descriptor, 0, space.usable_bytes)
        memory = map_memory(space.node, descriptor, 0, space.usable_bytes, read_only=False, device_dax=True)
        for offset in range(0, space.usable_bytes, _STEP_BYTES):
            deadline.check(during="scrub")
            zero_memory(memory, offset, min(_STEP_BYTES, space.usable_bytes - offset))
        memory.release()
    finally:
        os.close(descriptor)
