"""An opened mock rank: its units' memories in this process, copies to and from them, runs of a program."""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hal.drivers.guard import Guard
from hal.errors import DeviceBusy, DeviceGone, InvalidArgument, ProgramFault
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.operation import Operation
from hal.interfaces.upmem import Direction, DpuFault, MemoryKind, Rank, RankStatus, RunState, Symbol
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device
from hal_mocks.base import GONE, MockHandle, pass_through_faults
from hal_mocks.buffers import as_bytes
from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph import UpmemRank
from hal_mocks.machine import Machine
from hal_mocks.upmem_context import Context, Unit
from hal_mocks.upmem_memory import DpuMemory
from hal_mocks.upmem_program import Layout, Program, lay_out
from hal_mocks.upmem_schedule import Crash, Schedule

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer


_BROKEN = {FaultType.RUN_FAULT: "memory fault", FaultType.ECC_UNCORRECTABLE: "uncorrectable error in MRAM"}


def rank_facts(rank: UpmemRank) -> Rank:
    """Return the facts of a rank of the graph."""
    disabled = tuple(sorted(set(rank.disabled)))
    return Rank(
        dpus=tuple(dpu for dpu in range(rank.control_interfaces * rank.dpus_per_ci) if dpu not in disabled),
        disabled=disabled,
        mram_bytes=rank.mram_bytes,
        wram_bytes=rank.wram_bytes,
        iram_bytes=rank.iram_bytes,
        tasklets=rank.tasklets,
        clock_hz=rank.clock_hz,
        chip=rank.chip,
    )


class _Window:
    """One symbol as the hot path wants it: a view for each unit, and what an offset must obey."""

    __slots__ = ("address", "in_mram", "mask", "size", "symbol", "views")

    def __init__(self, symbol: Symbol, address: int, memories: Mapping[int, DpuMemory]) -> None:
        self.symbol = symbol
        self.address = address
        self.size = symbol.size_bytes
        self.mask = symbol.memory.alignment_bytes - 1
        self.in_mram = symbol.memory is MemoryKind.MRAM
        self.views = {
            dpu: memoryview(memory.of(symbol.memory))[address : address + self.size]  # type: ignore[arg-type]
            for dpu, memory in memories.items()
        }


