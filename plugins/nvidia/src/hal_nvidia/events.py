"""What GPUs report by themselves, through NVML's event set.

An event names its GPU and, for errors of a program, the GPU instance and compute instance in which it ran. A GPU that
is lost ends the wait for all others; then the set is made anew without it, and an event says that some may be missing.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from hal.drivers.guarded import Call
from hal.interfaces.deadline import Deadline
from hal.model.event import Event, EventType
from hal_nvidia import errors as e
from hal_nvidia.board import Board
from hal_nvidia.health import remember_xid
from hal_nvidia.library import Library
from hal_nvidia.mig import Instance, instances

SLICE_MS = 250
"""How long one wait lasts at most: between two, NVML can be initialised anew and the deadline is looked at."""
NO_INSTANCE = 0xFFFFFFFF
_XID = 0x8
_DOUBLE_BIT = 0x2
_MEANINGS = {
    0x1: "corrected memory error",
    _DOUBLE_BIT: "uncorrectable memory error",
    0x200: "storm of corrected memory errors",
    0x400: "a row of memory is to be replaced",
    0x800: "a row of memory cannot be replaced",
    0x1000: "poison was met, and contained",
    0x2000: "poison was met, and not contained",
    0x4000: "the GPU is not available",
    0x8000: "the driver's recovery action changed",
}
WANTED = _XID | sum(_MEANINGS)
"""Events that say something about health; changes of clocks and power states do not."""


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """One event: the GPU, the type's bit, the XID or 0, and the instances or None."""

    board: Board
    type: int
    data: int
    gpu_instance: int | None = None
    compute_instance: int | None = None


class Listener:
    """An event set with some GPUs in it."""

    def __init__(self, nvml: Any, boards: Sequence[Board]) -> None:
        self._nvml = nvml
        self._set = nvml.nvmlEventSetCreate()
        self._boards: dict[int, Board] = {}
        self.deaf: list[Board] = []
        for board in boards:
            try:
                types = nvml.nvmlDeviceGetSupportedEventTypes(board.handle) & WANTED
                if types:
                    nvml.nvmlDeviceRegisterEvents(board.handle, types, self._set)
                    self._boards[_address(board.handle)] = board
            except Exception as error:  # a guard around the library: a GPU that cannot be listened to stops no other
                if e.code_of(error) is None:
                    raise
                self.deaf.append(board)

    @property
    def listens(self) -> bool:
        """True if at least one GPU is listened to."""
        return bool(self._boards)

    def wait(self, milliseconds: int) -> Happening | None:
        """Return the next event, None if none came in time. Raises what NVML raises, a lost GPU's error included."""
        data = self._nvml.c_nvmlEventData_t()
        # The library's own function: the binding makes an exception of "nothing came", which every sample hears.
        code = self._nvml.nvmlLib.nvmlEventSetWait_v2(self._set, ctypes.byref(data), ctypes.c_uint(milliseconds))
        if code == e.TIMEOUT:
            return None
        if code:
            raise self._nvml.NVMLError(code)
        board = self._boards.get(_address(data.device))
        if board is None:
            return None
        return Happening(
            board=board,
            type=data.eventType,
            data=data.eventData,
            gpu_instance=_instance(data.gpuInstanceId),
            compute_instance=_instance(data.computeInstanceId),
        )

    def drain(self) -> list[Happening]:
        """Return what has come and was not taken yet, at most a thousand."""
        found: list[Happening] = []
        while len(found) < 1000:
            happening = self.wait(0)
            if happening is None:
                break
            found.append(happening)
        return found

    def close(self) -> None:
        """Free the set."""
        try:
            self._nvml.nvmlEventSetFree(self._set)
        except Exception as error:  # a guard around the library: after a new start the set is gone with the old
            if e.code_of(error) is None:
                raise


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _instance(number: int) -> int | None:
    return None if number == NO_INSTANCE else number


def subject_of(happening: Happening, parts: Mapping[tuple[int, int], str]) -> tuple[str, str]:
    """Return the device that an event is about, and words for where on it; ``parts`` are MIG devices by instances."""
    gpu, compute = happening.gpu_instance, happening.compute_instance
    if gpu is None:
        return happening.board.uuid, ""
    where = f" (GPU instance {gpu}" + (f", compute instance {compute})" if compute is not None else ")")
    return parts.get((gpu, compute or 0), happening.board.uuid), where


