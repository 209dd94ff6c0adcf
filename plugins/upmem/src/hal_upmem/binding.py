"""The host library of UPMEM's SDK, ``libdpu.so``, called through cffi without a compiler.

Types and functions are those of ``dpu.h``, ``dpu_management.h``, ``dpu_log.h`` and ``dpu_memory.h`` of the SDK 2025.1.
``struct dpu_set_t`` holds a union, which cannot be passed by value through cffi: the same 24 bytes are named flat.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from hal.errors import (
    DeviceBusy,
    DeviceError,
    DeviceGone,
    DriverError,
    HardwareFault,
    InvalidArgument,
    NotReady,
    ProgramFault,
    UncorrectableError,
)

RANKS, DPU = 0, 1
TO_DPU, FROM_DPU = 0, 1
ASYNCHRONOUS = 0
MRAM_BIT, IRAM_BIT = 0x0800_0000, 0x8000_0000

_DECLARATIONS = """
typedef struct { uint32_t kind; uint64_t first; void *second; } dpu_set;
typedef struct { uint32_t address; uint32_t size; } dpu_symbol;
uint32_t dpu_alloc_ranks(uint32_t nr_ranks, const char *profile, dpu_set *set);
uint32_t dpu_free(dpu_set set);
uint32_t dpu_get_nr_ranks(dpu_set set, uint32_t *count);
uint32_t dpu_get_nr_dpus(dpu_set set, uint32_t *count);
void *dpu_rank_from_set(dpu_set set);
void *dpu_get(void *rank, uint8_t slice, uint8_t member);
bool dpu_is_enabled(void *dpu);
uint32_t dpu_load(dpu_set set, const char *path, void **program);
uint32_t dpu_get_symbol(void *program, const char *name, dpu_symbol *symbol);
uint32_t dpu_launch(dpu_set set, uint32_t policy);
uint32_t dpu_status(dpu_set set, bool *done, bool *fault);
uint32_t dpu_sync(dpu_set set);
uint32_t dpu_copy_to(dpu_set set, const char *symbol, uint32_t offset, const void *source, size_t length);
uint32_t dpu_copy_from(dpu_set set, const char *symbol, uint32_t offset, void *target, size_t length);
uint32_t dpu_prepare_xfer(dpu_set set, void *buffer);
uint32_t dpu_push_xfer(dpu_set set, uint32_t way, const char *symbol, uint32_t offset, size_t length, uint32_t flags);
uint32_t dpu_broadcast_to(
    dpu_set set, const char *symbol, uint32_t offset, const void *source, size_t length, uint32_t flags);
uint32_t dpu_copy_to_mram(void *dpu, uint32_t offset, const uint8_t *source, uint32_t length);
char *dpu_error_to_string(uint32_t status);
uint32_t dpulog_read_for_dpu(void *dpu, void *stream);

typedef struct {
    uint64_t cycles, instructions, dma_operations, dma_bytes, clock_hz; double to_dpu, from_dpu;
} sim_counters;
uint32_t dpu_sim_counters(void *dpu, sim_counters *counters);
const char *dpu_sim_fault(void *dpu, int *tasklet);

void *open_memstream(char **text, size_t *size);
int fclose(void *stream);
void free(void *pointer);
"""

_PLACES = ("lib/libdpu.so", "lib64/libdpu.so")

_KINDS: dict[int, tuple[type[DeviceError], str]] = {
    2: (DeviceGone, "dmesg; the kernel refused"),
    3: (DeviceGone, "dmesg; reload the dpu module"),
    4: (DeviceBusy, "another process has the rank; see is_owned in sysfs"),
    12: (DeviceBusy, "wait until the rank has ended its run"),
    18: (UncorrectableError, "the memory lost data: repair the DIMM"),
    19: (InvalidArgument, "rank().dpus lists the units that work"),
    20: (DeviceBusy, "wait until the rank has ended its run"),
    23: (ProgramFault, "status() and log() say more; load the program again"),
    27: (DeviceGone, "reset the rank"),
}
"""What the SDK's error numbers are in hal's tree; all others say that an argument makes no sense."""

_INTERNAL = 1


class Library(msgspec.Struct, frozen=True, eq=False):
    """The library, opened: cffi's ``ffi`` and ``lib``, and where it was found."""

    ffi: Any
    lib: Any
    path: str

    def words(self, code: int) -> str:
        """Return the library's own words for an error."""
        text = self.lib.dpu_error_to_string(code)
        if text == self.ffi.NULL:
            return f"DPU error {code}"
        try:
            told: bytes = self.ffi.string(text)
            return told.decode("utf-8", "replace")
        finally:
            self.lib_c.free(text)

    def check(self, code: int, device: str, step: str) -> None:
        """Raise the error that a status means."""
        if code:
            raise self.error(code, device, step)

    def error(self, code: int, device: str, step: str) -> DeviceError:
        """Return the error that a status means."""
        kind, hint = _KINDS.get(code & 0xFFFF, (InvalidArgument, "see UPMEM's documentation of the host library"))
        if code & 0xFFFF == _INTERNAL:
            kind, hint = HardwareFault, "reset the rank"
        return kind(self.words(code), device=device, during=step, hint=hint)

    @property
    def lib_c(self) -> Any:
        """The C library."""
        return _libc(self.ffi)

    def has(self, name: str) -> bool:
        """True if the library offers a function (a simulator offers some that the SDK has not)."""
        try:
            getattr(self.lib, name)
        except AttributeError:
            return False
        return True


@cache
def _libc(ffi: Any) -> Any:
    return ffi.dlopen(None)


def candidates(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return where the library may be: ``HAL_UPMEM_LIBRARY``, ``UPMEM_HOME``, and wherever the loader looks."""
    named = environ.get("HAL_UPMEM_LIBRARY", "")
    if named:
        return (named,)
    home = environ.get("UPMEM_HOME", "")
    found = tuple(path for place in _PLACES if home and os.path.exists(path := os.path.join(home, place)))
    return (*found, "libdpu.so")


def open_library(environ: Mapping[str, str]) -> Library:
    """Return the library. Raises ``NotReady`` if there is none, ``DriverError`` for one that is something else."""
    return _open(candidates(environ))


@cache
def _open(paths: tuple[str, ...]) -> Library:
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    told = ""
    for path in paths:
        try:
            lib = ffi.dlopen(path)
        except OSError as error:
            told = told or str(error)
            continue
        library = Library(ffi, lib, path)
        if not library.has("dpu_alloc_ranks"):
            raise DriverError(f"{path} is no host library of UPMEM's SDK", hint="HAL_UPMEM_LIBRARY=/path/libdpu.so")
        return library
    raise NotReady(f"UPMEM's host library is not here: {told}", hint="install UPMEM's SDK, or set UPMEM_HOME")