class MockUpmem(MockHandle):
    """A rank opened under a lease; one process has it at a time.

    ``schedule_seed`` decides how tasklets are interleaved: change it before a launch to see whether a program minds.
    """

    def __init__(self, machine: Machine, device: Device, guard: Guard, rank: UpmemRank, owner: Path) -> None:
        super().__init__(machine, device, guard)
        self.schedule_seed: int = machine.graph.seed
        self._facts = rank_facts(rank)
        self._rank = rank
        self._owner = owner
        self._lock = _own(owner, self._id)
        self._let_go = weakref.finalize(self, os.close, self._lock)
        self._memories = {dpu: DpuMemory(rank) for dpu in self._facts.dpus}
        self._windows: dict[str, _Window] = {}
        self._program: Program | None = None
        self._layout: Layout | None = None
        self._running = False
        self._launches = 0
        self._cycles: int | None = None
        self._state = RunState.EMPTY
        self._faults: tuple[DpuFault, ...] = ()
        self._logs: dict[int, list[str]] = {}

    def _look(self, step: str, deadline: Deadline | None = None) -> None:
        self._be_owner(step)
        if self._device.parent is not None:  # a rank shares the fate of its DIMM
            pass_through_faults(self._machine, self._device.parent, step, or_default(deadline))

    def _be_owner(self, step: str) -> None:
        if self._closed or not _is_owner(self._lock, self._owner):
            raise DeviceGone(
                "the rank was closed, reset or taken back since it was opened",
                device=self._id,
                during=step,
                hint="open it again; its memories begin as zeros",
            )

    # -- copies -------------------------------------------------------------------------------------------------------

    def symbols(self, *, deadline: Deadline | None = None) -> Mapping[str, Symbol]:
        """Return the loaded program's symbols."""
        self._enter("symbols", deadline)
        return {name: window.symbol for name, window in self._windows.items()}

    def copy_to(
        self, dpu: int | Sequence[int], symbol: str, offset: int, data: Buffer, *, deadline: Deadline | None = None
    ) -> None:
        """Copy bytes to one unit, or the same to several."""
        self._enter("copy_to", deadline)
        source = data if type(data) is bytes else as_bytes(data, self._id, "copy_to")
        end = offset + len(source)
        try:
            window = self._windows[symbol]
            view = window.views[dpu]  # type: ignore[index]
        except (KeyError, TypeError):
            self._copy_to_set("copy_to", dpu, symbol, offset, source)
            return
        if (offset | end) & window.mask or not 0 <= offset <= end <= window.size or (self._running and window.in_mram):
            self._window("copy_to", symbol, offset, len(source))
        view[offset:end] = source

    def copy_from(self, dpu: int, symbol: str, offset: int, length: int, *, deadline: Deadline | None = None) -> bytes:
        """Copy bytes from one unit."""
        self._enter("copy_from", deadline)
        end = offset + length
        try:
            window = self._windows[symbol]
            view = window.views[dpu]
        except (KeyError, TypeError):
            self._window("copy_from", symbol, offset, length)
            if not isinstance(dpu, int):
                raise self._invalid("copy_from", "from a set of several units", "push(Direction.FROM_DPU, …)") from None
            raise self._no_dpu("copy_from", dpu) from None
        if (offset | end) & window.mask or not 0 <= offset <= end <= window.size or (self._running and window.in_mram):
            self._window("copy_from", symbol, offset, length)
        return bytes(view[offset:end])

    def broadcast(self, symbol: str, offset: int, data: Buffer, *, deadline: Deadline | None = None) -> None:
        """Copy the same bytes to all working units."""
        self._enter("broadcast", deadline)
        self._copy_to_set("broadcast", self._facts.dpus, symbol, offset, as_bytes(data, self._id, "broadcast"))

    def push(
        self,
        direction: Direction,
        symbol: str,
        offset: int,
        buffers: Mapping[int, Buffer],
        *,
        deadline: Deadline | None = None,
    ) -> None:
        """Move one buffer a unit; nothing is moved unless all can be."""
        self._enter("push", deadline)
        views = {dpu: as_bytes(buffer, self._id, "push") for dpu, buffer in buffers.items()}
        lengths = {len(view) for view in views.values()}
        if len(lengths) != 1:
            raise self._invalid("push", f"buffers of {sorted(lengths)} bytes", "one buffer a unit, all of one length")
        window = self._window("push", symbol, offset, lengths.pop())
        for dpu, view in views.items():
            if dpu not in window.views:
                raise self._no_dpu("push", dpu)
            if direction is Direction.FROM_DPU and view.readonly:
                raise self._invalid("push", f"the buffer for unit {dpu} is read-only", "give a bytearray or an array")
        for dpu, view in views.items():
            place = window.views[dpu][offset : offset + len(view)]
            if direction is Direction.TO_DPU:
                place[:] = view
            else:
                view[:] = place

    def _copy_to_set(
        self, step: str, dpus: int | Sequence[int], symbol: str, offset: int, source: bytes | memoryview
    ) -> None:
        window = self._window(step, symbol, offset, len(source))
        chosen = (dpus,) if isinstance(dpus, int) else tuple(dpus)
        for dpu in chosen:
            if dpu not in window.views:
                raise self._no_dpu(step, dpu)
        for dpu in chosen:
            window.views[dpu][offset : offset + len(source)] = source

    def _window(self, step: str, symbol: str, offset: int, length: int) -> _Window:
        """Return the symbol's window if the host may reach these bytes of it now; else raise what forbids it."""
        window = self._windows.get(symbol)
        if window is None:
            names = ", ".join(self._windows) or "none: load a program first"
            raise self._invalid(step, f"no symbol {symbol!r}", f"the symbols are {names}")
        alignment = window.mask + 1
        memory = window.symbol.memory.upper()
        if offset % alignment or length % alignment:
            raise self._invalid(
                step,
                f"offset {offset} and length {length} in {memory} are not multiples of {alignment}",
                f"pad to {alignment} bytes",
            )
        if offset < 0 or length < 0 or offset + length > window.size:
            raise self._invalid(
                step,
                f"bytes {offset} to {offset + length} are outside of {symbol} of {window.size} bytes",
                "offsets count from the symbol's start",
            )
        if self._running and window.in_mram:
            raise DeviceBusy(
                "MRAM belongs to the units while they run",
                device=self._id,
                during=step,
                hint="wait for the launch, or use a WRAM variable",
            )
        return window

    # -- running ------------------------------------------------------------------------------------------------------

    def load(self, program: Any, *, deadline: Deadline | None = None) -> None:
        """Load a :class:`~hal_mocks.upmem_program.Program` into all working units."""
        self._enter("load", deadline)
        self._refuse_running("load")
        layout = lay_out(program, self._rank, self._id)
        for memory in self._memories.values():
            memory.load(layout)
        self._windows = {
            name: _Window(place.symbol, place.address, self._memories) for name, place in layout.places.items()
        }
        self._program, self._layout = program, layout
        self._state, self._faults, self._logs = RunState.IDLE, (), {}

    def launch(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Run the program on all working units, in a thread of this process."""
        self._check()
        if deadline is not None:
            self._be_in_time("launch", deadline)
        self._be_open("launch")
        self._be_owner("launch")
        self._refuse_running("launch")
        program, layout = self._program, self._layout
        if program is None or layout is None:
            raise self._invalid("launch", "no program is loaded", "load(program)")
        if self._state is RunState.FAULT:
            raise self._invalid("launch", "the last run ended in a fault", "status() and log() say why; load again")
        self._launches += 1
        self._running = True
        self._state, self._faults, self._logs, self._cycles = RunState.RUNNING, (), {}, None

        def work(_: Operation[None]) -> None:
            failed = True
            try:
                limit = or_default(deadline)
                for concerned in (self._device.parent, self._id):
                    pass_through_faults(self._machine, concerned or self._id, "launch", limit)
                self._run(program, layout)
                failed = bool(self._faults)
            finally:
                self._state = RunState.FAULT if failed else RunState.DONE
                self._running = False
            if self._faults:
                raise self._program_fault(self._faults)

        return Operation.spawn(self._id, "launch", work)

    def _run(self, program: Program, layout: Layout) -> None:
        found: list[DpuFault] = []
        longest = 0
        for dpu, memory in self._memories.items():
            self._interrupt()
            broken = self._broken(dpu)
            if broken is not None:
                found.append(DpuFault(dpu=dpu, tasklet=broken.tasklet, detail=_BROKEN[broken.type]))
                continue
            unit = self._unit(dpu, program, layout, memory)
            try:
                unit.schedule.run()
            except Crash as crash:
                found.append(DpuFault(dpu=dpu, tasklet=crash.tasklet, detail=crash.detail))
            longest = max(longest, unit.cycles)
        self._interrupt()
        self._cycles = longest
        self._faults = tuple(found)

    def _unit(self, dpu: int, program: Program, layout: Layout, memory: DpuMemory) -> Unit:
        def body(tasklet: int) -> None:
            program.kernel(Context(unit, tasklet))

        seed = f"{self.schedule_seed}/{self._id}/{self._launches}/{dpu}"
        unit = Unit(program, layout, memory, Schedule(program.tasklets, seed, body, self._interrupt))
        self._logs[dpu] = unit.log
        return unit

    def _interrupt(self) -> None:
        """Stop a run whose lease has ended or whose rank is lost, taken back or closed."""
        self._guard.check()
        self._be_owner("launch")
        for concerned in (self._device.parent, self._id):
            for fault in self._machine.faults_of(concerned or self._id):
                if fault.type in GONE:
                    pass_through_faults(self._machine, fault.device, "launch", Deadline.after(0))

    def _broken(self, dpu: int) -> Fault | None:
        for fault in self._machine.faults_of(self._id):
            if fault.type in _BROKEN and fault.dpu == dpu:
                return fault
        return None

    def _program_fault(self, faults: Sequence[DpuFault]) -> ProgramFault:
        first = faults[0]
        who = f"dpu {first.dpu}" if first.tasklet is None else f"dpu {first.dpu} tasklet {first.tasklet}"
        more = f" (and {len(faults) - 1} more units)" if len(faults) > 1 else ""
        return ProgramFault(
            f"{who}: {first.detail}{more}",
            device=self._id,
            during="launch",
            hint="status() names every unit, log(dpu) is what it printed; load() again before the next launch",
        )

    def status(self, *, deadline: Deadline | None = None) -> RankStatus:
        """Say what the rank does."""
        self._enter("status", deadline)
        return RankStatus(state=self._state, program=self._program.name if self._program else None, faults=self._faults)

    def log(self, dpu: int, *, deadline: Deadline | None = None) -> str:
        """Return what a unit printed in the last run."""
        self._enter("log", deadline)
        if dpu not in self._memories:
            raise self._no_dpu("log", dpu)
        return "".join(self._logs.get(dpu, ()))

    def rank(self, *, deadline: Deadline | None = None) -> Rank:
        """Return the rank's facts."""
        self._enter("rank", deadline)
        return self._facts

    def telemetry(self, *, deadline: Deadline | None = None) -> dict[str, Attribute]:
        """Return what can be told of the rank; cycles are the model's, not the hardware's."""
        self._enter("telemetry", deadline)
        return {
            "dpus": known(len(self._facts.dpus), "mock:dpu_rank"),
            "disabled_dpus": known(len(self._facts.disabled), "mock:dpu_rank"),
            "run_state": known(str(self._state), "mock:dpu_rank"),
            "last_run_cycles": absent(Absence.NOT_REPORTED, "simulated", "no run has ended")
            if self._cycles is None
            else known(self._cycles, "simulated"),
            "temperature_celsius": absent(Absence.UNSUPPORTED, "mock:dpu_rank", "the MCU does not tell"),
        }

    def close(self) -> None:
        """Give up the rank; a run that is under way stops, and the memories are gone with the handle."""
        if self._closed:
            return
        super().close()
        self._windows, self._memories = {}, {}
        self._let_go()

    def _abandon(self) -> None:
        self._let_go()

    def _refuse_running(self, step: str) -> None:
        if self._running:
            raise DeviceBusy(
                "the rank runs", device=self._id, during=step, hint="wait for the operation that launch() returned"
            )

    def _no_dpu(self, step: str, dpu: object) -> InvalidArgument:
        why = f"unit {dpu} is disabled" if dpu in self._facts.disabled else f"no unit {dpu}"
        return self._invalid(step, why, "rank().dpus lists the working units")

    def _invalid(self, step: str, why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=self._id, during=step, hint=hint)


def _own(path: Path, device: str) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DeviceBusy(
            "the rank has an owner", device=device, during="open", hint="close the other handle: a rank has one"
        ) from None
    return descriptor


def _is_owner(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except OSError:  # the file is gone, or the handle was closed this moment
        return False