def parts_of(board: Board) -> dict[tuple[int, int], str]:
    """Return a GPU's MIG devices by the numbers of their instances."""
    try:
        found: tuple[Instance, ...] = instances(board)
    except Exception as error:  # a guard around the library: where no MIG device can be named the GPU is
        if e.code_of(error) is None:
            raise
        return {}
    return {(one.gpu_instance, one.compute_instance): one.partition.id for one in found}


def note(happening: Happening, now: float) -> Event:
    """Keep what an event says about health, and return it as an event of hal."""
    parts = parts_of(happening.board) if happening.gpu_instance is not None else {}
    subject, where = subject_of(happening, parts)
    if happening.type == _XID:
        condition = remember_xid(happening.board, subject, happening.data, where, now)
        detail = f"{condition.type} ({condition.severity}): {condition.evidence}"
    else:
        detail = _MEANINGS.get(happening.type, f"event of type {happening.type:#x}") + where
    return Event(type=EventType.CONDITION, subject=subject, at=now, detail=detail)


def listen(library: Library, boards: Sequence[Board], deadline: Deadline) -> Iterator[Event]:
    """Yield events of the GPUs until the deadline. It hears what happens after it was called."""
    heard = [board for board in boards if not board.lost]
    state = _Ear(library, heard)
    return state.run(deadline)


class _Ear:
    def __init__(self, library: Library, boards: list[Board]) -> None:
        self._library = library
        self._boards = boards
        self._generation = -1
        self._listener: Listener | None = None
        self._open()

    def _open(self) -> None:
        with self._library.in_use() as nvml:
            for board in self._boards:
                board.refetch(nvml, self._library.generation)
            self._generation = self._library.generation
            self._listener = Listener(nvml, self._boards)
            self._boards = [board for board in self._boards if board not in self._listener.deaf]

    def run(self, deadline: Deadline) -> Iterator[Event]:
        while not deadline.expired and self._boards:
            if self._library.refresh_wanted:
                self._library.refresh()
            if self._generation != self._library.generation:
                yield from self._again(deadline)
                continue
            milliseconds = int(min(SLICE_MS, deadline.remaining_seconds * 1000 + 1))
            call = Call(lambda ms=milliseconds: self._wait(ms), "nvmlEventSetWait")  # type: ignore[misc]
            if not call.join(Deadline.after(milliseconds / 1000 + 2.0)):
                at = time.time()
                for board in self._boards:
                    text = "NVML does not return from waiting for events"
                    yield Event(type=EventType.CONDITION, subject=board.uuid, at=at, detail=text)
                return
            if call.error is not None:
                if e.code_of(call.error) is None:
                    raise call.error
                yield from self._after_error(call.error, deadline)
            elif call.value is not None:
                yield note(call.value, time.time())
        if self._listener is not None:
            self._listener.close()

    def _wait(self, milliseconds: int) -> Happening | None:
        listener = self._listener
        assert listener is not None
        with self._library.in_use():
            return listener.wait(milliseconds)

    def _after_error(self, error: BaseException, deadline: Deadline) -> Iterator[Event]:
        now = time.time()
        gone = [board for board in self._boards if self._is_lost(board)]
        for board in gone:
            board.lost = True
            yield Event(type=EventType.LOST, subject=board.uuid, at=now, detail=f"NVML answers: {error}")
        if not gone and e.code_of(error) not in (e.UNINITIALIZED, e.INVALID_ARGUMENT):
            time.sleep(min(SLICE_MS / 1000, deadline.remaining_seconds))  # an error without a cause: not in a spin
        self._boards = [board for board in self._boards if not board.lost]
        yield from self._again(deadline)

    def _again(self, deadline: Deadline) -> Iterator[Event]:
        old = self._listener
        if old is not None and self._generation == self._library.generation:
            old.close()
        self._open()
        now = time.time()
        for board in self._boards:
            detail = "the event set was made anew: events may be missing, look again"
            yield Event(type=EventType.CHANGED, subject=board.uuid, at=now, detail=detail)

    def _is_lost(self, board: Board) -> bool:
        try:
            board.nvml.nvmlDeviceGetTemperature(board.handle, 0)
        except Exception as error:  # a guard around the library: only a lost GPU is lost
            if e.code_of(error) is None:
                raise
            return e.code_of(error) in e.LOST
        return False
