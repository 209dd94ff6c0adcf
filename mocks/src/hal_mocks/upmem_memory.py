"""The memories of one DRAM processing unit: 64 MiB that cost nothing until they are touched, and two small ones."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from hal.interfaces.upmem import MemoryKind
from hal_mocks.graph import UpmemRank
from hal_mocks.upmem_program import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class DpuMemory:
    """One unit's MRAM, WRAM and IRAM, private to the process that has the rank.

    All begin as zeros, as after a scrub: nothing of an earlier holder can be there, since it went with its process.
    """

    def __init__(self, rank: UpmemRank) -> None:
        import numpy as np

        # Private and anonymous: pages appear when they are written, and reading a hole gives the one page of zeros.
        self.mram_map = mmap.mmap(-1, rank.mram_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.mram: NDArray[np.uint8] = np.frombuffer(self.mram_map, dtype="u1")
        self.wram: NDArray[np.uint8] = np.zeros(rank.wram_bytes, dtype="u1")
        self.iram: NDArray[np.uint8] = np.zeros(rank.iram_bytes, dtype="u1")
        self.wram_start = int(self.wram.__array_interface__["data"][0])

    def of(self, kind: MemoryKind) -> NDArray[np.uint8]:
        """Return one of the three."""
        return {MemoryKind.MRAM: self.mram, MemoryKind.WRAM: self.wram, MemoryKind.IRAM: self.iram}[kind]

    def load(self, layout: Layout) -> None:
        """Set WRAM and IRAM anew and write the initial bytes of variables."""
        import numpy as np

        self.wram[:] = 0
        self.iram[:] = 0
        for place in layout.places.values():
            initial = place.variable.initial
            if initial:
                memory = self.of(place.symbol.memory)
                memory[place.address : place.address + len(initial)] = np.frombuffer(initial, dtype="u1")
