"""UPMEM: a rank of DRAM processing units, each with its own memories, all running one program.

Inside this interface ``rank`` and ``dpu`` are the words of UPMEM's SDK, whose host library (``dpu.h``) the verbs
follow. A rank is the unit of ownership: one process has it. Its units are numbered 0 to 63 by control interface and
place; those that are disabled for good are left out, and the numbers of the others stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation

if TYPE_CHECKING:
    from typing_extensions import Buffer

MRAM_HEAP = "__sys_used_mram_end"
"""The symbol that every program has: MRAM from the end of its own variables (``DPU_MRAM_HEAP_POINTER_NAME``)."""


class MemoryKind(StrEnum):
    """One of a unit's three memories."""

    MRAM = "mram"
    WRAM = "wram"
    IRAM = "iram"

    @property
    def alignment_bytes(self) -> int:
        """Of what offset and length of a host's copy must be multiples (SDK: host communication)."""
        return 4 if self is MemoryKind.WRAM else 8


class Direction(StrEnum):
    """Which way :meth:`Transfers.push` moves bytes (``DPU_XFER_TO_DPU``, ``DPU_XFER_FROM_DPU``)."""

    TO_DPU = "to-dpu"
    FROM_DPU = "from-dpu"


class RunState(StrEnum):
    """What a rank does: nothing loaded, loaded, running, ended well, ended by a fault."""

    EMPTY = "empty"
    IDLE = "idle"
    RUNNING = "running"
    DONE = "done"
    FAULT = "fault"


class Symbol(msgspec.Struct, frozen=True, kw_only=True):
    """A variable of the program that the host can reach."""

    name: str
    memory: MemoryKind
    size_bytes: int


class Rank(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's facts. ``dpus`` are the numbers of the working units; memories are those of one unit, in bytes."""

    dpus: tuple[int, ...]
    disabled: tuple[int, ...]
    mram_bytes: int
    wram_bytes: int
    iram_bytes: int
    tasklets: int
    clock_hz: int
    chip: str


class DpuFault(msgspec.Struct, frozen=True, kw_only=True):
    """A unit that stopped with a fault; ``tasklet`` is None if it was not one tasklet's doing (a deadlock)."""

    dpu: int
    tasklet: int | None
    detail: str


class RankStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank does now, and what went wrong in its last run."""

    state: RunState
    program: str | None = None
    faults: tuple[DpuFault, ...] = ()


@runtime_checkable
class Transfers(Protocol):
    """Copies between the host and the units' memories.

    Every one raises ``InvalidArgument`` before anything is copied for: a symbol that the program does not have, an
    offset or length that is not aligned, a range outside the symbol, a unit that is disabled or not there, and when
    no program is loaded. MRAM cannot be reached while the rank runs: ``DeviceBusy``. WRAM and IRAM can.
    """

    def symbols(self, *, deadline: Deadline | None = None) -> Mapping[str, Symbol]:
        """Return the loaded program's symbols by name."""
        ...

    def copy_to(
        self, dpu: int | Sequence[int], symbol: str, offset: int, data: Buffer, *, deadline: Deadline | None = None
    ) -> None:
        """Copy the same bytes to one unit or to several (``dpu_copy_to``)."""
        ...

    def copy_from(self, dpu: int, symbol: str, offset: int, length: int, *, deadline: Deadline | None = None) -> bytes:
        """Copy bytes from one unit (``dpu_copy_from``). A set of several is refused, as the SDK does: push."""
        ...

    def broadcast(self, symbol: str, offset: int, data: Buffer, *, deadline: Deadline | None = None) -> None:
        """Copy the same bytes to all working units (``dpu_broadcast_to``)."""
        ...

    def push(
        self,
        direction: Direction,
        symbol: str,
        offset: int,
        buffers: Mapping[int, Buffer],
        *,
        deadline: Deadline | None = None,
    ) -> None:
        """Move a buffer of its own for each unit, all of one length, all at once (``dpu_prepare_xfer`` and
        ``dpu_push_xfer``). ``buffers`` goes by the unit's number; from the units it must be writable.
        """
        ...


@runtime_checkable
class Runs(Protocol):
    """Loading and running a program on all working units of the rank."""

    def load(self, program: Any, *, deadline: Deadline | None = None) -> None:
        """Load a program into all working units and clear earlier faults (``dpu_load``).

        ``program`` is what the driver understands: the path of a DPU binary with the SDK, a Python program on the
        mock. WRAM and IRAM are set anew; MRAM keeps its bytes except for initialised variables. Raises
        ``InvalidArgument`` for one that does not fit into the memories, ``DeviceBusy`` while the rank runs.
        """
        ...

    def launch(self, *, deadline: Deadline | None = None) -> Operation[None]:
        """Start all working units; the operation ends when the last has (``dpu_launch``, asynchronous).

        Waiting for it is the synchronous form. Fails with ``ProgramFault``, naming unit and tasklet, if any faulted;
        the others have run to their end. After a fault the program must be loaded again. Raises ``DeviceBusy`` while
        it runs already.
        """
        ...

    def status(self, *, deadline: Deadline | None = None) -> RankStatus:
        """Say what the rank does, without waiting (``dpu_status``)."""
        ...

    def log(self, dpu: int, *, deadline: Deadline | None = None) -> str:
        """Return what the unit's tasklets printed in the last run (``dpu_log_read``)."""
        ...


@runtime_checkable
class Upmem(Transfers, Runs, Handle, Protocol):
    """An opened rank.

    Telemetry names: ``dpus``, ``disabled_dpus``, ``run_state`` (:class:`RunState`), ``last_run_cycles`` (absent until a
    run has ended, or where nothing counts them) and ``temperature_celsius``.
    """

    def rank(self, *, deadline: Deadline | None = None) -> Rank:
        """Return the rank's facts."""
        ...
