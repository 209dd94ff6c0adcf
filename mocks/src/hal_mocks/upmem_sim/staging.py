"""A mock machine's ranks for programs that call ``libdpu.so``: the file that the library reads, and its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hal.errors import DeviceNotFound
from hal_mocks.faults import Fault, FaultType

if TYPE_CHECKING:
    from hal_mocks.graph import Host, UpmemDimm, UpmemRank
    from hal_mocks.machine import Machine

RANKS_FILE = "HAL_UPMEM_RANKS_FILE"
LOCKS = "HAL_UPMEM_LOCKS"
FOLDER = "upmem-sim"
"""Under the machine's state folder: a folder for each host that was staged."""

_INSTRUCTION_BYTES = 6
_GONE = (FaultType.LOST, FaultType.FALLEN_OFF_BUS)


def stage(machine: Machine, host: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which a program finds a host's ranks through ``libdpu.so``.

    Who owns a rank is known across all programs of the machine, and faults come and go while they run. Raises
    ``DeviceNotFound`` for an unknown host, ``NotReady`` where there is no compiler.
    """
    from hal_mocks.upmem_sim.toolchain import libdpu

    environ = os.environ if environ is None else environ
    found = next((each for each in machine.graph.hosts if each.name == host), None)
    if found is None:
        raise DeviceNotFound("no such host on this mock machine", device=host, hint="hal-mock show")
    library = libdpu(environ)
    folder = machine.state.folder / FOLDER / host
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    _write(machine, found, folder)
    paths = ":".join(filter(None, (str(library.parent), environ.get("LD_LIBRARY_PATH", ""))))
    return {
        "LD_LIBRARY_PATH": paths,
        RANKS_FILE: str(folder.absolute() / "ranks"),
        LOCKS: str(folder.absolute() / "locks"),
    }


def sync(machine: Machine) -> None:
    """Bring the files of the hosts that were staged into step with the faults of now."""
    for host in machine.graph.hosts:
        folder = machine.state.folder / FOLDER / host.name
        if (folder / "ranks").exists():
            _write(machine, host, folder)


def _write(machine: Machine, host: Host, folder: Path) -> None:
    dimms = {dimm.name: dimm for dimm in host.upmem_dimms}
    lines = (_line(machine, dimms[rank.dimm], rank) for rank in host.upmem_ranks)
    fresh = folder / f"ranks.{os.getpid()}"
    fresh.write_text("".join(f"{line}\n" for line in lines))
    fresh.replace(folder / "ranks")


def _line(machine: Machine, dimm: UpmemDimm, rank: UpmemRank) -> str:
    own = machine.faults_of(f"upmem-{dimm.serial}-{rank.index}")
    shared = machine.faults_of(f"dimm-{dimm.serial}")
    fields: dict[str, object] = {
        "number": int("".join(filter(str.isdigit, rank.name)) or 0),
        "cis": rank.control_interfaces,
        "dpus_per_ci": rank.dpus_per_ci,
        "mram_bytes": rank.mram_bytes,
        "wram_bytes": rank.wram_bytes,
        "iram_instructions": rank.iram_bytes // _INSTRUCTION_BYTES,
        "tasklets": rank.tasklets,
        "clock_hz": rank.clock_hz,
        "numa_node": dimm.numa_node,
        **dict(_faults((*own, *(fault for fault in shared if fault.type in (*_GONE, FaultType.HANG))))),
    }
    if rank.disabled:
        fields["disabled"] = ",".join(map(str, rank.disabled))
    return " ".join(("rank", rank.name, *(f"{key}={value}" for key, value in fields.items())))


def _faults(faults: tuple[Fault, ...]) -> Iterator[tuple[str, object]]:
    for fault in faults:
        if fault.type in _GONE:
            yield "lost", 1
        elif fault.type is FaultType.HANG:
            yield "hangs", 1
        elif fault.type is FaultType.SLOW:
            yield "slow_seconds", fault.seconds
        elif fault.type is FaultType.RUN_FAULT:
            yield "fault_dpu", fault.dpu
            yield "fault_tasklet", fault.tasklet
        elif fault.type is FaultType.ECC_UNCORRECTABLE:
            yield "corrupt_dpu", fault.dpu
