"""Memory of a mock GPU: host memory that is counted as if it were the device's, and backed only where it is touched."""

from __future__ import annotations

import math
import mmap
import threading
from collections import deque
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from hal.errors import InvalidArgument, OutOfMemory
from hal.interfaces.gpu_compute import Shape
from hal_mocks.gpu_contexts import COUNT, EPOCH, MEMORY, Contexts

if TYPE_CHECKING:
    from hal_mocks.gpu_handle import MockGpuHandle

Array = np.ndarray[Any, Any]

LAZY_FROM_BYTES = 1 << 20
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
ELEMENTS: dict[str, np.dtype[Any]] = {"uint8": np.dtype("uint8")}
"""Types that were asked for before, by name."""


def element_of(dtype: str, device: str) -> np.dtype[Any]:
    """Return the type of that name; those of the Array API are known, and NumPy's others of a fixed size."""
    try:
        element = np.dtype(dtype)
    except TypeError as error:
        raise InvalidArgument(str(error), device=device, during="allocate", hint="float32, int8, ...") from error
    if element.hasobject or element.itemsize == 0:
        raise InvalidArgument(f"{dtype} has no fixed size", device=device, during="allocate", hint="float32, int8, ...")
    return ELEMENTS.setdefault(str(dtype), element)


def make_array(shape: Shape, element: np.dtype[Any], nbytes: int) -> Array:
    """Return a large array, which takes address space now and memory when it is written."""
    # NORESERVE: an 80 GB buffer must not need 80 GB of the machine that pretends to have it.
    space = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return np.ndarray(shape, element, buffer=space)


class Account:
    """What one context has allocated, of what the device has. The page is shared with other processes."""

    def __init__(self, contexts: Contexts, slot: int, epoch: int, limit_bytes: int) -> None:
        self._contexts = contexts
        self._words = contexts.words
        self._mine = MEMORY + slot
        self._epoch = epoch
        self._used = 0
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self.dropped: deque[int] = deque()

    def take(self, nbytes: int) -> None:
        """Count an allocation, or raise :class:`~hal.errors.OutOfMemory` and count nothing.

        Two processes that take at the same time what only one can have may both be refused, and never both be given it.
        """
        words = self._words
        with self._lock:
            if self.dropped:
                self._collect()
            if nbytes > self.limit_bytes:
                raise self._full(nbytes, self._contexts.used_bytes())
            words[self._mine] = self._used = mine = self._used + nbytes
            if words[COUNT] == 1 and mine <= self.limit_bytes:
                return
            used = self._contexts.used_bytes()
            if used > self.limit_bytes:
                self._contexts.reap()
                used = self._contexts.used_bytes()
            if used <= self.limit_bytes:
                return
            words[self._mine] = self._used = mine - nbytes
        raise self._full(nbytes, used - nbytes)

    def _full(self, nbytes: int, used: int) -> OutOfMemory:
        free = max(0, self.limit_bytes - used)
        return OutOfMemory(
            f"{nbytes} bytes were asked for, {free} of {self.limit_bytes} are free",
            device=self._contexts.device_id,
            during="allocate",
            hint="free buffers, or ask for less",
        )

    def give(self, nbytes: int) -> None:
        """Count what was freed."""
        with self._lock:
            self._used -= nbytes
            if self._words[EPOCH] == self._epoch:
                self._words[self._mine] = self._used

    def collect(self) -> None:
        """Count what was freed because nobody referred to it any more."""
        with self._lock:
            self._collect()

    def _collect(self) -> None:
        # A buffer that the collector finds says so through a deque: taking the lock there could meet its own holder.
        while self.dropped:
            self._used -= self.dropped.popleft()
        if self._words[EPOCH] == self._epoch:
            self._words[self._mine] = self._used


class MockBuffer:
    """A buffer of a mock GPU: a NumPy array that is counted. DLPack calls its place host memory, which it is."""

    __slots__ = ("_account", "_array", "_handle", "nbytes")

    def __init__(self, handle: MockGpuHandle, account: Account, array: Array, nbytes: int) -> None:
        self._handle = handle
        self._account = account
        self._array: Array | None = array
        self.nbytes = nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, C order."""
        shape: tuple[int, ...] = self._live("shape").shape
        return shape

    @property
    def dtype(self) -> str:
        """Name of the element's type."""
        name: str = self._live("dtype").dtype.name
        return name

    @property
    def array(self) -> Array:
        """The memory itself. Work given to streams before is done first, so that nothing old is read."""
        self._handle._enter_work("array")
        if self._handle._pending:
            self._handle._drain(None)
        return self._live("array")

    def free(self) -> None:
        """Give the memory back."""
        if self._array is not None:
            self._array = None
            self._account.give(self.nbytes)

    def _live(self, step: str) -> Array:
        array = self._array
        if array is None:
            raise InvalidArgument(
                "the buffer has been freed", device=self._handle._id, during=step, hint="allocate another"
            )
        return array

    def __del__(self) -> None:
        if self._array is not None:
            self._account.dropped.append(self.nbytes)

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return the capsule. The stream is the consumer's: all work is done before it looks."""
        array = self.array
        if dl_device is None and copy is None and max_version is not None:
            return array.__dlpack__(max_version=max_version)
        asked: dict[str, Any] = {"max_version": max_version, "dl_device": dl_device, "copy": copy}
        return array.__dlpack__(**{name: value for name, value in asked.items() if value is not None})

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return (1, 0): host memory."""
        if self._array is None:
            self._live("dlpack")
        return 1, 0

    def __repr__(self) -> str:
        return f"<MockBuffer {self.nbytes} bytes on {self._handle._id}{'' if self._array is not None else ', freed'}>"


def bytes_of(shape: Shape, element: np.dtype[Any], device: str) -> int:
    """Return how many bytes an array takes; raises :class:`~hal.errors.InvalidArgument` for what is none."""
    try:
        extents = [index(extent) for extent in (shape if isinstance(shape, tuple) else (shape,))]
        if min(extents, default=0) >= 0:
            return math.prod(extents) * element.itemsize
    except TypeError as error:
        raise InvalidArgument(str(error), device=device, during="allocate", hint="a tuple of integers") from error
    raise InvalidArgument(f"negative extent in {shape}", device=device, during="allocate", hint="0 or more")
