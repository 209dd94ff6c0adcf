"""Host programs for tests, through ``libdpu.so``: what C programs do with ``dpu.h``, by ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hal_mocks.upmem_sim import compile_program, libdpu

HEAP = "__sys_used_mram_end"
ALL = 0xFFFFFFFF
TO_DPU, FROM_DPU = 0, 1
ASYNCHRONOUS, SYNCHRONOUS = 0, 1
NO_RESET, ASYNC, PARALLEL = 1, 2, 4

OK, DRIVER, ALLOCATION, DPU_SET, WRAM, MRAM, SYMBOL_RANGE, BUSY = 0, 3, 4, 5, 8, 10, 11, 12
ALREADY_SET, NOT_PARALLEL, NO_PROGRAM, CORRUPTED, DISABLED, RUNNING, FAULT = 13, 14, 16, 18, 19, 20, 23
BAD_FILE, NO_FILE, PROFILE, NO_SYMBOL, LOG_SMALL = 24, 25, 28, 29, 32


class Error(Exception):
    """A call that failed: its number of the SDK, and the library's words."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Set(ctypes.Structure):
    """``struct dpu_set_t``: the kind, and either ranks or one DPU."""

    _fields_ = (("kind", ctypes.c_uint32), ("first", ctypes.c_uint64), ("second", ctypes.c_void_p))


class Symbol(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint32), ("size", ctypes.c_uint32))


class Counters(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("cycles", "instructions", "dma_operations", "dma_bytes", "clock_hz")),
        *((name, ctypes.c_double) for name in ("to_dpu_seconds", "from_dpu_seconds")),
    )


