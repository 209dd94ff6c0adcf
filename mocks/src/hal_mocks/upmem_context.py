"""What a kernel sees: the calls of UPMEM's runtime library, with its rules, for one tasklet of one unit.

Wherever tasklets can meet, another one may go on: at every access to a shared variable, every DMA and every lock. The
cycles are a model (arXiv 2105.03814: 11 cycles from one instruction of a tasklet to its next, DMA 77 or 61 cycles and
half a cycle a byte); they are simulated, never the hardware's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hal.interfaces.upmem import MemoryKind
from hal_mocks.upmem_memory import DpuMemory
from hal_mocks.upmem_program import Layout, Place, Program
from hal_mocks.upmem_schedule import Crash, Schedule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

DMA_ALIGNMENT_BYTES = 8
DMA_MAX_BYTES = 2048
PIPELINE_CYCLES = 11
_READ_CYCLES, _WRITE_CYCLES, _CYCLES_PER_BYTE = 77, 61, 0.5
_SYNC_INSTRUCTIONS = 4


class Unit:
    """What the tasklets of one unit share during one run."""

    def __init__(self, program: Program, layout: Layout, memory: DpuMemory, schedule: Schedule) -> None:
        self.program = program
        self.layout = layout
        self.memory = memory
        self.schedule = schedule
        self.heap = layout.heap_address
        self.log: list[str] = []
        self.barriers: dict[str, list[int]] = {}
        self.owners: dict[str, int] = {}
        self.waiters: dict[str, deque[int]] = {}
        self.counts = dict(program.semaphores)
        self.notifying: set[int] = set()
        self.awaiting: dict[int, int] = {}
        self.cycles = 0


class SharedArray:
    """A WRAM variable that all tasklets see: a load or a store of elements, each a place where another may go on."""

    __slots__ = ("_context", "array")

    def __init__(self, context: Context, array: NDArray[Any]) -> None:
        self._context = context
        self.array = array
        """The memory itself, without such places: for what no other tasklet touches."""

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, where: int | slice) -> Any:
        loaded = self.array[where]
        loaded = loaded.copy() if isinstance(where, slice) else loaded.item()
        self._context.spend(1)
        self._context.reschedule()
        return loaded

    def __setitem__(self, where: int | slice, value: Any) -> None:
        import numpy as np

        self._context.spend(1)
        self._context.reschedule()
        self.array[where] = np.asarray(value).astype(self.array.dtype)  # wraps as C does


class Context:
    """One tasklet's view of its unit."""

    __slots__ = ("_cycles", "_me", "_schedule", "_unit")

    def __init__(self, unit: Unit, tasklet: int) -> None:
        self._unit = unit
        self._me = tasklet
        self._schedule = unit.schedule
        self._cycles = 0.0

    def me(self) -> int:
        """Return the number of this tasklet, from 0."""
        return self._me

    @property
    def tasklets(self) -> int:
        """How many tasklets run (``NR_TASKLETS``)."""
        return self._unit.program.tasklets

    def reschedule(self) -> None:
        """Let another tasklet go on, or not, as the seed says."""
        self._schedule.point(self._me)

    # -- memory -------------------------------------------------------------------------------------------------------

    def wram(self, symbol: str) -> SharedArray:
        """Return a WRAM variable of the program."""
        place = self._place(symbol, MemoryKind.WRAM)
        return SharedArray(self, self._view(place.address, place.symbol.size_bytes, place.variable.dtype))

    def mem_alloc(self, size_bytes: int, dtype: DTypeLike = "u1") -> NDArray[Any]:
        """Take bytes from the WRAM heap, aligned to 8 (``mem_alloc``); faults when it is used up."""
        unit = self._unit
        taken = -(-size_bytes // DMA_ALIGNMENT_BYTES) * DMA_ALIGNMENT_BYTES
        if size_bytes <= 0 or unit.heap + taken > len(unit.memory.wram):
            left = len(unit.memory.wram) - unit.heap
            raise Crash(self._me, f"mem_alloc({size_bytes}): {left} bytes of WRAM are left")
        unit.heap += taken
        return self._view(unit.heap - taken, size_bytes, dtype)

    def mem_reset(self) -> None:
        """Give the whole heap back; by one tasklet, before the others allocate."""
        self._unit.heap = self._unit.layout.heap_address

    def mram_size(self, symbol: str) -> int:
        """Return the size of an MRAM variable in bytes."""
        return self._place(symbol, MemoryKind.MRAM).symbol.size_bytes

    def mram_read(self, symbol: str, offset: int, into: NDArray[Any]) -> None:
        """Fill a WRAM buffer from MRAM by DMA: 8 to 2048 bytes, everything aligned to 8."""
        source, target = self._dma("mram_read", symbol, offset, into)
        target[:] = source
        self._transfer(_READ_CYCLES, len(target))

    def mram_write(self, source: NDArray[Any], symbol: str, offset: int) -> None:
        """Write a WRAM buffer to MRAM by DMA, under the same rules."""
        target, content = self._dma("mram_write", symbol, offset, source)
        target[:] = content
        self._transfer(_WRITE_CYCLES, len(content))

    def _dma(
        self, verb: str, symbol: str, offset: int, buffer: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        place = self._place(symbol, MemoryKind.MRAM)
        length = int(buffer.nbytes)
        memory = self._unit.memory
        address = int(buffer.__array_interface__["data"][0]) - memory.wram_start
        if not 0 <= address <= len(memory.wram) - length or not buffer.flags.c_contiguous:
            raise Crash(self._me, f"{verb}: the buffer is not in WRAM; take it from mem_alloc or a WRAM variable")
        if (place.address + offset) % DMA_ALIGNMENT_BYTES or address % DMA_ALIGNMENT_BYTES:
            raise Crash(self._me, f"{verb}: offset {offset} of {symbol} or the buffer is not aligned to 8 bytes")
        if length % DMA_ALIGNMENT_BYTES or not 0 < length <= DMA_MAX_BYTES:
            raise Crash(self._me, f"{verb}: {length} bytes are not a multiple of 8 from 8 to {DMA_MAX_BYTES}")
        if offset < 0 or offset + length > place.symbol.size_bytes:
            raise Crash(self._me, f"{verb}: bytes {offset} to {offset + length} are outside of {symbol}")
        start = place.address + offset
        return memory.mram[start : start + length], memory.wram[address : address + length]

    def _transfer(self, cycles: int, length: int) -> None:
        self._cycles += cycles + _CYCLES_PER_BYTE * length
        self.reschedule()

    def _place(self, symbol: str, memory: MemoryKind) -> Place:
        place = self._unit.layout.places.get(symbol)
        if place is None or place.symbol.memory is not memory:
            raise Crash(self._me, f"no variable {symbol!r} in {memory.upper()}")
        return place

    def _view(self, address: int, length: int, dtype: DTypeLike) -> NDArray[Any]:
        return self._unit.memory.wram[address : address + length].view(dtype)

    # -- meeting other tasklets ---------------------------------------------------------------------------------------

    def barrier(self, name: str = "all") -> None:
        """Wait until as many tasklets as the barrier awaits are here (``barrier_wait``)."""
        self._meet()
        unit = self._unit
        awaited = unit.program.barriers.get(name, self.tasklets if name == "all" else 0)
        if not awaited:
            raise Crash(self._me, f"no barrier {name!r}; name it in Program.barriers")
        here = unit.barriers.setdefault(name, [])
        if len(here) + 1 < awaited:
            here.append(self._me)
            self._schedule.block(self._me, f"barrier {name!r}")
        else:
            unit.barriers[name] = []
            for tasklet in here:
                self._schedule.unblock(tasklet)

    def mutex_lock(self, name: str) -> None:
        """Wait until nobody else has the mutex, and have it."""
        self._meet()
        unit = self._unit
        if name not in unit.owners:
            unit.owners[name] = self._me
            return
        unit.waiters.setdefault(name, deque()).append(self._me)
        self._schedule.block(self._me, f"mutex {name!r}, which tasklet {unit.owners[name]} has")

    def mutex_trylock(self, name: str) -> bool:
        """Have the mutex if nobody has it; say whether."""
        self._meet()
        return self._unit.owners.setdefault(name, self._me) == self._me

    def mutex_unlock(self, name: str) -> None:
        """Give the mutex to one of those who wait, drawn by the seed."""
        self._meet()
        unit = self._unit
        if unit.owners.get(name) != self._me:
            raise Crash(self._me, f"mutex_unlock({name!r}) by a tasklet that does not have it")
        del unit.owners[name]
        waiters = unit.waiters.get(name)
        if waiters:
            waiters.rotate(self._schedule.random.randrange(len(waiters)))
            unit.owners[name] = waiters.popleft()
            self._schedule.unblock(unit.owners[name])

    @contextmanager
    def mutex(self, name: str) -> Iterator[None]:
        """Hold a mutex."""
        self.mutex_lock(name)
        yield
        self.mutex_unlock(name)  # not on the way out of a fault: the unit has stopped

    def sem_take(self, name: str) -> None:
        """Wait until the semaphore's count is above zero and lower it."""
        self._meet()
        unit = self._unit
        count = self._count(name)
        if count > 0:
            unit.counts[name] = count - 1
            return
        unit.waiters.setdefault(f"semaphore {name}", deque()).append(self._me)
        self._schedule.block(self._me, f"semaphore {name!r}")

    def sem_give(self, name: str) -> None:
        """Wake one who waits, or raise the count."""
        self._meet()
        unit = self._unit
        count = self._count(name)
        waiters = unit.waiters.get(f"semaphore {name}")
        if waiters:
            self._schedule.unblock(waiters.popleft())
        else:
            unit.counts[name] = count + 1

    def _count(self, name: str) -> int:
        try:
            return self._unit.counts[name]
        except KeyError:
            raise Crash(self._me, f"no semaphore {name!r}; name it in Program.semaphores") from None

    def handshake_wait_for(self, tasklet: int) -> None:
        """Wait until another tasklet notifies; the two meet, whoever comes first."""
        self._meet()
        unit = self._unit
        if tasklet in unit.notifying:
            unit.notifying.remove(tasklet)
            self._schedule.unblock(tasklet)
        elif tasklet in unit.awaiting:
            raise Crash(self._me, f"tasklet {unit.awaiting[tasklet]} waits for a handshake of {tasklet} already")
        else:
            unit.awaiting[tasklet] = self._me
            self._schedule.block(self._me, f"a handshake of tasklet {tasklet}")

    def handshake_notify(self) -> None:
        """Meet the tasklet that waits for this one, or wait until one does."""
        self._meet()
        unit = self._unit
        waiter = unit.awaiting.pop(self._me, None)
        if waiter is not None:
            self._schedule.unblock(waiter)
        else:
            unit.notifying.add(self._me)
            self._schedule.block(self._me, "somebody to take its handshake")

    def _meet(self) -> None:
        self.spend(_SYNC_INSTRUCTIONS)
        self.reschedule()

    # -- telling and measuring ----------------------------------------------------------------------------------------

    def printf(self, text: str, *values: object) -> None:
        """Append to the unit's log, as C's printf formats."""
        self._unit.log.append(text % values if values else text)

    def spend(self, instructions: int) -> None:
        """Count instructions of the kernel's own work, for the model of cycles."""
        self._cycles += instructions * max(PIPELINE_CYCLES, self.tasklets)
        if self._cycles > self._unit.cycles:
            self._unit.cycles = int(self._cycles)

    def perfcounter(self) -> int:
        """Return this tasklet's cycles so far: simulated."""
        return int(self._cycles)
