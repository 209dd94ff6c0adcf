"""The symbols of a loaded program: names from its file, places from the library."""

from __future__ import annotations

from typing import Any

from hal.errors import InvalidArgument
from hal.interfaces.upmem import MRAM_HEAP, MemoryKind, Symbol
from hal_upmem.binding import IRAM_BIT, MRAM_BIT, Library
from hal_upmem.elf import symbol_names

_INTERNAL = ("__sys_", "__sw_", "__atomic_", "__hal_", "HAL_", "STACK_", "NR_TASKLETS")


def read_symbols(library: Library, program: Any, data: bytes, mram_bytes: int, device: str) -> dict[str, Symbol]:
    """Return what the host can reach, by name. The library decides: a name that it does not know is left out."""
    try:
        names = symbol_names(data)
    except ValueError as error:
        raise InvalidArgument(
            f"the program's symbols cannot be read: {error}", device=device, during="load", hint="a DPU binary"
        ) from None
    found: dict[str, Symbol] = {}
    place = library.ffi.new("dpu_symbol *")
    for name in (*names, MRAM_HEAP):
        if name != MRAM_HEAP and name.startswith(_INTERNAL):
            continue
        if library.lib.dpu_get_symbol(program, name.encode(), place):
            continue
        memory = memory_of(place.address)
        size = int(place.size)
        if name == MRAM_HEAP:  # it has no size of its own: it is what the program leaves of MRAM
            size = max(0, mram_bytes - (place.address & ~MRAM_BIT))
        if size and memory is not MemoryKind.IRAM:
            found[name] = Symbol(name=name, memory=memory, size_bytes=size)
    return found


def memory_of(address: int) -> MemoryKind:
    """Return the memory of an address as the SDK's host library tells them apart."""
    if address & IRAM_BIT:
        return MemoryKind.IRAM
    return MemoryKind.MRAM if address & MRAM_BIT else MemoryKind.WRAM
