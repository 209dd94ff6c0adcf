"""libpmem through cffi, without a compiler: the calls that make stores durable, and its word on what memory is.

Addresses are numbers, so that a place in a mapping is an addition. Facts: libpmem(7), pmem_is_pmem(3), pmem_flush(3),
pmem_memmove_persist(3) of PMDK 1.12.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from hal.drivers.guarded import describe

SONAME = "libpmem.so.1"
REMEDY = "apt install libpmem1"

_DECLARATIONS = """
void *pmem_map_file(const char *path, size_t length, int flags, unsigned mode, size_t *mapped, int *is_pmem);
int pmem_unmap(void *address, size_t length);
int pmem_is_pmem(const void *address, size_t length);
void pmem_persist(uintptr_t address, size_t length);
void pmem_flush(uintptr_t address, size_t length);
void pmem_drain(void);
int pmem_msync(uintptr_t address, size_t length);
int pmem_deep_persist(uintptr_t address, size_t length);
int pmem_has_auto_flush(void);
void *pmem_memcpy_persist(uintptr_t destination, const void *source, size_t length);
void *pmem_memcpy_nodrain(uintptr_t destination, const void *source, size_t length);
void *pmem_memmove_persist(uintptr_t destination, const void *source, size_t length);
void *pmem_memmove_nodrain(uintptr_t destination, const void *source, size_t length);
const char *pmem_errormsg(void);
"""


class Libpmem:
    """The loaded library: ``ffi`` and ``lib`` as cffi has them."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self.ffi = ffi
        self.lib = lib

    def map_file(self, path: str, held: int) -> tuple[Any, int, bool]:
        """Map a whole file or DAX device for writing: the pointer, which unmaps when nobody holds it, length, is_pmem.

        A duplicate of the descriptor ``held`` stays open as long as the mapping. Raises ``OSError`` with the library's
        message.
        """
        mapped, is_pmem = self.ffi.new("size_t *"), self.ffi.new("int *")
        pointer = self.lib.pmem_map_file(os.fsencode(path), 0, 0, 0, mapped, is_pmem)
        if pointer == self.ffi.NULL:
            number = self.ffi.errno
            message = self.ffi.string(self.lib.pmem_errormsg()).decode("utf-8", "replace")
            raise OSError(number, message or os.strerror(number))
        length, unmap, kept = int(mapped[0]), self.lib.pmem_unmap, os.dup(held)

        def let_go(gone: Any) -> None:
            unmap(gone, length)
            os.close(kept)

        return self.ffi.gc(pointer, let_go), length, bool(is_pmem[0])


@functools.cache
def load() -> Libpmem | str:
    """Return the system's library, or why it cannot be used, in one line."""
    return open_library(SONAME)


def open_library(name: str) -> Libpmem | str:
    """Return a library by its name or path, or why it cannot be used."""
    try:
        import cffi

        ffi = cffi.FFI()
        ffi.cdef(_DECLARATIONS)
        lib = ffi.dlopen(name)
        lib.pmem_map_file, lib.pmem_deep_persist  # noqa: B018 - a library without them is none of ours
    except Exception as error:  # a guard: a vendor's library may fail to load in any way
        return describe(error)
    return Libpmem(ffi, lib)
