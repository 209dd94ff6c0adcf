"""An opened rank. See :mod:`hal.interfaces.upmem` for what each verb must do."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hal.drivers.guard import Guard
from hal.drivers.opened import OpenedDevice
from hal.errors import DeviceBusy, DeviceError, InvalidArgument, ProgramFault
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.interfaces.upmem import Direction, DpuFault, MemoryKind, Rank, RankStatus, RunState, Symbol
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device
from hal_upmem.allocation import Allocation
from hal_upmem.binding import ASYNCHRONOUS, FROM_DPU, TO_DPU
from hal_upmem.rank import Shape
from hal_upmem.symbols import read_symbols

if TYPE_CHECKING:
    from typing_extensions import Buffer

_WORD_MAX = 0xFFFF_FFFF


class UpmemRank(OpenedDevice):
    """A rank allocated to this process; others cannot have it until :meth:`close`."""

    def __init__(self, allocation: Allocation, shape: Shape, device: Device, guard: Guard) -> None:
        super().__init__(device, guard)
        self._allocation = allocation
        self._library, self._ffi, self._lib = allocation.library, allocation.library.ffi, allocation.library.lib
        self._whole, self._units = allocation.whole, allocation.units
        self._facts = shape.facts(tuple(sorted(self._units)))
        self._symbols: dict[str, Symbol] = {}
        self._names: dict[str, bytes] = {}
        self._state = RunState.EMPTY
        self._program: str | None = None
        self._faults: tuple[DpuFault, ...] = ()
        self._lock = threading.Lock()

    def _release(self) -> None:
        self._allocation.free()

    def _abandon(self) -> None:
        self._allocation.forget()

    def rank(self, *, deadline: Deadline | None = None) -> Rank:
        """Return the rank's facts."""
        self._enter("rank", deadline)
        return self._facts

    def telemetry(self, *, deadline: Deadline | None = None) -> Mapping[str, Attribute]:
        """Return counts and state; cycles where the library counts them (a simulator does, and says so)."""
        self._enter("telemetry", deadline)
        return {
            "dpus": known(len(self._facts.dpus), "libdpu"),
            "disabled_dpus": known(len(self._facts.disabled), "libdpu"),
            "run_state": known(str(self._state), "libdpu"),
            "last_run_cycles": self._cycles(),
            "temperature_celsius": absent(Absence.UNSUPPORTED, "libdpu", "the SDK does not tell"),
        }

    # Copies

    def symbols(self, *, deadline: Deadline | None = None) -> Mapping[str, Symbol]:
        """Return the loaded program's symbols."""
        self._enter("symbols", deadline)
        return dict(self._symbols)

    def copy_to(
        self, dpu: int | Sequence[int], symbol: str, offset: int, data: Buffer, *, deadline: Deadline | None = None
    ) -> None:
        """Copy bytes to one unit, or the same to several."""
        step = "copy_to"
        self._enter(step, deadline)
        source = self._ffi.from_buffer(data)
        name = self._window(step, symbol, offset, len(source))
        units = (dpu,) if isinstance(dpu, int) else tuple(dpu)
        for unit in units:
            self._unit(step, unit)
        for unit in units:
            self._must(self._lib.dpu_copy_to(self._units[unit], name, offset, source, len(source)), step)

    def copy_from(self, dpu: int, symbol: str, offset: int, length: int, *, deadline: Deadline | None = None) -> bytes:
        """Copy bytes from one unit."""
        step = "copy_from"
        self._enter(step, deadline)
        if not isinstance(dpu, int):
            self._wrong("bytes come from one unit, not from a set", "push(Direction.FROM_DPU, ...)", step)
        name = self._window(step, symbol, offset, length)
        target = bytearray(length)
        code = self._lib.dpu_copy_from(self._unit(step, dpu), name, offset, self._ffi.from_buffer(target), length)
        self._must(code, step)
        return bytes(target)

    def broadcast(self, symbol: str, offset: int, data: Buffer, *, deadline: Deadline | None = None) -> None:
        """Copy the same bytes to all units."""
        step = "broadcast"
        self._enter(step, deadline)
        source = self._ffi.from_buffer(data)
        name = self._window(step, symbol, offset, len(source))
        self._must(self._lib.dpu_broadcast_to(self._whole, name, offset, source, len(source), 0), step)

    def push(
        self,
        direction: Direction,
        symbol: str,
        offset: int,
        buffers: Mapping[int, Buffer],
        *,
        deadline: Deadline | None = None,
    ) -> None:
        """Move a buffer of its own for each unit."""
        step = "push"
        self._enter(step, deadline)
        inward = Direction(direction) is Direction.FROM_DPU
        if not buffers:
            self._wrong("no buffer", "one for each unit that takes part", step)
        try:
            views = {
                self._unit(step, dpu): self._ffi.from_buffer("uint8_t[]", buffer, require_writable=inward)
                for dpu, buffer in buffers.items()
            }
        except (TypeError, BufferError) as error:
            self._wrong(str(error), "contiguous buffers; writable ones from the units", step)
        lengths = {len(view) for view in views.values()}
        if len(lengths) > 1:
            self._wrong(f"buffers of {len(lengths)} lengths: {sorted(lengths)[:4]}", "all of one length", step)
        (length,) = lengths
        name = self._window(step, symbol, offset, length)
        with self._lock:  # what is prepared belongs to the set until it is pushed
            for unit, view in views.items():
                self._must(self._lib.dpu_prepare_xfer(unit, view), step)
            way = FROM_DPU if inward else TO_DPU
            self._must(self._lib.dpu_push_xfer(self._whole, way, name, offset, length, 0), step)

    # Runs

    def load(self, program: Any, *, deadline: Deadline | None = None) -> None:
        """Load a DPU binary by its path."""
        step = "load"
        self._enter(step, deadline)
        if self._state is RunState.RUNNING:
            self._busy(step)
        try:
            path = Path(program)
            data = path.read_bytes()
        except (TypeError, ValueError, OSError) as error:
            self._wrong(f"no program at {program!r}: {error}", "the path of a DPU binary", step)
        handle = self._ffi.new("void **")
        self._must(self._lib.dpu_load(self._whole, bytes(path), handle), step)
        self._symbols = read_symbols(self._library, handle[0], data, self._facts.mram_bytes, self._device.id)
        self._names = {name: name.encode() for name in self._symbols}
        self._program, self._state, self._faults = path.name, RunState.IDLE, ()

    def launch(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Start all units; the operation ends when the last has."""
        step = "launch"
        self._enter(step, deadline)
        if self._state is RunState.RUNNING:
            self._busy(step)
        if self._state is RunState.EMPTY:
            self._wrong("no program is loaded", "load(path)", step)
        if self._state is RunState.FAULT:
            raise ProgramFault(
                "the last run faulted", device=self._device.id, during=step, hint="load the program again"
            )
        self._must(self._lib.dpu_launch(self._whole, ASYNCHRONOUS), step)
        self._state = RunState.RUNNING
        return Operation.spawn(self._device.id, step, self._follow)

    def _follow(self, operation: Operation[None]) -> None:
        code = self._lib.dpu_sync(self._whole)
        self._faults = self._read_faults()
        if code == 0 and not self._faults:
            self._state = RunState.DONE
            return
        self._state = RunState.FAULT
        if not self._faults:
            raise self._library.error(code, self._device.id, "launch")
        first = self._faults[0]
        where = "" if first.tasklet is None else f", tasklet {first.tasklet}"
        more = f"; {len(self._faults) - 1} more units faulted" if len(self._faults) > 1 else ""
        raise ProgramFault(
            f"dpu {first.dpu}{where}: {first.detail}{more}",
            device=self._device.id,
            during="launch",
            hint="status() and log() say more; load the program again",
        )

    def status(self, *, deadline: Deadline | None = None) -> RankStatus:
        """Say what the rank does."""
        self._enter("status", deadline)
        return RankStatus(state=self._state, program=self._program, faults=self._faults)

    def log(self, dpu: int, *, deadline: Deadline | None = None) -> str:
        """Return what a unit's tasklets printed."""
        step = "log"
        self._enter(step, deadline)
        self._unit(step, dpu)
        text, size = self._ffi.new("char **"), self._ffi.new("size_t *")
        libc = self._library.lib_c
        stream = libc.open_memstream(text, size)
        try:
            code = self._lib.dpulog_read_for_dpu(self._pointer(dpu), stream)
        finally:
            libc.fclose(stream)
        try:
            told: bytes = self._ffi.buffer(text[0], size[0])[:]
        finally:
            libc.free(text[0])
        self._must(code, step)
        return told.decode("utf-8", "replace")

    # What the verbs share

    def _window(self, step: str, symbol: str, offset: int, length: int) -> bytes:
        """Return a symbol's name for the library, or raise if a copy there cannot be."""
        found = self._symbols.get(symbol)
        if found is None:
            if self._state is RunState.EMPTY:
                self._wrong("no program is loaded", "load(path)", step)
            self._wrong(f"the program has no symbol {symbol!r}", "symbols() lists them", step)
        align = found.memory.alignment_bytes
        if offset < 0 or length < 0 or offset + length > min(found.size_bytes, _WORD_MAX):
            self._wrong(
                f"{length} bytes at {offset} are not within {symbol}, which has {found.size_bytes}",
                "an offset and a length inside the symbol",
                step,
            )
        if offset % align or length % align:
            self._wrong(
                f"offset {offset} and length {length} in {found.memory} must be multiples of {align}",
                "pad the buffer",
                step,
            )
        if found.memory is MemoryKind.MRAM and self._state is RunState.RUNNING:
            self._busy(step)
        return self._names[symbol]

    def _unit(self, step: str, dpu: int) -> Any:
        try:
            return self._units[dpu]
        except (KeyError, TypeError):
            self._wrong(f"there is no working unit {dpu!r}", "rank().dpus lists them", step)

    def _pointer(self, dpu: int) -> Any:
        return self._ffi.cast("void *", self._units[dpu].first)

    def _must(self, code: int, step: str) -> None:
        if code:
            raise self._library.error(code, self._device.id, step)

    def _wrong(self, what: str, hint: str, step: str) -> NoReturn:
        raise InvalidArgument(what, device=self._device.id, during=step, hint=hint)

    def _busy(self, step: str) -> NoReturn:
        raise DeviceBusy("the rank runs", device=self._device.id, during=step, hint="wait for launch()'s operation")

    def _read_faults(self) -> tuple[DpuFault, ...]:
        done, fault = self._ffi.new("bool *"), self._ffi.new("bool *")
        found: list[DpuFault] = []
        for dpu in self._facts.dpus:
            if self._lib.dpu_status(self._units[dpu], done, fault) == 0 and fault[0]:
                found.append(self._describe_fault(dpu))
        return tuple(found)

    def _describe_fault(self, dpu: int) -> DpuFault:
        if self._library.has("dpu_sim_fault"):
            tasklet = self._ffi.new("int *")
            words = self._lib.dpu_sim_fault(self._pointer(dpu), tasklet)
            if words != self._ffi.NULL:
                detail: bytes = self._ffi.string(words)
                return DpuFault(
                    dpu=dpu, tasklet=tasklet[0] if tasklet[0] >= 0 else None, detail=detail.decode("utf-8", "replace")
                )
        return DpuFault(dpu=dpu, tasklet=None, detail="the unit is in fault; dpu-lldb tells which instruction")

    def _cycles(self) -> Attribute:
        if not self._library.has("dpu_sim_counters"):
            return absent(Absence.UNSUPPORTED, "libdpu", "nothing counts them: use perfcounter.h in the program")
        if self._state not in (RunState.DONE, RunState.FAULT):
            return absent(Absence.NOT_REPORTED, "simulated:libdpu", "no run has ended")
        counters = self._ffi.new("sim_counters *")
        cycles = 0
        for dpu in self._facts.dpus:
            try:
                self._must(self._lib.dpu_sim_counters(self._pointer(dpu), counters), "telemetry")
            except DeviceError as error:
                return absent(Absence.ERROR, "simulated:libdpu", error.message)
            cycles = max(cycles, int(counters.cycles))
        return known(cycles, "simulated:libdpu")
