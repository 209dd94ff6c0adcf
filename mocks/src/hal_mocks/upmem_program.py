"""A program for mock UPMEM ranks: a Python function that every tasklet runs, and its variables in the memories.

The function must be importable where the program is loaded, so that a program can be pickled to another process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from hal.errors import InvalidArgument
from hal.interfaces.upmem import MRAM_HEAP, MemoryKind, Symbol
from hal_mocks.graph import UpmemRank

if TYPE_CHECKING:
    from hal_mocks.upmem_context import Context

DEFAULT_STACK_BYTES = 1024
DEFAULT_CODE_BYTES = 4096
_ALIGNMENT_BYTES = 8


class Variable(msgspec.Struct, frozen=True):
    """A variable that the host can reach: its size, the NumPy type of its elements, its first bytes at load."""

    size_bytes: int
    dtype: str = "u1"
    initial: bytes = b""


class Mram(Variable, frozen=True):
    """A variable in MRAM. Without ``initial`` it keeps what was there."""


class Wram(Variable, frozen=True):
    """A variable in WRAM, zero unless ``initial`` says otherwise."""


class Iram(Variable, frozen=True):
    """Instructions that the host can overwrite."""


KINDS = {Mram: MemoryKind.MRAM, Wram: MemoryKind.WRAM, Iram: MemoryKind.IRAM}


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank can load.

    ``kernel(ctx)`` is run by each of ``tasklets``. ``barriers`` says how many tasklets each awaits (``all`` awaits
    all and is always there), ``semaphores`` their counts at the start; mutexes need no declaration. ``code_bytes`` is
    what the compiled kernel would take of IRAM.
    """

    name: str
    kernel: Callable[[Context], None]
    tasklets: int = 1
    symbols: dict[str, Variable] = {}
    barriers: dict[str, int] = {}
    semaphores: dict[str, int] = {}
    stack_bytes: int = DEFAULT_STACK_BYTES
    code_bytes: int = DEFAULT_CODE_BYTES


class Place(msgspec.Struct, frozen=True):
    """Where a variable lies in its memory."""

    symbol: Symbol
    address: int
    variable: Variable


class Layout(msgspec.Struct, frozen=True):
    """Where everything of a program lies; ``heap_address`` is the first byte of WRAM that nobody has."""

    places: dict[str, Place]
    heap_address: int


def lay_out(program: Any, rank: UpmemRank, device: str) -> Layout:
    """Place a program's variables, or raise ``InvalidArgument`` if it is none or does not fit."""

    def refused(why: str, hint: str) -> InvalidArgument:
        return InvalidArgument(why, device=device, during="load", hint=hint)

    if not isinstance(program, Program):
        raise refused(
            f"the mock loads hal_mocks.upmem_program.Program, not {type(program).__name__}",
            "write the kernel as a Python function",
        )
    if not 1 <= program.tasklets <= rank.tasklets:
        raise refused(f"{program.tasklets} tasklets; {rank.chip} has 1 to {rank.tasklets}", "use fewer tasklets")
    used = {MemoryKind.MRAM: 0, MemoryKind.WRAM: 0, MemoryKind.IRAM: _round_up(program.code_bytes)}
    places: dict[str, Place] = {}
    for name, variable in program.symbols.items():
        memory = KINDS.get(type(variable))
        if memory is None or variable.size_bytes <= 0 or len(variable.initial) > variable.size_bytes:
            raise refused(f"variable {name!r} is not Mram, Wram or Iram of some bytes", "Mram(size_bytes, dtype)")
        symbol = Symbol(name=name, memory=memory, size_bytes=variable.size_bytes)
        places[name] = Place(symbol, used[memory], variable)
        used[memory] = _round_up(used[memory] + variable.size_bytes)
    used[MemoryKind.WRAM] += program.tasklets * _round_up(program.stack_bytes)
    sizes = {
        MemoryKind.MRAM: rank.mram_bytes,
        MemoryKind.WRAM: rank.wram_bytes,
        MemoryKind.IRAM: rank.iram_bytes,
    }
    for memory, size in sizes.items():
        if used[memory] > size:
            raise refused(
                f"{program.name} needs {used[memory]} bytes of {memory.upper()}, a unit has {size}",
                "smaller variables, smaller stacks or fewer tasklets",
            )
    heap = Mram(rank.mram_bytes - used[MemoryKind.MRAM])
    places[MRAM_HEAP] = Place(
        Symbol(name=MRAM_HEAP, memory=MemoryKind.MRAM, size_bytes=heap.size_bytes), used[MemoryKind.MRAM], heap
    )
    return Layout(places, used[MemoryKind.WRAM])


def _round_up(size: int) -> int:
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
