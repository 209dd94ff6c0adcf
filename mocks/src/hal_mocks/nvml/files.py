"""The state files of a machine, one a host: made once, mapped by whoever looks, written under the machine's locks."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hal.errors import DeviceNotFound
from hal_mocks.clock import RealClock, SharedClock
from hal_mocks.gpu_contexts import BASE, COUNTERS, MEMORY, PID, SLOTS
from hal_mocks.gpu_describe import Place, places_of
from hal_mocks.graph import Graph
from hal_mocks.machine import CLOCK_WORD, Machine
from hal_mocks.nvml.boards import nearness, write_gpu
from hal_mocks.nvml.layout import number, struct

MAGIC = b"halnvml"


class StateFile:
    """One host's GPUs as the library sees them. ``header`` and ``gpus`` are the mapping itself."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self.header: Any = struct("hal_header")()
        if len(self._map) >= ctypes.sizeof(self.header):
            self.header = struct("hal_header").from_buffer(self._map)
        count = self.header.gpu_count if self.fits else 0
        self.gpus = (struct("hal_gpu") * count).from_buffer(self._map, ctypes.sizeof(self.header))

    @property
    def fits(self) -> bool:
        """False for a file that another version of this package has written."""
        header = self.header
        sizes = (header.layout, header.gpu_bytes, header.file_bytes)
        return sizes == (number("HAL_LAYOUT"), _bytes("hal_gpu"), len(self._map))


@contextmanager
def next_place(gpu: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Give the place of ``timelines`` or ``managed`` that does not hold, and the one that does; then let it hold.

    Call under the lock of that part's writers. Nothing holds that was not filled to the end.
    """
    word = {"timelines": "timeline_generation", "managed": "managed_generation"}[name]
    generation = getattr(gpu, word)
    places = getattr(gpu, name)
    yield places[(generation + 1) & 1], places[generation & 1]
    setattr(gpu, word, generation + 1)


def state_path(folder: Path, host: str) -> Path:
    """Return where a host's state file lies in the machine's folder; the library finds the folder from it."""
    return folder / "nvml" / f"{host.replace('/', '_')}.state"


def nvidia_gpus(graph: Graph, host: str) -> list[Place]:
    """Return the GPUs of a host that NVML drives, in the order of their indices: by PCI address, as NVML counts."""
    if host not in {each.name for each in graph.hosts}:
        raise DeviceNotFound("no such host on this mock machine", device=host, hint=graph.hosts[0].name)
    places = [
        place
        for place in places_of(graph).values()
        if place.host.name == host and place.device.attributes["vendor"].value == "NVIDIA"
    ]
    return sorted(places, key=lambda place: place.gpu.pci)


def make_state(machine: Machine, host: str, fill: Callable[[Any, Place], None]) -> Path:
    """Make a host's state file if there is none, or none of this layout; returns its path.

    ``fill`` writes what changes of each GPU, before anybody sees the file.
    """
    path = state_path(machine.state.folder, host)
    if path.exists() and StateFile(path).fits:
        return path
    places = nvidia_gpus(machine.graph, host)
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    size = _bytes("hal_header") + len(places) * _bytes("hal_gpu") + len(places) ** 2
    with fresh.open("wb") as file:
        file.write(b"\0" * _bytes("hal_header"))
        file.truncate(size)
        file.seek(0)
        file.write(bytes(_header(machine, len(places), size)))
    state = StateFile(fresh)
    for index, place in enumerate(places):
        write_gpu(state.gpus[index], index, place, places)
        fill(state.gpus[index], place)
    matrix = nearness(places)
    with fresh.open("r+b") as file:
        file.seek(size - len(matrix))
        file.write(matrix)
    fresh.replace(path)
    return path


def _header(machine: Machine, count: int, size: int) -> Any:
    header = struct("hal_header")()
    header.magic, header.layout = MAGIC, number("HAL_LAYOUT")
    header.gpu_bytes, header.gpu_count = _bytes("hal_gpu"), count
    write_clock(header, machine)
    header.contexts_slots, header.contexts_memory, header.contexts_pid = SLOTS, MEMORY, PID
    header.contexts_base, header.contexts_counters, header.contexts_counter_stride = BASE, COUNTERS, SLOTS
    header.matrix_offset, header.file_bytes = size - count**2, size
    return header


def write_clock(header: Any, machine: Machine) -> None:
    """Say where the library gets the time: the kernel, the word that processes share, or the last change."""
    kind = 0 if isinstance(machine.clock, RealClock) else 1 if isinstance(machine.clock, SharedClock) else 2
    header.clock_kind, header.clock_word, header.changed_at = kind, CLOCK_WORD, machine.clock.now()


def _bytes(name: str) -> int:
    return ctypes.sizeof(struct(name))
