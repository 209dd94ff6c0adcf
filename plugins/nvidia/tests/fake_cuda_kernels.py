"""The kernels of the double of CuPy: CUDA C++ compiled as C by the machine's compiler, run once for every thread."""

from __future__ import annotations

import ctypes
import itertools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_PRELUDE = """
#include <math.h>
#include <stdbool.h>
typedef struct { unsigned x, y, z; } extents;
extents blockIdx, threadIdx, blockDim, gridDim;
#define __global__
#define __restrict__ restrict
"""


class CUDARuntimeError(RuntimeError):
    """As in ``cupy.cuda.runtime``: the status is CUDA's number."""

    def __init__(self, status: int, words: str = "") -> None:
        super().__init__(f"cudaError {status}: {words}")
        self.status = status


class CUDADriverError(CUDARuntimeError):
    """As in ``cupy.cuda.driver``."""


class CompileException(Exception):
    """As in ``cupy.cuda.compiler``."""


class RawKernel:
    """CUDA C++ compiled as C, called for every thread."""

    def __init__(self, state: Any, code: str, name: str) -> None:
        self._state, self._code, self._name = state, code, name
        self._library: Any = None

    def compile(self, log_stream: Any = None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            text = re.sub(r'extern\s+"C"', "", self._code)
            Path(folder, "kernel.c").write_text(_PRELUDE + text)
            made = f"{folder}/kernel.so"
            done = subprocess.run(
                ["cc", "-shared", "-fPIC", "-O1", "-o", made, f"{folder}/kernel.c", "-lm"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise CompileException(done.stderr)
            self._library = ctypes.CDLL(made)
        if not hasattr(self._library, self._name):
            raise CUDADriverError(500, "named symbol not found")

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0
    ) -> None:
        self._state.fail_if_broken()
        run = lambda: self._run(grid, block, [_argument(arg) for arg in args])  # noqa: E731
        if self._state.current is None:
            self._state.deviceSynchronize()
            run()
        else:
            self._state.current.give(run)

    def _run(self, grid: tuple[int, ...], block: tuple[int, ...], args: list[Any]) -> None:
        function = getattr(self._library, self._name)
        function.restype = None
        self._set("gridDim", grid)
        self._set("blockDim", block)
        for place in itertools.product(*(range(n) for n in reversed(_three(grid)))):
            self._set("blockIdx", place[::-1])
            for thread in itertools.product(*(range(n) for n in reversed(_three(block)))):
                self._set("threadIdx", thread[::-1])
                function(*args)

    def _set(self, name: str, extents: tuple[int, ...]) -> None:
        (ctypes.c_uint * 3).in_dll(self._library, name)[:] = _three(extents)


def _three(extents: tuple[int, ...]) -> list[int]:
    return [*extents, 1, 1][:3]


def _argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.__array_interface__["data"][0])
    kinds: dict[Any, Any] = {
        np.float32: ctypes.c_float,
        np.int32: ctypes.c_int32,
        int: ctypes.c_int64,
        float: ctypes.c_double,
    }
    return kinds[type(value)](value)
