"""Streams, events and buffers of an opened GPU, each over CuPy's own. The guard is asked before every verb."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hal.drivers.guarded import Call
from hal.errors import DeadlineExceeded, InvalidArgument
from hal.interfaces.deadline import Deadline

if TYPE_CHECKING:
    from hal_nvidia.handle import NvidiaGpu


def wait_for(handle: NvidiaGpu, step: str, block: Callable[[], object], deadline: Deadline | None) -> None:
    """Call what blocks; with a deadline in a thread that can be left, because a program may never end."""
    if deadline is None or deadline.timeout is None:
        with handle.translating(step):
            block()
        return
    call = Call(block, step)
    if not call.join(deadline):
        raise DeadlineExceeded(
            "the device has not finished in time; its work goes on",
            device=handle.device.id,
            during=step,
            hint="wait again, or close the handle and end the process",
        )
    with handle.translating(step):
        if call.error is not None:
            raise call.error


class CudaBuffer:
    """Memory by ``cudaMalloc``, outside of CuPy's pool: freed, it is free for everybody."""

    __slots__ = ("_array", "_handle", "dtype", "nbytes", "pointer", "shape")

    def __init__(self, handle: NvidiaGpu, array: Any, nbytes: int) -> None:
        self._handle = handle
        self._array = array
        self.nbytes = nbytes
        self.shape: tuple[int, ...] = array.shape
        self.dtype: str = array.dtype.name
        self.pointer: int = array.data.ptr

    @property
    def array(self) -> Any:
        """The memory as a CuPy array, shared."""
        self._handle.enter_work("array")
        return self.live("array")

    def live(self, step: str) -> Any:
        """Return the array. Raises ``InvalidArgument`` once freed."""
        array = self._array
        if array is None:
            raise InvalidArgument(
                "the buffer has been freed", device=self._handle.device.id, during=step, hint="allocate another"
            )
        return array

    def free(self) -> None:
        """Give the memory back; arrays taken from it must not be used any more."""
        self._array = None

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return the capsule; CuPy makes it safe to read in ``stream``."""
        asked = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
        self._handle.enter_work("dlpack")
        return self.live("dlpack").__dlpack__(**{name: value for name, value in asked.items() if value is not None})

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return (2, n): CUDA's device n."""
        kind, number = self.live("dlpack").__dlpack_device__()
        return int(kind), int(number)

    def __repr__(self) -> str:
        state = "" if self._array is not None else ", freed"
        return f"<CudaBuffer {self.nbytes} bytes on {self._handle.device.id}{state}>"


class CudaEvent:
    """A point in a stream."""

    __slots__ = ("_handle", "event")

    def __init__(self, handle: NvidiaGpu, event: Any) -> None:
        self._handle = handle
        self.event = event

    @property
    def done(self) -> bool:
        """True once everything before it has run."""
        self._handle.enter_work("event.done")
        with self._handle.translating("event.done"):
            return bool(self.event.done)

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Wait until it is done."""
        self._handle.enter_work("event.synchronize", deadline)
        wait_for(self._handle, "event.synchronize", self.event.synchronize, deadline)

    def elapsed_seconds(self, earlier: Any) -> float:
        """Return the device's time between two events."""
        step = "elapsed_seconds"
        self._handle.enter_work(step)
        if not isinstance(earlier, CudaEvent) or not (self.event.done and earlier.event.done):
            raise InvalidArgument(
                "both must be events, and done", device=self._handle.device.id, during=step, hint="event.synchronize()"
            )
        with self._handle.translating(step):
            return float(self._handle.cuda.cupy.cuda.get_elapsed_time(earlier.event, self.event)) / 1000


class CudaStream:
    """A queue of work. CuPy's legacy default stream waits for it, and it for that."""

    __slots__ = ("_handle", "_kept", "stream")

    def __init__(self, handle: NvidiaGpu, stream: Any) -> None:
        self._handle = handle
        self.stream = stream
        self._kept: list[Any] = []

    def belongs_to(self, handle: NvidiaGpu) -> bool:
        """True for a stream that this handle made."""
        return self._handle is handle

    def keep(self, thing: Any) -> None:
        """Keep something alive until the stream was synchronised."""
        self._kept.append(thing)

    @property
    def done(self) -> bool:
        """True if nothing is left to do."""
        self._handle.enter_work("stream.done")
        with self._handle.translating("stream.done"):
            done = bool(self.stream.done)
        if done:
            self._kept.clear()
        return done

    def record(self, *, deadline: Deadline | None = None) -> CudaEvent:
        """Return an event at the end of the queue."""
        self._handle.enter_work("record", deadline)
        with self._handle.translating("record"):
            return CudaEvent(self._handle, self.stream.record())

    def wait(self, event: Any, *, deadline: Deadline | None = None) -> None:
        """Let later work wait for an event of any stream of any GPU."""
        self._handle.enter_work("wait", deadline)
        if not isinstance(event, CudaEvent):
            raise InvalidArgument(
                f"{type(event).__name__} is no event of a CUDA stream",
                device=self._handle.device.id,
                during="wait",
                hint="stream.record()",
            )
        with self._handle.translating("wait"):
            self.stream.wait_event(event.event)

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Wait until all work is done."""
        self._handle.enter_work("synchronize", deadline)
        wait_for(self._handle, "synchronize", self.stream.synchronize, deadline)
        self._kept.clear()

    def __enter__(self) -> Self:
        self._handle.enter_work("stream")
        self.stream.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.__exit__(kind, error, trace)
