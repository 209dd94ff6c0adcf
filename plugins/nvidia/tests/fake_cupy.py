"""A test double of the module ``cupy``: the part of its interface that this plugin calls, over NumPy and host memory.

It is no CuPy and runs on no GPU: it shows that the plugin calls what CuPy has, with CuPy's own signatures and in the
right order, and that errors come out as hal's. Work given to a stream runs when somebody synchronises, as late as CUDA
may run it. Kernels are compiled as C by the machine's compiler and run once for every thread; they know no barriers.
"""

# ruff: noqa: N802 - the names are CUDA's own
from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plugins.nvidia.tests.fake_cuda_kernels import CompileException, CUDARuntimeError, RawKernel

_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2


@dataclass
class Card:
    """One device as CUDA shows it: its PCI address as CUDA writes it, memory, and the names that make it visible."""

    address: str
    total_bytes: int
    names: tuple[str, ...]
    used_bytes: int = 0
    on_context: Callable[[], object] = lambda: None
    has_context: bool = False
    streams: list[Any] = field(default_factory=list)


def make_cupy(cards: list[Card]) -> types.ModuleType:
    """Return a module ``cupy`` that sees some cards. ``CUDA_VISIBLE_DEVICES`` is read once, at the first call."""
    state = _State(cards)
    cupy = types.ModuleType("cupy")
    cuda = types.ModuleType("cupy.cuda")
    runtime = types.ModuleType("cupy.cuda.runtime")
    for name in (
        "getDeviceCount",
        "deviceGetPCIBusId",
        "deviceGetByPCIBusId",
        "getDevice",
        "setDevice",
        "free",
        "malloc",
        "memGetInfo",
        "memcpy",
        "memcpyAsync",
        "memcpyPeer",
        "memcpyPeerAsync",
        "deviceSynchronize",
    ):
        setattr(runtime, name, getattr(state, name))
    runtime.CUDARuntimeError = CUDARuntimeError
    cuda.runtime = runtime
    cuda.compiler = types.SimpleNamespace(CompileException=CompileException)
    cuda.Memory = lambda size: Memory(state, size)
    cuda.MemoryPointer = MemoryPointer
    cuda.get_elapsed_time = lambda start, end: (end.at - start.at) * 1000
    cuda.Event = Event

    class BoundStream(Stream):
        null: Any = None

        def __init__(
            self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
        ) -> None:
            super().__init__(state)

    BoundStream.null = NullStream(state)
    cuda.Stream = BoundStream

    class BoundRawKernel(RawKernel):
        def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
            super().__init__(state, code, name)

    cupy.cuda = cuda
    cupy.RawKernel = BoundRawKernel
    cupy.ndarray = ndarray
    cupy.float32 = np.float32
    cupy.linalg = types.ModuleType("cupy.linalg")
    cupy.linalg.norm = _as_array(np.linalg.norm)
    cupy.ascontiguousarray = _as_array(np.ascontiguousarray)
    for name in ("matmul", "sum", "exp", "zeros", "ones", "arange", "asarray", "from_dlpack"):
        setattr(cupy, name, _as_array(getattr(np, name)))
    cupy.device_of_last_call = lambda: state.calls[-1]
    for name in ("zeros", "ones"):
        setattr(cupy, name, state.noting(getattr(cupy, name)))
    return cupy


def _as_array(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return np.asanyarray(function(*args, **kwargs)).view(ndarray)

    return call


class ndarray(np.ndarray):  # noqa: N801 - CuPy's own name
    """CuPy's array as far as it is needed: made at a memory pointer, with the pointer to be asked for."""

    def __new__(cls, shape: Any, dtype: Any = float, memptr: Any = None) -> ndarray:
        memory = memptr.mem
        made = np.ndarray.__new__(cls, shape, dtype, buffer=memory.space if memory.size else None)
        made.kept = memory
        return made

    def __array_finalize__(self, other: Any) -> None:
        self.kept = getattr(other, "kept", None)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0])


class MemoryPointer:
    """As in ``cupy.cuda``."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset


class Memory:
    """``cudaMalloc``, counted against the current card."""

    def __init__(self, state: _State, size: int) -> None:
        self.card = state.card
        self.size = 0
        self.ptr = 0
        if size:
            state.malloc(size)
            self.size = size
            # 0x4000 is MAP_NORESERVE: address space now, memory when it is written
            self.space = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
            self.ptr = ctypes.addressof(ctypes.c_char.from_buffer(self.space))

    def __del__(self) -> None:
        self.card.used_bytes -= self.size


class Event:
    """A point in a stream; ``at`` is when it was reached."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.at: float | None = None
        self.stream: Stream | None = None

    @property
    def done(self) -> bool:
        if self.at is None and self.stream is not None:
            self.stream.step()
        return self.at is not None

    def mark(self) -> None:
        self.at = time.monotonic()

    def synchronize(self) -> None:
        assert self.stream is not None
        self.stream.run(self)


