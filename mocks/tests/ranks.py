"""A mock DIMM of two ranks for tests, smaller than a real one."""

from __future__ import annotations

from hal.drivers.guard import OpenGuard
from hal.interfaces.deadline import Deadline
from hal_mocks.graph import Graph, Host, Numa, UpmemDimm, UpmemRank
from hal_mocks.machine import Machine
from hal_mocks.upmem import MockUpmemDriver
from hal_mocks.upmem_handle import MockUpmem

RANK = "upmem-DIMM42-0"


def graph(per_ci: int = 1, disabled: tuple[int, ...] = (3,)) -> Graph:
    dimm = UpmemDimm(
        name="dimm0", serial="DIMM42", part_number="UPMEM-E19", numa_node=0, channel=1, slot=0, ranks=("r0", "r1")
    )
    ranks = tuple(
        UpmemRank(name=f"dpu_rank{index}", dimm="dimm0", index=index, dpus_per_ci=per_ci, disabled=disabled)
        for index in (0, 1)
    )
    host = Host(
        name="node0",
        numa=(Numa(id=0, cpus="0-1", memory_bytes=1 << 30),),
        upmem_dimms=(dimm,),
        upmem_ranks=ranks,
    )
    return Graph(name="upmem-test", hosts=(host,))


def opened(machine: Machine, rank_id: str = RANK) -> MockUpmem:
    return MockUpmemDriver(machine).open(rank_id, OpenGuard(), Deadline.after(10))


def count_bytes(value: int) -> bytes:
    return value.to_bytes(4, "little")
