"""A rank that belongs to this process: allocated from the library, and given back."""

from __future__ import annotations

from typing import Any

from hal_upmem.binding import DPU, Library
from hal_upmem.rank import Shape


class Allocation:
    """One rank and its working units, by number. The library resets a rank when it is allocated."""

    def __init__(self, library: Library, path: str, shape: Shape, device: str, step: str) -> None:
        ffi, lib = library.ffi, library.lib
        self.library = library
        self._set = ffi.new("dpu_set *")
        library.check(lib.dpu_alloc_ranks(1, f"rankPath={path}".encode(), self._set), device, step)
        self.whole = self._set[0]
        rank = lib.dpu_rank_from_set(self.whole)
        self.units: dict[int, Any] = {}
        self._kept: list[Any] = []
        for unit in range(shape.interfaces * shape.per_interface):
            interface, place = shape.place(unit)
            dpu = lib.dpu_get(rank, interface, place)
            if dpu == ffi.NULL or not lib.dpu_is_enabled(dpu):
                continue
            one = ffi.new("dpu_set *", {"kind": DPU, "first": int(ffi.cast("uint64_t", dpu))})
            self._kept.append(one)
            self.units[unit] = one[0]
        self._held = True

    def free(self) -> None:
        """Give the rank back; the second time is no error."""
        if self._held:
            self._held = False
            self.library.lib.dpu_free(self.whole)

    def forget(self) -> None:
        """Leave the rank to the process that forked this one."""
        self._held = False
