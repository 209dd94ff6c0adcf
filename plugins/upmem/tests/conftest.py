"""A mock machine of two ranks whose libdpu.so is the simulator's, and DPU programs in C."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from hal.drivers.contract import HostRoot
from hal_mocks.clock import VirtualClock
from hal_mocks.graph import Graph, Host, Numa, UpmemDimm, UpmemRank
from hal_mocks.machine import Machine
from hal_mocks.sysfs import render
from hal_mocks.upmem_sim import compile_program, libdpu, stage

MIB = 1 << 20


def small_graph() -> Graph:
    """One DIMM of two ranks, eight units each, unit 3 disabled, one MiB of MRAM each."""
    dimm = UpmemDimm(
        name="dimm0", serial="DIMM42", part_number="UPMEM-E19", numa_node=0, channel=1, slot=0, ranks=("r0", "r1")
    )
    ranks = tuple(
        UpmemRank(name=f"dpu_rank{index}", dimm="dimm0", index=index, dpus_per_ci=1, disabled=(3,), mram_bytes=MIB)
        for index in (0, 1)
    )
    host = Host(
        name="node0",
        numa=(Numa(id=0, cpus="0-1", memory_bytes=1 << 30),),
        upmem_dimms=(dimm,),
        upmem_ranks=ranks,
    )
    return Graph(name="upmem-test", hosts=(host,))


class Room:
    """A machine, the hosts that show it, and the environment in which the library speaks for it."""

    def __init__(self, folder: Path) -> None:
        self.machine = Machine(small_graph(), folder / "machine", VirtualClock())
        (self.host,) = render(self.machine)
        assert self.host.root is not None
        self.hosts: list[HostRoot] = [self.host]
        (folder / "run").mkdir()
        self.environ = {
            **stage(self.machine, "node0"),
            "HAL_UPMEM_LIBRARY": str(libdpu()),
            "HAL_UPMEM_ROOT": self.host.root,
            "XDG_RUNTIME_DIR": str(folder / "run"),
        }


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    made = Room(tmp_path)
    for name in ("HAL_UPMEM_RANKS_FILE", "HAL_UPMEM_LOCKS"):  # the library asks the process's own environment
        monkeypatch.setenv(name, made.environ[name])
    return made


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("dpu-programs")

    def compile_text(text: str, *flags: str) -> Path:
        name = hashlib.sha256(repr((text, flags)).encode()).hexdigest()[:16]
        target = folder / name
        if not target.exists():
            source = folder / f"{name}.c"
            source.write_text(text)
            compile_program(["-O2", "-DNR_TASKLETS=4", *flags, "-o", str(target), str(source)])
        return target

    return compile_text