@functools.cache
def library() -> ctypes.CDLL:
    os.environ.setdefault("HAL_UPMEM_LOCKS", f"{_folder().name}/locks")  # nobody else's ranks
    lib = ctypes.CDLL(str(libdpu()))
    lib.dpu_error_to_string.restype = ctypes.c_void_p
    lib.dpu_sim_last_error.restype = ctypes.c_char_p
    lib.dpu_sim_fault.restype = ctypes.c_char_p
    lib.dpu_sim_rank_name.restype = ctypes.c_char_p
    for name in ("dpu_get_rank", "dpu_get"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.dpu_set_from_dpu.restype = Set
    return lib


def check(code: int) -> None:
    if code != OK:
        text = library().dpu_error_to_string(code)
        words = ctypes.string_at(text).decode()
        ctypes.CDLL(None).free(ctypes.c_void_p(text))
        raise Error(code, words)


class Dpus:
    """An allocated set."""

    def __init__(self, count: int, profile: str | None = None, *, ranks: bool = False) -> None:
        self.set = Set()
        self._buffers: list[object] = []
        text = None if profile is None else profile.encode()
        allocate = library().dpu_alloc_ranks if ranks else library().dpu_alloc
        check(allocate(ctypes.c_uint32(count), text, ctypes.byref(self.set)))
        self.dpus = [library().dpu_set_from_dpu(ctypes.c_void_p(each)) for each in self._pointers()]

    def _pointers(self) -> Iterator[int]:
        ranks = ctypes.cast(ctypes.c_void_p(self.set.second), ctypes.POINTER(ctypes.c_void_p))
        for rank in ranks[: self.set.first & 0xFFFFFFFF]:
            for slice_ in range(8):
                for member in range(8):
                    dpu = library().dpu_get(ctypes.c_void_p(rank), slice_, member)
                    if dpu and library().dpu_is_enabled(ctypes.c_void_p(dpu)):
                        yield dpu

    def load(self, path: Path) -> ctypes.c_void_p:
        program = ctypes.c_void_p()
        check(library().dpu_load(self.set, str(path).encode(), ctypes.byref(program)))
        return program

    def push(self, symbol: str, buffers: Sequence[bytes], offset: int = 0, flags: int = 0) -> None:
        self._buffers = [ctypes.create_string_buffer(each, len(each)) for each in buffers]
        for dpu, buffer in zip(self.dpus, self._buffers, strict=True):
            check(library().dpu_prepare_xfer(dpu, buffer))
        size = ctypes.c_size_t(len(buffers[0]))
        check(library().dpu_push_xfer(self.set, TO_DPU, symbol.encode(), ctypes.c_uint32(offset), size, flags))

    def pull(self, symbol: str, length: int, offset: int = 0, flags: int = 0) -> list[bytes]:
        buffers = [ctypes.create_string_buffer(length) for _ in self.dpus]
        for dpu, buffer in zip(self.dpus, buffers, strict=True):
            check(library().dpu_prepare_xfer(dpu, buffer))
        size = ctypes.c_size_t(length)
        check(library().dpu_push_xfer(self.set, FROM_DPU, symbol.encode(), ctypes.c_uint32(offset), size, flags))
        return [buffer.raw for buffer in buffers]

    def broadcast(self, symbol: str, data: bytes, offset: int = 0, flags: int = 0) -> None:
        size = ctypes.c_size_t(len(data))
        check(library().dpu_broadcast_to(self.set, symbol.encode(), ctypes.c_uint32(offset), data, size, flags))

    def read(self, dpu: int, symbol: str, length: int, offset: int = 0) -> bytes:
        buffer, size = ctypes.create_string_buffer(length), ctypes.c_size_t(length)
        check(library().dpu_copy_from(self.dpus[dpu], symbol.encode(), ctypes.c_uint32(offset), buffer, size))
        return buffer.raw

    def number(self, dpu: int, symbol: str, size: int = 4) -> int:
        return int.from_bytes(self.read(dpu, symbol, size), "little")

    def launch(self, policy: int = SYNCHRONOUS) -> None:
        check(library().dpu_launch(self.set, policy))

    def sync(self) -> None:
        check(library().dpu_sync(self.set))

    def status(self) -> tuple[bool, bool]:
        done, fault = ctypes.c_bool(), ctypes.c_bool()
        check(library().dpu_status(self.set, ctypes.byref(done), ctypes.byref(fault)))
        return done.value, fault.value

    def fault(self, dpu: int = 0) -> tuple[str, int]:
        tasklet = ctypes.c_int()
        words = library().dpu_sim_fault(ctypes.c_void_p(self.dpus[dpu].first), ctypes.byref(tasklet))
        return ("" if words is None else words.decode()), tasklet.value

    def counters(self, dpu: int = 0) -> Counters:
        counters = Counters()
        check(library().dpu_sim_counters(ctypes.c_void_p(self.dpus[dpu].first), ctypes.byref(counters)))
        return counters

    def log(self, dpu: int = 0) -> str:
        c = ctypes.CDLL(None)
        c.fopen.restype = ctypes.c_void_p
        with tempfile.NamedTemporaryFile() as file:
            stream = ctypes.c_void_p(c.fopen(file.name.encode(), b"w"))
            code = library().dpulog_read_for_dpu(ctypes.c_void_p(self.dpus[dpu].first), stream)
            c.fclose(stream)
            check(code)
            return Path(file.name).read_text()

    def free(self) -> None:
        check(library().dpu_free(self.set))


@contextmanager
def allocated(count: int = 1, profile: str | None = None, *, ranks: bool = False) -> Iterator[Dpus]:
    dpus = Dpus(count, profile, ranks=ranks)
    try:
        yield dpus
    finally:
        dpus.free()


@functools.cache
def compiled(source: str, *flags: str) -> Path:
    """Compile a program once for all tests of a process."""
    name = hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:16]
    path = Path(_folder().name, f"{name}.c")
    path.write_text(source)
    return compile_program(("-O2", "-Wall", *flags, "-o", str(path.with_suffix(".dpu")), str(path)))


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dpus-")


def build_host(source: Path, target: Path) -> None:
    """Compile a host program in C against our headers and library."""
    from hal_mocks.upmem_sim import HOST_HEADERS

    library_folder = libdpu().parent
    subprocess.run(
        (
            *("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{HOST_HEADERS}", str(source), "-o", str(target)),
            *(f"-L{library_folder}", f"-Wl,-rpath,{library_folder}", "-ldpu"),
        ),
        check=True,
    )
