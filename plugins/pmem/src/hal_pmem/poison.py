"""Poison: the kernel's lists of bad blocks, and copying bytes out without ever loading a bad one in this process.

A load from poison is a SIGBUS, which ends the process. The kernel's own copy is not: ``pread`` of a file or block
device says EIO, and ``write`` out of a mapping says EFAULT. Facts: Documentation/ABI/testing/sysfs-block
(``badblocks``), Documentation/filesystems/fiemap.rst, filesystems/dax.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence

from hal.errors import UncorrectableError
from hal.interfaces.pmem import ByteRange, merged, overlap

SECTOR_BYTES = 512
_PAGE = 4096
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_EXTENTS = 128
_LAST = 0x1
_UNKNOWN = 0x2
_UNWRITTEN = 0x800
_LOST = (errno.EIO, errno.EFAULT, errno.ENXIO)


class BadBlockList:
    """A ``badblocks`` file of sysfs, kept open: asking again costs one read, and parsing only if it changed."""

    def __init__(self, path: str) -> None:
        self._raw = b""
        self._ranges: tuple[ByteRange, ...] = ()
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else -1
        except OSError:
            self._descriptor = -1

    def ranges(self) -> tuple[ByteRange, ...]:
        """Return what the kernel lists now, in bytes; nothing where it keeps no list."""
        if self._descriptor < 0:
            return ()
        try:
            raw = os.pread(self._descriptor, 1 << 16, 0)
        except OSError:  # the device went: its other verbs say so
            return self._ranges
        if raw != self._raw:
            self._raw, self._ranges = raw, parse_badblocks(raw.decode("ascii", "replace"))
        return self._ranges

    def close(self) -> None:
        """Give the file back. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def parse_badblocks(text: str) -> tuple[ByteRange, ...]:
    """Return the ranges of a list of ``first-sector count`` lines; a line that is none is left out."""
    found: list[ByteRange] = []
    for line in text.split("\n"):
        parts = line.split()
        if len(parts) == 2 and all(part.isdecimal() and len(part) < 16 for part in parts):
            found.append(ByteRange(int(parts[0]) * SECTOR_BYTES, int(parts[1]) * SECTOR_BYTES))
    return merged(found)


def in_file(descriptor: int, bad: Sequence[ByteRange], start_bytes: int) -> tuple[ByteRange, ...]:
    """Return where a file holds bad blocks of its device, as whole pages of the file.

    ``start_bytes`` is where the file system begins on the device. What was allocated and never written is left out:
    the kernel gives zeros there without looking at the medium.
    """
    if not bad:
        return ()
    found: list[ByteRange] = []
    for logical, physical, length in file_extents(descriptor):
        first = physical + start_bytes
        for part in bad:
            begin, end = max(part.offset, first), min(part.end, first + length)
            if begin < end:
                low = (begin - first + logical) // _PAGE * _PAGE
                high = -(-(end - first + logical) // _PAGE) * _PAGE
                found.append(ByteRange(low, high - low))
    return merged(found)


def file_extents(descriptor: int) -> Iterator[tuple[int, int, int]]:
    """Yield (place in the file, place on the device, length) of what the file has on its device."""
    start = 0
    while True:
        request = bytearray(_FIEMAP.size + _EXTENTS * _EXTENT.size)
        _FIEMAP.pack_into(request, 0, start, (1 << 64) - 1 - start, 0, 0, _EXTENTS, 0)
        try:
            fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, request, True)
        except OSError:  # this file system does not tell where it puts things
            return
        count = _FIEMAP.unpack_from(request)[3]
        for number in range(count):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(
                request, _FIEMAP.size + number * _EXTENT.size
            )
            if not flags & (_UNKNOWN | _UNWRITTEN):
                yield logical, physical, length
            if flags & _LAST:
                return
            start = logical + length
        if not count:
            return


def lost(device: str, step: str, name: str, first: int, last: int, why: str) -> UncorrectableError:
    """Return the error for bytes that cannot be had any more."""
    return UncorrectableError(
        f"bytes {first} to {last} of {name} are lost: {why}",
        device=device,
        during=step,
        hint="restore the range from a copy after clear_poison(), which zeroes it",
    )


def refuse_poison(bad: Sequence[ByteRange], offset: int, length: int, *, device: str, step: str, name: str) -> None:
    """Raise ``UncorrectableError``, naming the first bad byte, if a range holds poison."""
    hit = overlap(bad, offset, length)
    if hit is not None:
        first, last = max(hit.offset, offset), min(hit.end, offset + length)
        raise lost(device, step, name, first, last, "the kernel lists them as bad blocks")


def copy_by_read(descriptor: int, base: int, offset: int, length: int, *, device: str, name: str) -> bytes:
    """Copy bytes out with read(2). Raises ``UncorrectableError`` for what the kernel cannot read."""
    try:
        data = os.pread(descriptor, length, base + offset)
        while len(data) < length:
            more = os.pread(descriptor, length - len(data), base + offset + len(data))
            if not more:
                raise lost(device, "read", name, offset + len(data), offset + length, "the file ends before them")
            data += more
    except OSError as error:
        if error.errno not in _LOST:
            raise
        first, last = _first_bad(descriptor, base, offset, length)
        raise lost(device, "read", name, first, last, f"the kernel says {os.strerror(error.errno or 0)}") from None
    return data


def copy_by_write(view: memoryview, offset: int, length: int, *, device: str, name: str) -> bytes:
    """Copy bytes out of a mapping that has no read(2): the kernel copies them into memory of its own first."""
    scratch = os.memfd_create("hal-pmem-read", os.MFD_CLOEXEC)
    try:
        done = 0
        while done < length:
            try:
                done += os.pwrite(scratch, view[offset + done : offset + length], done)
            except OSError as error:
                if error.errno not in _LOST:
                    raise
                first = offset + done
                last = min(offset + length, (first // _PAGE + 1) * _PAGE)
                raise lost(device, "read", name, first, last, "the kernel met poison while copying them") from None
        return copy_by_read(scratch, 0, 0, length, device=device, name=name)
    finally:
        os.close(scratch)


def _first_bad(descriptor: int, base: int, offset: int, length: int) -> tuple[int, int]:
    """Return the part of the first page of a range that cannot be read."""
    place = offset
    while place < offset + length:
        end = min(offset + length, (base + place) // _PAGE * _PAGE + _PAGE - base)
        try:
            os.pread(descriptor, end - place, base + place)
        except OSError:
            return place, end
        place = end
    return offset, offset + length
