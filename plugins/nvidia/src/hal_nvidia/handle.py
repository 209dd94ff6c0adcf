"""An opened GPU: management by NVML, memory and computing by CuPy where it is installed.

Without CuPy the verbs that need it raise ``Unsupported`` with what to install, and everything else works. Copies are
CUDA's own (``cudaMemcpy``, ``cudaMemcpyAsync``, ``cudaMemcpyPeer``) on the bytes of the arrays; nothing is staged here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from hal.errors import DeviceError, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu_compute import Dim, MemoryInfo, Shape
from hal_nvidia.cuda import Cuda, attach, ends_context, import_cupy, translated
from hal_nvidia.management import GpuManagement
from hal_nvidia.namespace import DeviceNamespace, NoNamespace
from hal_nvidia.sharing import Sharing
from hal_nvidia.streams import CudaBuffer, CudaStream, wait_for

if TYPE_CHECKING:
    from hal.drivers.guard import Guard
    from hal.model.device import Device
    from hal_nvidia.board import Board
    from hal_nvidia.driver import NvidiaDriver

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_MOST_THREADS = 1024
_BLOCK_LIMITS = (1024, 1024, 64)
_GRID_LIMITS = ((1 << 31) - 1, 65535, 65535)
_GLOBAL = re.compile(r"__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+(\w+)\s*\(")


class CudaKernel:
    """A compiled function of CUDA C++."""

    __slots__ = ("function", "name")

    def __init__(self, function: Any, name: str) -> None:
        self.function = function
        self.name = name


class NvidiaGpu(GpuManagement):
    """A GPU, a MIG device or a share, opened in this process."""

    load_cupy: Callable[[], Any] = staticmethod(import_cupy)

    def __init__(self, driver: NvidiaDriver, board: Board, device: Device, guard: Guard, sharing: Sharing) -> None:
        super().__init__(driver, board, device, guard, sharing)
        self._cuda: Cuda | None = None
        self._trouble: DeviceError | None = None
        self._namespace: Any = None
        self._divided = self._whole and device.value("mig_mode") == "enabled"

    # before every verb that works on the device

    def enter_work(self, step: str, deadline: Deadline | None = None) -> None:
        """Raise if the lease has ended, the handle is closed or its context is lost; make the device current."""
        self._enter(step, deadline)
        cuda = self._cuda
        if cuda is None:
            self._attach(step)
            return
        if self._trouble is not None:
            trouble = copy.copy(self._trouble)
            trouble.during = step
            raise trouble
        if not cuda.only:
            cuda.runtime.setDevice(cuda.number)

    def _attach(self, step: str) -> None:
        if self._divided:
            raise Unsupported(
                "the GPU is divided: it computes in its partitions only",
                device=self._id,
                during=step,
                hint="open a partition, or set_partitioning(False) and reset",
            )
        self._cuda = attach(self._board, self._id, self._sharing, step, self.load_cupy)

    @property
    def cuda(self) -> Cuda:
        """CuPy and this device's number in it, for libraries that want to work on it bare."""
        if self._cuda is None:
            self.enter_work("cuda")
        assert self._cuda is not None
        return self._cuda

    @contextmanager
    def translating(self, step: str) -> Iterator[None]:
        """Raise what CuPy raises as errors of hal, and remember one that has ended the context."""
        try:
            yield
        except Exception as error:  # a guard around the library: raised again as what it is
            raise self._translated(error, step) from error

    def _translated(self, error: BaseException, step: str) -> BaseException:
        found = translated(error, self._id, step)
        if isinstance(found, DeviceError) and ends_context(found):
            self._trouble = self._trouble or found
        return found

    # memory

    def memory_info(self, *, deadline: Deadline | None = None) -> MemoryInfo:
        """Return what there is and what is taken: CUDA's word where CuPy is installed, NVML's where not."""
        self._enter("memory_info", deadline)
        if self._cuda is None and not self._can_compute():
            return self._ask("memory_info", self._memory, deadline)
        self.enter_work("memory_info", deadline)
        with self.translating("memory_info"):
            free, total = self.cuda.runtime.memGetInfo()
        return MemoryInfo(total_bytes=total, used_bytes=total - free)

    def _can_compute(self) -> bool:
        try:
            self._attach("memory_info")
        except Unsupported:
            return False
        return True

    def _memory(self, board: Board) -> MemoryInfo:
        handle = board.handle
        if not (self._whole or self._sharing.shared):
            handle = board.nvml.nvmlDeviceGetHandleByUUID(self._id)
        memory = board.nvml.nvmlDeviceGetMemoryInfo(handle)
        return MemoryInfo(total_bytes=int(memory.total), used_bytes=int(memory.used))

    def allocate(self, shape: Shape, dtype: str = "uint8", *, deadline: Deadline | None = None) -> CudaBuffer:
        """Allocate by ``cudaMalloc``."""
        self.enter_work("allocate", deadline)
        cupy = self.cuda.cupy
        extents, element = self._measure(shape, dtype)
        nbytes = prod(extents) * element.itemsize
        with self.translating("allocate"):
            memory = cupy.cuda.Memory(nbytes)
            array = cupy.ndarray(extents, element, memptr=cupy.cuda.MemoryPointer(memory, 0))
        return CudaBuffer(self, array, nbytes)

    def _measure(self, shape: Shape, dtype: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            extents = tuple(index(extent) for extent in (shape if isinstance(shape, tuple) else (shape,)))
            element = np.dtype(dtype)
        except TypeError as error:
            raise self._invalid("allocate", str(error), "integers, and a type such as float32") from error
        if min(extents, default=0) < 0 or element.kind not in "?biufc":
            raise self._invalid("allocate", f"{dtype}{list(extents)}", "0 or more elements of a number's type")
        return extents, element

    def copy_to_device(
        self,
        source: Any,
        target: CudaBuffer | None = None,
        *,
        stream: CudaStream | None = None,
        deadline: Deadline | None = None,
    ) -> CudaBuffer:
        """Copy a host array into a buffer."""
        self.enter_work("copy_to_device", deadline)
        given = source if type(source) is np.ndarray and source.flags.c_contiguous else _host_array(source)
        if target is None:
            target = self.allocate(given.shape, given.dtype.name)
        else:
            self._own(target, "copy_to_device")
        if given.shape != target.shape or given.dtype.name != target.dtype:
            raise self._unlike("copy_to_device", given, target)
        if given.nbytes:
            self._copy(target.pointer, _pointer(given), given.nbytes, _TO_DEVICE, stream, "copy_to_device", given)
        return target

    def copy_to_host(
        self,
        source: Any,
        target: Any = None,
        *,
        stream: CudaStream | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Copy a buffer, or a CuPy array, into a NumPy array."""
        self.enter_work("copy_to_host", deadline)
        if type(source) is CudaBuffer:
            array = self._own(source, "copy_to_host")
        else:
            with self.translating("copy_to_host"):
                array = self.cuda.cupy.ascontiguousarray(source)
        if target is None:
            target = np.empty(array.shape, array.dtype)
        elif not isinstance(target, np.ndarray) or not target.flags.writeable or not target.flags.c_contiguous:
            raise self._invalid(
                "copy_to_host", f"{type(target).__name__} cannot be written in one piece", "a contiguous NumPy array"
            )
        if target.shape != array.shape or target.dtype != array.dtype:
            raise self._unlike("copy_to_host", array, target)
        if target.nbytes:
            self._copy(_pointer(target), array.data.ptr, target.nbytes, _TO_HOST, stream, "copy_to_host", array)
        return target

    def _copy(
        self, to: int, origin: int, nbytes: int, way: int, stream: CudaStream | None, step: str, kept: Any
    ) -> None:
        runtime = self.cuda.runtime
        try:
            if stream is None:
                runtime.memcpy(to, origin, nbytes, way)
            else:
                runtime.memcpyAsync(to, origin, nbytes, way, self._mine(stream, step).ptr)
                stream.keep(kept)
        except Exception as error:  # a guard around the library: raised again as what it is
            raise self._translated(error, step) from error

    def copy_peer(
        self,
        source: CudaBuffer,
        target: CudaBuffer,
        *,
        stream: CudaStream | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """Copy a buffer of this device into one of another GPU that this process sees."""
        step = "copy_peer"
        self.enter_work(step, deadline)
        here = self._own(source, step)
        if not isinstance(target, CudaBuffer):
            raise Unsupported(
                "no way leads to the other device", device=self._id, during=step, hint="copy through the host"
            )
        theirs = target._handle  # noqa: SLF001 - a buffer of this module's own kind
        if theirs is not self:
            theirs.enter_work(step, deadline)
            self.enter_work(step)
        there = target.live(step)
        if here.shape != there.shape or here.dtype != there.dtype:
            raise self._unlike(step, here, there)
        numbers = (there.data.ptr, theirs.cuda.number, here.data.ptr, self.cuda.number, source.nbytes)
        with self.translating(step):
            if stream is None:
                self.cuda.runtime.memcpyPeer(*numbers)
            else:
                self.cuda.runtime.memcpyPeerAsync(*numbers, self._mine(stream, step).ptr)
                stream.keep((here, there))

    def _own(self, buffer: Any, step: str) -> Any:
        if type(buffer) is not CudaBuffer or buffer._handle is not self:  # noqa: SLF001 - this module's own kind
            raise self._invalid(step, "the buffer is not of this handle", "copy_peer, or its own handle")
        return buffer.live(step)

    def _mine(self, stream: Any, step: str) -> Any:
        if not isinstance(stream, CudaStream) or not stream.belongs_to(self):
            raise self._invalid(step, "the stream is not of this handle", "handle.stream()")
        return stream.stream

    def _unlike(self, step: str, one: Any, other: Any) -> InvalidArgument:
        return self._invalid(
            step,
            f"{one.dtype}{list(one.shape)} does not fit {other.dtype}{list(other.shape)}",
            "the same shape and type on both sides",
        )

    def _invalid(self, step: str, text: str, hint: str) -> InvalidArgument:
        return InvalidArgument(text, device=self._id, during=step, hint=hint)

    # computing

    @property
    def xp(self) -> Any:
        """CuPy; where CUDA shows this process several devices, CuPy on this one.

        Where it cannot compute (no CuPy, say), everything that is asked of what this gives raises ``Unsupported``: to
        look at a handle's verbs, as ``isinstance(handle, Gpu)`` does, must not fail.
        """
        try:
            self.enter_work("xp")
        except Unsupported as why:
            return NoNamespace(why)
        if self._namespace is None:
            cuda = self.cuda
            self._namespace = cuda.cupy if cuda.only else DeviceNamespace(cuda.cupy, cuda.runtime, cuda.number)
        return self._namespace

    @property
    def kernel_languages(self) -> tuple[str, ...]:
        """CUDA C++ as text, compiled by NVRTC."""
        return ("cuda-c",)

    def stream(self, *, deadline: Deadline | None = None) -> CudaStream:
        """Make a stream."""
        self.enter_work("stream", deadline)
        with self.translating("stream"):
            return CudaStream(self, self.cuda.cupy.cuda.Stream(non_blocking=False))

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Wait for everything that this process gave the device."""
        self.enter_work("synchronize", deadline)
        runtime, number = self.cuda.runtime, self.cuda.number

        def block() -> None:
            runtime.setDevice(number)  # the current device is a thread's own
            runtime.deviceSynchronize()

        wait_for(self, "synchronize", block, deadline)

    def load_kernel(
        self, source: str | Callable[..., object], name: str = "", *, deadline: Deadline | None = None
    ) -> CudaKernel:
        """Compile CUDA C++; declare the function ``extern "C"``, so that it has the name that is asked for."""
        step = "load_kernel"
        self.enter_work(step, deadline)
        if not isinstance(source, str):
            raise Unsupported(
                "CUDA runs no Python function", device=self._id, during=step, hint="give CUDA C++ as text"
            )
        if not name:
            names = _GLOBAL.findall(source)
            if len(names) != 1:
                raise self._invalid(step, f"the text has {len(names)} kernels", "say the name of one")
            name = names[0]
        cupy = self.cuda.cupy
        try:
            function = cupy.RawKernel(source, name)
            function.compile()
        except Exception as error:  # a guard around the library: a text that does not compile is the caller's
            if type(error).__name__ in ("CompileException", "NVRTCError"):
                raise self._invalid(step, f"it does not compile: {error}", "look at the text") from error
            found = translated(error, self._id, step)
            if getattr(error, "status", None) == 500:
                raise self._invalid(step, f"no kernel {name!r}", 'extern "C" __global__ void …') from error
            raise found from error
        return CudaKernel(function, name)

    def launch(
        self,
        kernel: Any,
        grid: Dim,
        block: Dim,
        args: Sequence[Any] = (),
        *,
        stream: CudaStream | None = None,
        shared_bytes: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        """Run a kernel: with a stream in it, without one in the default stream, and then until it has ended."""
        step = "launch"
        self.enter_work(step, deadline)
        if not isinstance(kernel, CudaKernel):
            raise self._invalid(step, "no kernel of this driver", "load_kernel")
        grid3 = self._extents(grid, _GRID_LIMITS, "grid")
        block3 = self._extents(block, _BLOCK_LIMITS, "block")
        if prod(block3) > _MOST_THREADS:
            raise self._invalid(step, f"{prod(block3)} threads in a block", f"at most {_MOST_THREADS}")
        real = tuple(self._own(arg, step) if type(arg) is CudaBuffer else arg for arg in args)
        try:
            if stream is None:
                kernel.function(grid3, block3, real, shared_mem=shared_bytes)
            else:
                with self._mine(stream, step):
                    kernel.function(grid3, block3, real, shared_mem=shared_bytes)
                stream.keep(real)
        except Exception as error:  # a guard around the library: raised again as what it is
            raise self._translated(error, step) from error
        if stream is None:
            wait_for(self, step, self.cuda.cupy.cuda.Stream.null.synchronize, deadline)

    def _extents(self, given: Dim, limits: tuple[int, int, int], what: str) -> tuple[int, ...]:
        extents = given if isinstance(given, tuple) else (given,)
        if not 1 <= len(extents) <= 3 or any(not 1 <= n <= most for n, most in zip(extents, limits, strict=False)):
            raise self._invalid("launch", f"{what} {given}", f"one to three extents within {limits}")
        return extents

    def _release(self) -> None:
        # Buffers and streams go with the last who refers to them; the context is the process's, and others may use it.
        self._namespace = None


def _host_array(source: Any) -> np.ndarray[Any, Any]:
    if hasattr(source, "__dlpack__") and not hasattr(source, "__array__"):
        return np.ascontiguousarray(np.from_dlpack(source))
    return np.ascontiguousarray(source)


def _pointer(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
