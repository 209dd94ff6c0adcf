"""Memory and computing on an opened GPU: buffers, copies, streams, events, kernels, and an array namespace.

The array namespace ``xp`` follows the Python Array API standard (2022.12 or later): CuPy on NVIDIA and AMD, NumPy where
the device is a mock. What it computes runs on the stream that is current (``with stream:``), else on the device's
default stream. The default stream waits for the work given to all other streams before, and they wait for it, as
CUDA's legacy default stream does. Other streams run in order in themselves and in no order among each other, except
where an event is waited for.

Work given to a stream may run at any time until the stream is synchronised; an error of it is raised there. A program
that faults takes its context with it: every later verb of the handle raises, and the way out is to close it and open
the device again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import msgspec

from hal.interfaces.deadline import Deadline

Shape = int | tuple[int, ...]
Dim = int | tuple[int, ...]
"""Extents along x, or (x, y), or (x, y, z)."""


class MemoryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The device's memory (a partition's: its share). ``used_bytes`` counts all processes."""

    total_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        """What can still be allocated, fragmentation aside."""
        return self.total_bytes - self.used_bytes


@runtime_checkable
class Buffer(Protocol):
    """Memory of the device, until :meth:`free`, the end of the object, or the end of the handle that made it.

    It is an exporter of DLPack: ``xp.from_dlpack(buffer)`` shares the memory, no byte is copied. ``dtype`` is the
    name in the Array API (``float32``).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, C order."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the element's type."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken."""
        ...

    @property
    def array(self) -> Any:
        """The memory as an array of the handle's ``xp``, shared. Take it after the work that writes it was given."""
        ...

    def free(self) -> None:
        """Give the memory back; the same again is no error. Arrays taken from it must not be used any more."""
        ...

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return the DLPack capsule, safe to read in ``stream``."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return (type, number): (2, n) for CUDA, (10, n) for ROCm, (1, 0) for host memory, which a mock's is."""
        ...


@runtime_checkable
class Event(Protocol):
    """A point in a stream."""

    @property
    def done(self) -> bool:
        """True once everything before it has run. Asking lets work go on."""
        ...

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Wait until it is done."""
        ...

    def elapsed_seconds(self, earlier: Event) -> float:
        """Return the device's time from another event to this one; both must be done (``InvalidArgument``)."""
        ...


@runtime_checkable
class Stream(Protocol):
    """A queue of work that runs in order. As a context manager it is where ``xp`` computes."""

    @property
    def done(self) -> bool:
        """True if nothing is left to do. Asking lets work go on."""
        ...

    def record(self, *, deadline: Deadline | None = None) -> Event:
        """Return an event at the end of what the stream was given so far."""
        ...

    def wait(self, event: Event, *, deadline: Deadline | None = None) -> None:
        """Let what the stream is given from now on wait for an event, of any stream of any GPU."""
        ...

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Wait until all work is done; raise what went wrong in it."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@runtime_checkable
class Kernel(Protocol):
    """A function that runs on the device, once for every thread of a grid of blocks."""

    @property
    def name(self) -> str:
        """The function's name."""
        ...


@runtime_checkable
class Memory(Protocol):
    """Has memory of its own."""

    def memory_info(self, *, deadline: Deadline | None = None) -> MemoryInfo:
        """Return what there is and what is taken."""
        ...

    def allocate(self, shape: Shape, dtype: str = "uint8", *, deadline: Deadline | None = None) -> Buffer:
        """Allocate an array, or so many bytes; its content is undefined.

        ``OutOfMemory`` if it does not fit: nothing was taken, and less can be asked for.
        """
        ...

    def copy_to_device(
        self,
        source: Any,
        target: Buffer | None = None,
        *,
        stream: Stream | None = None,
        deadline: Deadline | None = None,
    ) -> Buffer:
        """Copy a host array into a buffer of the same shape and type (a new one if none is given) and return it.

        With a stream the host array must be left alone until the stream has come to it.
        """
        ...

    def copy_to_host(
        self,
        source: Any,
        target: Any = None,
        *,
        stream: Stream | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Copy a buffer, or an array of ``xp``, into a NumPy array (a new one if none is given) and return it.

        With a stream its content is undefined until the stream has come to it.
        """
        ...

    def copy_peer(
        self, source: Buffer, target: Buffer, *, stream: Stream | None = None, deadline: Deadline | None = None
    ) -> None:
        """Copy a buffer of this device into one of another GPU of the machine (or of this one), device to device.

        ``InvalidArgument`` if shapes or types differ, ``Unsupported`` if there is no way between the two.
        """
        ...


@runtime_checkable
class Compute(Protocol):
    """Computes."""

    @property
    def xp(self) -> Any:
        """The array namespace. Its arrays live on this device."""
        ...

    @property
    def kernel_languages(self) -> tuple[str, ...]:
        """What :meth:`load_kernel` takes: ``cuda-c`` (source text), ``python`` (a function of a mock).

        A function is called as ``function(block, *args)`` once for each block and does the work of all its threads:
        ``block.global_index(axis)`` are their places in the grid, as an array.
        """
        ...

    def stream(self, *, deadline: Deadline | None = None) -> Stream:
        """Make a stream."""
        ...

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Wait for all streams of this handle; raise what went wrong."""
        ...

    def load_kernel(
        self, source: str | Callable[..., object], name: str = "", *, deadline: Deadline | None = None
    ) -> Kernel:
        """Make a kernel from what the driver says it takes; ``name`` is the function's where the text has several.

        ``Unsupported`` for another language, ``InvalidArgument`` for a text that does not compile.
        """
        ...

    def launch(
        self,
        kernel: Kernel,
        grid: Dim,
        block: Dim,
        args: Sequence[Any] = (),
        *,
        stream: Stream | None = None,
        shared_bytes: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        """Run a kernel on ``grid`` blocks of ``block`` threads; arguments are buffers, arrays of ``xp`` and numbers.

        ``InvalidArgument`` beyond the device's limits (1,024 threads a block), ``ProgramFault`` when it faults: here
        without a stream, else where the stream is synchronised.
        """
        ...
