"""Putting the fake library and a host's state in front of a program, and keeping the state in step."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from hal.errors import UsageError
from hal_mocks.faults import Fault
from hal_mocks.gpu_boards import GpuBoards
from hal_mocks.gpu_contexts import BUSY_NS
from hal_mocks.gpu_describe import Place
from hal_mocks.gpu_store import FRESH
from hal_mocks.machine import Machine
from hal_mocks.native import build
from hal_mocks.nvml.boards import instance_ids
from hal_mocks.nvml.files import StateFile, make_state, next_place, nvidia_gpus, state_path, write_clock
from hal_mocks.nvml.layout import LIBRARY
from hal_mocks.nvml.managed import write_record
from hal_mocks.nvml.timeline import Course, copy_events, covered_until, energy_told, write_timeline

NAME = "libnvidia-ml.so.1"
STATE = "HAL_MOCK_NVML_STATE"
"""The variable that names the state file to the library."""

DRIVER = "HAL_MOCK_NVML_DRIVER"
"""The variable that chooses the driver's branch, and with it which functions there are."""

DRIVERS = (470, 515, 535, 550, 565, 580)

# More optimisation would make the first use longer, and no call shorter. The name lets a preload stand for the library.
_FLAGS = ("-O1", "-g0", "-fvisibility=hidden", f"-Wl,-soname,{NAME}")
_BOARDS: WeakKeyDictionary[Machine, GpuBoards] = WeakKeyDictionary()


def library(driver: int | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Return the fake library, compiled if need be, of a driver's branch (``DRIVERS``; the newest if None).

    Raises ``NotReady`` where there is no compiler.
    """
    environ = os.environ if environ is None else environ
    branch = driver or environ.get(DRIVER) or DRIVERS[-1]
    if str(branch) not in map(str, DRIVERS):
        raise UsageError(f"no driver branch {branch}", hint=", ".join(map(str, DRIVERS)))
    sources = sorted((*LIBRARY.glob("*.c"), *LIBRARY.glob("*.h")))
    return build(NAME, sources, flags=(*_FLAGS, f"-DHAL_DRIVER={branch}"), environ=environ)


def stage(
    machine: Machine, host: str, *, driver: int | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment in which a program finds a host's GPUs through NVML.

    Programs that run with it see faults come and go, and what they set is remembered with the machine.
    Raises ``DeviceNotFound`` for an unknown host, ``NotReady`` where there is no compiler.
    """
    environ = os.environ if environ is None else environ
    made = library(driver, environ)
    boards = _boards(machine)
    with machine.state.locked("gpu.lock"):
        path = make_state(machine, host, partial(_fill, boards))
        boards.store.count_change()
    sync(machine)
    folders = [str(made.parent), environ.get("LD_LIBRARY_PATH", "")]
    return {"LD_LIBRARY_PATH": ":".join(filter(None, folders)), STATE: str(path)}


def _fill(boards: GpuBoards, gpu: Any, place: Place) -> None:
    write_record(gpu.managed[0], gpu.managed[0], boards.store.load(place.gpu.uuid), place.gpu)
    gpu.managed[0].persistence = 1


def _boards(machine: Machine) -> GpuBoards:
    boards = _BOARDS.get(machine)
    if boards is None:
        boards = _BOARDS[machine] = GpuBoards(machine)
    return boards


def sync(machine: Machine) -> None:
    """Bring the state files that exist into step with the machine: faults, heat, error counts, what is to come."""
    for host in machine.graph.hosts:
        path = state_path(machine.state.folder, host.name)
        if path.exists():
            _sync(machine, path, nvidia_gpus(machine.graph, host.name))


def _sync(machine: Machine, path: Path, places: list[Place], afresh: bool = False) -> None:
    boards = _boards(machine)
    state = StateFile(path)
    if not state.fits:
        return
    faults = machine.state.faults()
    for place in places:  # what faults leave behind is written down by the Python driver's own code, under its lock
        boards.store.record(place.gpu.uuid)
        boards.contexts(place.gpu.uuid)
    with machine.state.locked("nvml.lock"):
        write_clock(state.header, machine)
        for gpu, place in zip(state.gpus, places, strict=True):
            _sync_gpu(boards, gpu, place, faults, afresh)


def _sync_gpu(boards: GpuBoards, gpu: Any, place: Place, faults: tuple[Fault, ...], afresh: bool) -> None:
    uuid = place.gpu.uuid
    now = boards.machine.clock.now()
    record = boards.store.record(uuid)
    instances = instance_ids(record.partitions, place.gpu)
    mine = tuple(fault for fault in faults if fault.device == uuid or fault.device in instances)
    limit_watts = boards.power_limit(uuid).watts
    busy_ns = boards.contexts(uuid).counter(BUSY_NS)
    surroundings = boards.store.thermal(uuid, lambda before: before)
    follows = (mine, record, limit_watts, busy_ns, surroundings.load, surroundings.inlet_celsius)
    course_digest = int.from_bytes(hashlib.blake2b(msgspec.json.encode(follows), digest_size=8).digest(), "little")
    if not afresh and gpu.course == course_digest and now < covered_until(_held(gpu)):
        return
    course = Course(place, mine, record, boards.thermal(uuid), limit_watts, busy_ns, now)
    with next_place(gpu, "timelines") as (fresh, old):
        ctypes.memset(ctypes.addressof(fresh), 0, ctypes.sizeof(fresh))
        if not afresh:
            copy_events(fresh, old)
        write_timeline(fresh, course, instances, 0.0 if afresh else energy_told(old, now))
    gpu.course = course_digest


def _held(gpu: Any) -> Any:
    return gpu.timelines[gpu.timeline_generation & 1]


def start_afresh(machine: Machine) -> None:
    """Forget what the state files remember; they stay, as programs have them mapped."""
    boards = _boards(machine)
    for host in machine.graph.hosts:
        path = state_path(machine.state.folder, host.name)
        if not path.exists():
            continue
        places = nvidia_gpus(machine.graph, host.name)
        with machine.state.locked("gpu.lock"):
            for gpu, place in zip(StateFile(path).gpus, places, strict=True):
                with next_place(gpu, "managed") as (fresh, _):
                    ctypes.memset(ctypes.addressof(fresh), 0, ctypes.sizeof(fresh))
                    write_record(fresh, fresh, FRESH, place.gpu)
                    fresh.persistence = 1
            boards.store.count_change()
        _sync(machine, path, places, afresh=True)
