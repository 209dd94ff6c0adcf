"""An opened mock GPU: it computes with NumPy, in memory that is counted as the device's."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from math import prod
from os import close as _close
from types import ModuleType
from typing import Any

import numpy as np

from hal.drivers.guard import Guard
from hal.errors import DeviceError, HardwareFault, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu_compute import Dim, MemoryInfo, Shape
from hal.model.device import Device
from hal_mocks.gpu_boards import GpuBoards
from hal_mocks.gpu_contexts import BUSY_NS, EPOCH, TO_DEVICE, TO_HOST, TO_PEER
from hal_mocks.gpu_health import outlives_context, what_work_meets
from hal_mocks.gpu_kernels import MockKernel, check_launch, run
from hal_mocks.gpu_management import MockGpuManagement
from hal_mocks.gpu_memory import ELEMENTS, LAZY_FROM_BYTES, Account, Array, MockBuffer, bytes_of, element_of, make_array
from hal_mocks.gpu_streams import MockStream
from hal_mocks.machine import Machine


class MockGpuHandle(MockGpuManagement):
    """A GPU or a partition, opened: one context, with its own account of memory."""

    def __init__(self, machine: Machine, device: Device, guard: Guard, boards: GpuBoards | None = None) -> None:
        super().__init__(machine, device, guard, boards or GpuBoards(machine))
        contexts = self._boards.contexts(device.id)
        self._slot_lock = -1
        self._slot, self._slot_lock = contexts.attach()
        self._words = contexts.words
        self._epoch = self._words[EPOCH]
        self._account = Account(contexts, self._slot, self._epoch, device.capacity["memory_bytes"])
        self._to_device = contexts.counter_index(TO_DEVICE, self._slot)
        self._to_host = contexts.counter_index(TO_HOST, self._slot)
        self._to_peer = contexts.counter_index(TO_PEER, self._slot)
        self._busy_ns = contexts.counter_index(BUSY_NS, self._slot)
        self._trouble: DeviceError | None = None
        self._opened_at = machine.clock.now()
        self._last_fault = self._control[1]
        self._pending: list[MockStream] = []
        self._moved_in = self._moved_out = 0
        self._capability = str(device.value("compute_capability"))
        self._shuffle = random.Random(machine.graph.seed)
        if device.parent is None and self._boards.store.record(device.id).partitioning:
            self._clean = -1
            self._trouble = Unsupported(
                "the GPU is divided: it computes in its partitions only",
                device=device.id,
                during="open",
                hint="open a partition, or set_partitioning(False) and reset",
            )

    # before every verb

    def _enter_work(self, step: str, deadline: Deadline | None = None) -> None:
        """Raise if the lease has ended, or this context can do no work any more.

        The verbs that move bytes have these lines in themselves: a call costs more than what it does here.
        """
        self._check()
        if deadline is not None:
            self._be_in_time(step, deadline)
        if self._control[0] != self._clean or self._words[EPOCH] != self._epoch:
            self._meet_work(step, deadline)

    def _meet_work(self, step: str, deadline: Deadline | None) -> None:
        faults = self._meet(step, deadline)
        if self._trouble is not None:
            trouble = copy.copy(self._trouble)
            trouble.during = step
            raise trouble
        if self._words[EPOCH] != self._epoch:
            self._clean = -1
            self._trouble = HardwareFault(
                "the device was reset or taken back: what this handle held on it is gone",
                device=self._id,
                during=step,
                hint="open the device again",
            )
            raise self._trouble
        for fault in faults:
            error = what_work_meets(self._id, fault, step)
            later = fault.id > self._last_fault or fault.onset_at > self._opened_at
            if error is not None and (later or outlives_context(fault) or step == "copy_peer"):
                self._boards.store.record(self._gpu)  # met, so counted, even if it is healed before anybody looks
                self._fail(error)
                raise error

    def _fail(self, error: DeviceError) -> None:
        # A fault takes the context with it, and what was not yet run with the context.
        if isinstance(error, HardwareFault):
            self._trouble = self._trouble or error
            self._clean = -1
            for stream in self._pending:
                stream.drop()
            self._pending.clear()

    def _drain(self, deadline: Deadline | None) -> None:
        streams = list(self._pending)
        self._shuffle.shuffle(streams)
        for stream in streams:
            stream.run(deadline)

    # memory

    def memory_info(self, *, deadline: Deadline | None = None) -> MemoryInfo:
        """Return what there is and what all processes take of it."""
        self._enter("memory_info", deadline)
        self._collect()
        used = sum(used for _, used in self._boards.contexts(self._id).holders())
        return MemoryInfo(total_bytes=self._account.limit_bytes, used_bytes=used)

    @property
    def _sound(self) -> bool:
        return self._trouble is None

    def _collect(self) -> None:
        self._account.collect()
        self._count_moved()

    def _count_moved(self) -> None:
        # Counted in this object first: a word that processes share costs a copy of few bytes a tenth of its time.
        if self._words[EPOCH] == self._epoch:
            self._words[self._to_device] += self._moved_in
            self._words[self._to_host] += self._moved_out
            self._moved_in = self._moved_out = 0

    def allocate(self, shape: Shape, dtype: str = "uint8", *, deadline: Deadline | None = None) -> MockBuffer:
        """Allocate an array; a large one takes host memory only where it is written."""
        self._check()
        if deadline is not None:
            self._be_in_time("allocate", deadline)
        if self._control[0] != self._clean or self._words[EPOCH] != self._epoch:
            self._meet_work("allocate", deadline)
        element = ELEMENTS.get(dtype)
        if element is None:
            element = element_of(dtype, self._id)
        count: Any = shape if type(shape) is int else prod(shape) if type(shape) is tuple else -1
        nbytes = count * element.itemsize
        if type(nbytes) is not int or nbytes < 0:
            nbytes = bytes_of(shape, element, self._id)
        self._account.take(nbytes)
        try:
            array = np.empty(shape, element) if nbytes < LAZY_FROM_BYTES else make_array(shape, element, nbytes)
        except ValueError as error:
            self._account.give(nbytes)
            raise InvalidArgument(str(error), device=self._id, during="allocate", hint="a shape") from error
        return MockBuffer(self, self._account, array, nbytes)

    def copy_to_device(
        self,
        source: Any,
        target: MockBuffer | None = None,
        *,
        stream: MockStream | None = None,
        deadline: Deadline | None = None,
    ) -> MockBuffer:
        """Copy a host array into a buffer."""
        self._check()
        if deadline is not None:
            self._be_in_time("copy_to_device", deadline)
        if self._control[0] != self._clean or self._words[EPOCH] != self._epoch:
            self._meet_work("copy_to_device", deadline)
        given: Array = source if type(source) is np.ndarray else _host_array(source)
        if target is None:
            target = self.allocate(given.shape, given.dtype.name)
        array = target._array if type(target) is MockBuffer and target._handle is self else None
        if array is None:
            array = self._own(target, "copy_to_device")
        if given.dtype is not array.dtype or given.shape != array.shape:
            self._check_alike(given, array, "copy_to_device")
        self._moved_in += target.nbytes
        if stream is None and not self._pending:
            np.copyto(array, given)
        else:
            self._submit(lambda: np.copyto(array, given), stream, deadline)
        return target

    def copy_to_host(
        self,
        source: Any,
        target: Any = None,
        *,
        stream: MockStream | None = None,
        deadline: Deadline | None = None,
    ) -> Array:
        """Copy a buffer or an array into a NumPy array."""
        self._check()
        if deadline is not None:
            self._be_in_time("copy_to_host", deadline)
        if self._control[0] != self._clean or self._words[EPOCH] != self._epoch:
            self._meet_work("copy_to_host", deadline)
        array: Array = self._own(source, "copy_to_host") if type(source) is MockBuffer else np.asarray(source)
        self._moved_out += array.nbytes
        if stream is None and not self._pending:
            if target is None:
                return array.copy()
            if type(target) is not np.ndarray or target.dtype is not array.dtype or target.shape != array.shape:
                self._check_target(array, target)
            try:
                np.copyto(target, array)
            except ValueError:
                self._check_target(array, target)
                raise
            return target  # type: ignore[no-any-return]
        result: Array = np.empty(array.shape, array.dtype) if target is None else target
        self._check_target(array, result)
        self._submit(lambda: np.copyto(result, array), stream, deadline)
        return result

    def copy_peer(
        self,
        source: MockBuffer,
        target: MockBuffer,
        *,
        stream: MockStream | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """Copy a buffer of this device into one of another mock GPU of the same host."""
        self._enter_work("copy_peer", deadline)
        theirs = target._handle if isinstance(target, MockBuffer) else None
        if theirs is None or theirs._device.location.node != self._device.location.node:
            raise Unsupported(
                "no way leads to the other device", device=self._id, during="copy_peer", hint="copy through the host"
            )
        if theirs is not self:
            theirs._enter_work("copy_peer", deadline)
            if theirs._pending:
                theirs._drain(deadline)
        there, here = target._live("copy_peer"), self._own(source, "copy_peer")
        self._check_alike(here, there, "copy_peer")
        self._words[self._to_peer] += source.nbytes
        self._submit(lambda: np.copyto(there, here), stream, deadline)

    def _own(self, buffer: Any, step: str) -> Array:
        if type(buffer) is not MockBuffer or buffer._handle is not self:
            raise InvalidArgument(
                "the buffer is not of this handle", device=self._id, during=step, hint="copy_peer, or its own handle"
            )
        array = buffer._array
        return array if array is not None else buffer._live(step)

    def _check_target(self, array: Array, target: Any) -> None:
        if not isinstance(target, np.ndarray) or not target.flags.writeable:
            raise InvalidArgument(
                f"{type(target).__name__} cannot be written",
                device=self._id,
                during="copy_to_host",
                hint="a NumPy array that can, or none for a new one",
            )
        self._check_alike(array, target, "copy_to_host")

    def _check_alike(self, one: Array, other: Array, step: str) -> None:
        if one.shape != other.shape or one.dtype != other.dtype:
            raise InvalidArgument(
                f"{one.dtype}{list(one.shape)} does not fit {other.dtype}{list(other.shape)}",
                device=self._id,
                during=step,
                hint="the same shape and type on both sides",
            )

    def _submit(self, work: Callable[[], object], stream: MockStream | None, deadline: Deadline | None) -> None:
        if stream is None:
            if self._pending:
                self._drain(deadline)
            work()
        elif stream._handle is self:
            stream.push(work)
        else:
            raise InvalidArgument(
                "the stream is not of this handle", device=self._id, during="submit", hint="handle.stream()"
            )

    # computing

    @property
    def xp(self) -> ModuleType:
        """NumPy."""
        self._enter_work("xp")
        if self._pending:
            self._drain(None)
        return np

    @property
    def kernel_languages(self) -> tuple[str, ...]:
        """A mock runs Python."""
        return ("python",)

    def stream(self, *, deadline: Deadline | None = None) -> MockStream:
        """Make a stream."""
        self._enter_work("stream", deadline)
        return MockStream(self)

    def synchronize(self, *, deadline: Deadline | None = None) -> None:
        """Run the work of all streams."""
        self._enter_work("synchronize", deadline)
        self._drain(deadline)

    def load_kernel(
        self, source: str | Callable[..., object], name: str = "", *, deadline: Deadline | None = None
    ) -> MockKernel:
        """Make a kernel from a Python function (see :mod:`hal_mocks.gpu_kernels`)."""
        self._enter_work("load_kernel", deadline)
        if not callable(source):
            raise Unsupported(
                "a mock GPU runs no CUDA source",
                device=self._id,
                during="load_kernel",
                hint="give a Python function; kernel_languages says what a driver takes",
            )
        return MockKernel(source, name or getattr(source, "__name__", "kernel"))

    def launch(
        self,
        kernel: Any,
        grid: Dim,
        block: Dim,
        args: Sequence[Any] = (),
        *,
        stream: MockStream | None = None,
        shared_bytes: int = 0,
        deadline: Deadline | None = None,
    ) -> None:
        """Run a kernel: at once without a stream, when the stream comes to it with one."""
        self._enter_work("launch", deadline)
        if not isinstance(kernel, MockKernel):
            raise InvalidArgument("no kernel of a mock GPU", device=self._id, during="launch", hint="load_kernel")
        grid3, block3 = check_launch(grid, block, shared_bytes, self._capability, self._id)
        real = [self._own(arg, "launch") if type(arg) is MockBuffer else arg for arg in args]

        def work() -> None:
            now = self._machine.clock.now
            begun = now()
            try:
                run(kernel, grid3, block3, real, shared_bytes, self._shuffle, deadline, self._id)
            finally:
                self._words[self._busy_ns] += max(0, int((now() - begun) * 1e9))

        if stream is None:
            try:
                self._submit(work, None, deadline)
            except DeviceError as error:
                self._fail(error)
                raise
        else:
            self._submit(work, stream, deadline)

    def close(self) -> None:
        """Give the context and its memory back; work that no stream was synchronised for is given up."""
        if self._closed:
            return
        super().close()
        self._clean = -1
        if self._forked:
            return
        self._count_moved()
        for stream in self._pending:
            stream.drop()
        self._pending.clear()
        self._boards.contexts(self._id).detach(self._slot, self._slot_lock)

    def _abandon(self) -> None:
        self._clean = -1
        if self._slot_lock >= 0:
            _close(self._slot_lock)
            self._slot_lock = -1

    def __del__(self) -> None:
        # Nobody closed it: let the slot's lock go, so that the next who needs the slot finds it abandoned.
        if not self._closed and getattr(self, "_slot_lock", -1) >= 0:
            self._abandon()


def _host_array(source: Any) -> Array:
    if hasattr(source, "__dlpack__") and not hasattr(source, "__array__"):
        return np.from_dlpack(source)
    return np.asarray(source)
