"""Which GPUs there are: those that NVML tells of, and those that it told of before and does not any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from hal.drivers.contract import Problem
from hal.drivers.guarded import Call
from hal.errors import DeadlineExceeded, DeviceGone, DeviceNotFound
from hal.interfaces.deadline import Deadline
from hal_nvidia import errors as e
from hal_nvidia.board import Board, pci_address, text
from hal_nvidia.describe import NAME, Places, identify, kernel_addresses, kernel_uuid
from hal_nvidia.library import Library
from hal_nvidia.nvlink import find_links


class Boards:
    """The GPUs of this machine by UUID, kept from look to look: what one has told is remembered when it is lost."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._lock = threading.Lock()
        self._boards: dict[str, Board] = {}
        self.partitions: dict[str, str] = {}
        """The GPU of every MIG device that was seen."""

    def __iter__(self) -> Iterator[Board]:
        return iter(tuple(self._boards.values()))

    @property
    def known(self) -> bool:
        """True once GPUs were looked for."""
        return bool(self._boards)

    def get(self, uuid: str) -> Board | None:
        """Return a GPU, None if it was never seen."""
        return self._boards.get(uuid)

    def look(self, places: Places, deadline: Deadline) -> tuple[Problem, ...]:
        """Find the GPUs. What cannot be asked is a problem, and if it was known before, a lost GPU."""
        if any(board.lost for board in self) or (self.known and len(places.nvidia) > len(self._boards)):
            self.library.refresh()  # a GPU that came back is seen by an NVML that was started after it
        call = Call(lambda: self._enumerate(places), "nvmlDeviceGetCount")
        if not call.join(deadline):
            raise DeadlineExceeded(
                "NVML does not answer which GPUs there are",
                during="discover",
                hint="look at dmesg; a GPU whose driver hangs needs a reset or a reboot",
            )
        if call.error is not None:
            raise call.error
        return call.value or ()

    def _enumerate(self, places: Places) -> tuple[Problem, ...]:
        problems: list[Problem] = []
        seen: set[str] = set()
        silent: list[int] = []
        for board in self:
            if not board.address:
                del self._boards[board.uuid]  # a GPU without a name is counted anew at every look
        with self.library.in_use() as nvml:
            for index in range(nvml.nvmlDeviceGetCount()):
                uuid = self._adopt(nvml, index, problems)
                if uuid:
                    seen.add(uuid)
                else:
                    silent.append(index)
        for board in self:
            board.lost = board.uuid not in seen
        self._add_ghosts(places, silent)
        return tuple(problems)

    def _add_ghosts(self, places: Places, silent: list[int]) -> None:
        """Keep a place for GPUs that NVML counts or the kernel lists, and that do not say who they are."""
        known = {board.address for board in self}
        for address in sorted({*places.nvidia, *kernel_addresses()} - known):
            uuid = kernel_uuid(address)
            if uuid is not None and uuid not in self._boards:
                self._ghost(uuid, address, len(self._boards))
        lost = sum(board.lost for board in self)
        for index in silent[lost:]:
            self._ghost(f"{places.node}/{NAME}{index}", "", index)

    def _ghost(self, uuid: str, address: str, index: int) -> None:
        ghost = self._boards[uuid] = Board(uuid, address)
        ghost.index, ghost.lost = index, True

    def _adopt(self, nvml: Any, index: int, problems: list[Problem]) -> str | None:
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            address = pci_address(text(nvml.nvmlDeviceGetPciInfo(handle).busId))
            uuid = text(nvml.nvmlDeviceGetUUID(handle))
        except Exception as error:  # a guard around the library: one GPU that cannot be asked hides no other
            if e.code_of(error) is None:
                raise
            problems.append(_problem(f"GPU {index}: NVML answers: {error}"))
            return None
        with self._lock:
            board = self._boards.get(uuid)
            if board is None:
                board = self._boards[uuid] = Board(uuid, address)
        board.address = address
        try:
            board.adopt(nvml, handle, index, self.library.generation)
            if not board.identity:
                board.identity = identify(nvml, handle)
            links = find_links(nvml, handle)
        except Exception as error:  # the same guard: known by name, and lost
            if e.code_of(error) not in e.LOST:
                raise
            return None
        board.links = tuple(link.number for link in links)
        board.all_up = [1] * len(links)
        board.links_seen_up |= {link.number for link in links if link.up or link.switch or link.peer is not None}
        return uuid

    def find(self, device_id: str, step: str, again: Callable[[], object]) -> Board:
        """Return the GPU of a GPU or a MIG device; looks ``again`` for one that was not seen yet."""
        board = self._find(device_id)
        if board is None:
            again()
            board = self._find(device_id)
        if board is None:
            raise DeviceNotFound("NVML knows no such GPU", device=device_id, during=step, hint="hal-probe list")
        return board

    def _find(self, device_id: str) -> Board | None:
        return self._boards.get(self.partitions.get(device_id, device_id))


def gone(device: str, step: str) -> DeviceGone:
    """Return the error of a GPU that NVML does not reach any more."""
    return DeviceGone(
        "the GPU is lost: NVML does not reach it any more",
        device=device,
        during=step,
        hint="look at dmesg for its XID; reset the GPU, or reboot the node",
    )


def _problem(detail: str) -> Problem:
    return Problem(source=NAME, step="discover", detail=detail, hint="dmesg, and nvidia-smi", fatal=False)