class Stream:
    """A queue that runs when it is asked to."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._queue: list[Callable[[], object]] = []
        self.ptr = next(state.numbers)
        state.streams[self.ptr] = self
        state.card.streams.append(self)
        self._before: list[Any] = []

    @property
    def done(self) -> bool:
        self.step()
        return not self._queue

    def give(self, work: Callable[[], object]) -> None:
        self._queue.append(work)

    def step(self) -> None:
        if self._queue:
            self._queue.pop(0)()

    def run(self, until: Event | None = None) -> None:
        while self._queue and (until is None or until.at is None):
            self.step()

    def synchronize(self) -> None:
        self._state.fail_if_broken()
        self.run()

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.stream = self
        self.give(event.mark)
        return event

    def wait_event(self, event: Event) -> None:
        self.give(event.synchronize)

    def __enter__(self) -> Stream:
        self._before.append(self._state.current)
        self._state.current = self
        return self

    def __exit__(self, *_: object) -> None:
        self._state.current = self._before.pop()


class NullStream:
    """The legacy default stream: it waits for all others."""

    ptr = 0

    def __init__(self, state: _State) -> None:
        self._state = state

    def synchronize(self) -> None:
        self._state.deviceSynchronize()


class _State:
    """What ``cupy.cuda.runtime`` knows of the cards that are visible."""

    def __init__(self, cards: list[Card]) -> None:
        self._all = cards
        self._visible: list[Card] | None = None
        self._device = 0
        self.numbers = itertools.count(1)
        self.streams: dict[int, Stream] = {}
        self.current: Stream | None = None
        self.calls: list[int] = []
        self.broken: CUDARuntimeError | None = None

    @property
    def visible(self) -> list[Card]:
        if self._visible is None:
            asked = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = None if asked is None else [name.strip() for name in asked.split(",")]
            parts = [card for card in self._all if any(name.startswith("MIG-") for name in card.names)]
            if names is None:
                self._visible = [card for card in self._all if card not in parts]
            else:
                self._visible = [card for name in names for card in self._all if name in card.names]
        return self._visible

    @property
    def card(self) -> Card:
        return self.visible[self._device]

    def fail_if_broken(self) -> None:
        if self.broken is not None:
            raise self.broken

    def noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(self._device)
            return function(*args, **kwargs)

        return call

    def getDeviceCount(self) -> int:
        if not self.visible:
            raise CUDARuntimeError(100, "no CUDA-capable device is detected")
        return len(self.visible)

    def deviceGetPCIBusId(self, device: int) -> str:
        return self.visible[device].address

    def deviceGetByPCIBusId(self, address: str) -> int:
        return next(number for number, card in enumerate(self.visible) if card.address == address)

    def getDevice(self) -> int:
        return self._device

    def setDevice(self, device: int) -> None:
        if not 0 <= device < len(self.visible):
            raise CUDARuntimeError(101, "invalid device ordinal")
        self._device = device

    def free(self, pointer: int) -> None:
        if not self.card.has_context:
            self.card.has_context = True
            self.card.on_context()

    def malloc(self, size: int) -> int:
        self.fail_if_broken()
        if self.card.used_bytes + size > self.card.total_bytes:
            raise CUDARuntimeError(2, "out of memory")
        self.card.used_bytes += size
        return 0

    def memGetInfo(self) -> tuple[int, int]:
        return self.card.total_bytes - self.card.used_bytes, self.card.total_bytes

    def memcpy(self, dst: int, src: int, size: int, kind: int) -> None:
        self.deviceSynchronize()
        assert kind in (_HOST_TO_DEVICE, _DEVICE_TO_HOST)
        ctypes.memmove(dst, src, size)

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        self.fail_if_broken()
        self.streams[stream].give(lambda: ctypes.memmove(dst, src, size))

    def memcpyPeer(self, dst: int, dst_device: int, src: int, src_device: int, size: int) -> None:
        for device in (dst_device, src_device):
            for stream in self.visible[device].streams:
                stream.run()
        ctypes.memmove(dst, src, size)

    def memcpyPeerAsync(self, dst: int, dst_device: int, src: int, src_device: int, size: int, stream: int) -> None:
        self.streams[stream].give(lambda: ctypes.memmove(dst, src, size))

    def deviceSynchronize(self) -> None:
        self.fail_if_broken()
        for stream in self.card.streams:
            stream.run()
