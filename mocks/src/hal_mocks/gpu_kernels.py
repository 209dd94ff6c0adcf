"""Kernels of a mock GPU: Python functions, run for every block or for every thread.

``function(block, *args)`` is called once a block and does the work of all its threads with array operations; with
``per="thread"`` (see :func:`per_thread`) ``function(thread, *args)`` is called once a thread. Arguments are arrays and
numbers. Blocks run in an order that the machine's seed gives, as no hardware promises one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from hal.errors import DeviceError, InvalidArgument, ProgramFault
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu_compute import Dim
from hal_mocks.gpu_memory import Array

Dim3 = tuple[int, int, int]
F = TypeVar("F", bound=Callable[..., object])

MAX_THREADS = 1024
MAX_BLOCK: Dim3 = (1024, 1024, 64)
MAX_GRID: Dim3 = (2**31 - 1, 65535, 65535)
SHARED_BYTES = {"7.5": 64 << 10, "8.0": 163 << 10, "9.0": 227 << 10, "10.0": 227 << 10}
"""Shared memory a block may ask for, by compute capability (CUDA programming guide); else 48 KiB."""


def per_thread(function: F) -> F:
    """Mark a kernel to be called once for every thread."""
    function.__dict__["per"] = "thread"
    return function


_NONE_SHARED = np.zeros(0, np.uint8)


class Block:
    """Where a block lies in its grid. ``shared`` are its bytes of shared memory."""

    __slots__ = ("dim", "grid", "index", "shared")

    def __init__(self, index: Dim3, dim: Dim3, grid: Dim3, shared: Array) -> None:
        self.index = index
        self.dim = dim
        self.grid = grid
        self.shared = shared

    def global_index(self, axis: int = 0) -> Array:
        """Return ``blockIdx * blockDim + threadIdx`` of all threads along one axis."""
        start = self.index[axis] * self.dim[axis]
        return np.arange(start, start + self.dim[axis])


class Thread:
    """Where a thread lies in its block and grid."""

    __slots__ = ("block", "index")

    def __init__(self, index: Dim3, block: Block) -> None:
        self.index = index
        self.block = block

    def global_index(self, axis: int = 0) -> int:
        """Return ``blockIdx * blockDim + threadIdx`` along one axis."""
        return self.block.index[axis] * self.block.dim[axis] + self.index[axis]


class MockKernel:
    """A Python function as a kernel."""

    __slots__ = ("function", "name", "per")

    def __init__(self, function: Callable[..., object], name: str) -> None:
        self.function = function
        self.name = name
        self.per = getattr(function, "per", "block")


def three(extent: Dim, most: Dim3, what: str, device: str) -> Dim3:
    """Return extents along x, y, z, or raise :class:`~hal.errors.InvalidArgument` beyond the device's."""
    given = (extent,) if isinstance(extent, int) else tuple(extent)
    if not 1 <= len(given) <= 3 or any(not 1 <= size <= limit for size, limit in zip(given, most, strict=False)):
        raise InvalidArgument(f"{what} {extent} is not within {most}", device=device, during="launch", hint=str(most))
    x, y, z = (*given, 1, 1)[:3]
    return x, y, z


def check_launch(grid: Dim, block: Dim, shared_bytes: int, capability: str, device: str) -> tuple[Dim3, Dim3]:
    """Return grid and block, checked against what a device of that compute capability takes."""
    grid3, block3 = three(grid, MAX_GRID, "grid", device), three(block, MAX_BLOCK, "block", device)
    if block3[0] * block3[1] * block3[2] > MAX_THREADS:
        raise InvalidArgument(
            f"{block3} are more than {MAX_THREADS} threads", device=device, during="launch", hint="a smaller block"
        )
    most = SHARED_BYTES.get(capability, 48 << 10)
    if not 0 <= shared_bytes <= most:
        raise InvalidArgument(
            f"{shared_bytes} bytes of shared memory", device=device, during="launch", hint=f"at most {most}"
        )
    return grid3, block3


def run(
    kernel: MockKernel,
    grid: Dim3,
    block: Dim3,
    args: Sequence[Any],
    shared_bytes: int,
    shuffle: random.Random,
    deadline: Deadline | None,
    device: str,
) -> None:
    """Run all blocks; whatever the function raises is a fault of the program (XID 13)."""
    for index in _blocks(grid, shuffle):
        if deadline is not None:
            deadline.check(device=device, during="launch")
        place = Block(index, block, grid, np.zeros(shared_bytes, np.uint8) if shared_bytes else _NONE_SHARED)
        try:
            if kernel.per == "thread":
                for z, y, x in itertools.product(range(block[2]), range(block[1]), range(block[0])):
                    kernel.function(Thread((x, y, z), place), *args)
            else:
                kernel.function(place, *args)
        except DeviceError:
            raise
        except Exception as error:  # the user's program: reported as the device would report it
            raise ProgramFault(
                f"kernel {kernel.name} faulted in block {index}: {type(error).__name__}: {error}",
                device=device,
                during="launch",
                hint="close the handle and open the device again; look for the fault in the kernel",
                code=13,
            ) from error


def _blocks(grid: Dim3, shuffle: random.Random) -> Iterator[Dim3]:
    count = grid[0] * grid[1] * grid[2]
    # A stride that has no factor in common with the count visits every block once, without a list of them all.
    stride = start = 0
    if count > 1:
        start, stride = shuffle.randrange(count), shuffle.randrange(1, count)
        while np.gcd(stride, count) != 1:
            stride = stride % count + 1
    for step in range(count):
        number = (start + step * stride) % count if count > 1 else 0
        yield number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1])
