"""A file or DAX device in this process's address space, and what it takes to make a store to it durable there.

Two routes: libpmem where it says that the memory is persistent (cache lines are written back, no system call), and
``msync`` everywhere else. The route says itself which persistence is really had; nothing here claims more than the
kernel or libpmem does.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec

from hal_pmem.libpmem import REMEDY, load
from hal_pmem.mounts import has_map_sync, look_below


class Persistence(StrEnum):
    """What a persisted store survives, and by which means.

    ``cpu-flush``: a power failure, by cache-line write-back alone (device DAX, or ``MAP_SYNC`` on a DAX file system).
    ``msync``: a power failure, once the kernel has written the pages to the disk below. ``forced``: whoever set
    ``PMEM_IS_PMEM_FORCE=1`` says that write-back is enough; nothing here can confirm it. ``none``: the end of the
    process, not of the power.
    """

    CPU_FLUSH = "cpu-flush"
    MSYNC = "msync"
    FORCED = "forced"
    NONE = "none"


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """A mapped range. It stays mapped until ``release`` was called and no slice of ``view`` is held any more.

    ``flush`` and ``persist`` take an address and a length. ``copy_persist`` takes an address and a view of bytes.
    Addresses are absolute. Hand out slices of ``view``, never itself.
    """

    view: memoryview
    address: int
    persistence: Persistence
    flush: Callable[[int, int], object]
    drain: Callable[[], object]
    persist: Callable[[int, int], object]
    copy_persist: Callable[[int, memoryview], object]
    release: Callable[[], object]


def map_memory(
    path: str,
    descriptor: int,
    offset: int,
    length: int,
    *,
    read_only: bool,
    device_dax: bool = False,
    block: bool = False,
) -> Memory:
    """Map a range of a file, DAX device or block device; ``descriptor`` stays the caller's. Raises ``OSError``."""
    library = load()
    if not read_only and not block and not isinstance(library, str):
        pointer, mapped, is_pmem = library.map_file(path, descriptor)
        if is_pmem and offset + length <= mapped:
            persistence = _verdict(descriptor, device_dax)
            return _by_libpmem(library.ffi, library.lib, pointer, offset, length, persistence)
        del pointer
    if device_dax and not read_only:
        raise OSError(95, f"device DAX can only be made durable through libpmem ({library}); {REMEDY}")
    return _by_msync(path, descriptor, offset, length, read_only=read_only, device_dax=device_dax)


def persistence_of(path: str) -> Persistence:
    """Return what a mapping of a file would have. Raises ``OSError`` if it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        synchronous = has_map_sync(descriptor)
    finally:
        os.close(descriptor)
    if synchronous and not isinstance(load(), str):
        return Persistence.CPU_FLUSH
    if look_below(path).volatile:
        return Persistence.NONE
    return Persistence.MSYNC


def _verdict(descriptor: int, device_dax: bool) -> Persistence:
    """Say on what ground libpmem called the memory persistent."""
    # What libpmem read from the environment was read when it was loaded, by whomever: the kernel is asked instead.
    return Persistence.CPU_FLUSH if device_dax or has_map_sync(descriptor) else Persistence.FORCED


def _by_libpmem(ffi: Any, lib: Any, pointer: Any, offset: int, length: int, persistence: Persistence) -> Memory:
    start = int(ffi.cast("uintptr_t", pointer))
    # The buffer keeps the pointer, and whoever holds a slice of it keeps the buffer: it is unmapped after the last.
    view = memoryview(ffi.buffer(pointer, offset + length))[offset:]
    from_buffer, copy = ffi.from_buffer, lib.pmem_memcpy_persist

    def copy_persist(address: int, data: memoryview) -> None:
        copy(address, from_buffer(data), data.nbytes)

    return Memory(
        view=view,
        address=start + offset,
        persistence=persistence,
        flush=lib.pmem_flush,
        drain=lib.pmem_drain,
        persist=lib.pmem_persist,
        copy_persist=copy_persist,
        release=view.release,
    )


def _by_msync(path: str, descriptor: int, offset: int, length: int, *, read_only: bool, device_dax: bool) -> Memory:
    protection = mmap.PROT_READ | (0 if read_only else mmap.PROT_WRITE)
    mapped = mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED, prot=protection, offset=offset)
    view = memoryview(mapped)
    page = mmap.PAGESIZE
    write_back = mapped.flush

    def persist(address: int, count: int) -> None:
        first = address - address % page
        write_back(first, min(length, address + count) - first)  # MS_SYNC: it waits, nothing is left to drain

    def copy_persist(address: int, data: memoryview) -> None:
        view[address : address + data.nbytes] = data
        persist(address, data.nbytes)

    def release() -> None:
        view.release()
        with contextlib.suppress(BufferError):  # somebody holds a slice: it goes with the last of them
            mapped.close()

    persistence = Persistence.MSYNC
    if not device_dax and look_below(path).volatile:
        persistence = Persistence.NONE
    return Memory(
        view=view,
        address=0,
        persistence=persistence,
        flush=persist,
        drain=_nothing,
        persist=persist,
        copy_persist=copy_persist,
        release=release,
    )


def _nothing() -> None:
    """Nothing is pending: every flush has waited."""
