"""The driver: discovery, health, fences, events, and the management of MIG devices, over NVML."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from hal.drivers.contract import READY, Cause, Context, Discovery, Grant, HostRoot, Problem, Readiness
from hal.drivers.fences import Fences, fence_folder
from hal.errors import DeadlineExceeded, DeviceNotFound, HalError, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.model.device import Device
from hal.model.event import Event
from hal.model.health import Condition, Presence
from hal_nvidia import errors as e
from hal_nvidia import health, mig
from hal_nvidia import sharing as sharing_
from hal_nvidia.asking import ask, ask_all
from hal_nvidia.board import Board
from hal_nvidia.boards import Boards, gone
from hal_nvidia.describe import NAME, Places, gpu_device, modes, partition_device
from hal_nvidia.elsewhere import ONLY_HERE, REMEDY
from hal_nvidia.events import Listener, listen, note
from hal_nvidia.library import LIBRARY, Library
from hal_nvidia.nvlink import find_links, wiring
from hal_nvidia.partitioning import PartitioningDriver
from hal_nvidia.sharing import EXCLUSIVE, Sharing, SharingMode, SharingPlan
from hal_nvidia.tenancy import refuse_leftovers, require_daemon

if TYPE_CHECKING:
    from hal.drivers.guard import Guard
    from hal_nvidia.handle import NvidiaGpu


def make_driver(context: Context, library: Library = LIBRARY) -> NvidiaDriver:
    """Return a driver for this machine; one that can also reset where ``nvidia-smi`` is at hand."""
    from hal_nvidia.resetting import ResettingNvidiaDriver, find_tool

    kind = ResettingNvidiaDriver if find_tool(context.environ) is not None else NvidiaDriver
    return kind(context.hosts, context.environ, library)


class NvidiaDriver(PartitioningDriver):
    """Drives the NVIDIA GPUs of this machine and their MIG devices. Creating one loads nothing."""

    name = NAME

    def __init__(self, hosts: Sequence[HostRoot], environ: Mapping[str, str], library: Library = LIBRARY) -> None:
        self._host = next((host for host in hosts if host.root is None), None)
        self.environ = environ
        self.library = library
        self.boards = Boards(library)
        self._fences = Fences(fence_folder(environ))
        self._plan: SharingPlan | None = None
        self._listener: Listener | None = None
        self._listening = -1

    def readiness(self) -> Readiness:
        """Say whether NVML works here, or which of the things that it needs is missing."""
        if self._host is None:
            return Readiness(cause=Cause.NO_HARDWARE, detail=ONLY_HERE, remedy=REMEDY)
        try:
            self._plan = sharing_.parse(self.environ)
        except HalError as error:
            return Readiness(cause=Cause.BROKEN, detail=error.message, remedy=error.hint or "")
        ready = self.library.readiness()
        if not ready.ready:
            return ready
        return READY

    def plan(self, device_id: str) -> Sharing:
        """Return how the GPU of a device is shared."""
        if self._plan is None:
            self._plan = sharing_.parse(self.environ)
        return self._plan.of(sharing_.gpu_of(device_id))

    # what there is

    def discover(self, deadline: Deadline) -> Discovery:
        """Find the GPUs, each followed by its MIG devices or its shares. A lost one is a ghost with its conditions."""
        if self._host is None:
            raise self._no_tree(None, "discover")
        places = Places(self._host)
        try:
            problems = list(self.boards.look(places, deadline))
        except Exception as error:  # a guard around the library: what it reports at the start concerns all GPUs
            if e.code_of(error) is None:
                raise
            raise e.raised(error, "nvidia", "discover") from error
        boards = tuple(self.boards)
        live = [board for board in boards if not board.lost]
        answers, failed = ask_all(self.library, live, _look_closely, deadline, "discover")
        all_links = {uuid: closely["links"] for uuid, closely in answers.items()}
        addresses = {board.address: board.uuid for board in boards}
        self._listen(live)
        now = time.time()
        devices: list[Device] = []
        for board in boards:
            closely = answers.get(board.uuid)
            if closely is None:
                devices.append(self._ghost(board, places, failed.get(board.uuid), now))
                continue
            links = wiring(board, all_links, addresses)
            gpu = gpu_device(board, places, closely["modes"], links, lost=False)
            gpu = msgspec.structs.replace(gpu, conditions=tuple(health.judge(board, closely["reading"], now)))
            devices.extend(self._with_parts(gpu, board, closely, problems))
        return Discovery(devices=tuple(devices), problems=tuple(problems))

    def _with_parts(
        self, gpu: Device, board: Board, closely: Mapping[str, Any], problems: list[Problem]
    ) -> list[Device]:
        sharing = self.plan(board.uuid)
        parts: tuple[mig.Instance, ...] = closely["instances"]
        divided = closely["modes"]["mig_mode"].value == "enabled"
        if not sharing.shared:
            self.boards.partitions.update((part.partition.id, board.uuid) for part in parts)
            found = [gpu]
            for part in parts:
                child = partition_device(gpu, part.partition, part.multiprocessors)
                said = health.said_of(gpu.conditions, child.id, gpu.id)
                found.append(msgspec.structs.replace(child, conditions=said))
            return [self._without_parts_xids(gpu), *found[1:]]
        gpu = self._without_parts_xids(msgspec.structs.replace(gpu, allocatable=False))
        if divided:
            problems.append(
                Problem(
                    source=NAME,
                    step="discover",
                    detail=f"{gpu.name} is in MIG mode and configured for {sharing.mode}: it is leased in neither",
                    hint=f"leave MIG mode, or take {gpu.id} out of {sharing_.SHARING}",
                )
            )
            return [gpu]
        return [gpu, *sharing_.shares_of(gpu, sharing)]

    @staticmethod
    def _without_parts_xids(gpu: Device) -> Device:
        own = tuple(condition for condition in gpu.conditions if condition.device == gpu.id)
        return gpu if own == gpu.conditions else msgspec.structs.replace(gpu, conditions=own)

    def _ghost(self, board: Board, places: Places, error: BaseException | None, now: float) -> Device:
        conditions = self._trouble(board, error, places, now)
        gpu = gpu_device(board, places, {}, (), lost=True)
        return msgspec.structs.replace(gpu, presence=Presence.GHOST, conditions=tuple(conditions))

    def _trouble(self, board: Board, error: BaseException | None, places: Places | None, now: float) -> list[Condition]:
        if isinstance(error, DeadlineExceeded):
            return [health.silent(board, now), *health.remembered(board, now)]
        if error is not None and e.code_of(error) not in e.LOST and not board.lost:
            return [health.broken(board, error, now), *health.remembered(board, now)]
        places = places or (Places(self._host) if self._host is not None else None)
        return health.lost(board, places is not None and places.off_the_bus(board.address), now)

    # how it is

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold now: one thread asks all GPUs in turn, XIDs that were reported included."""
        wanted: dict[str, list[str]] = {}
        for device_id in device_ids:
            board = self._find(device_id, "sample", deadline)
            wanted.setdefault(board.uuid, []).append(device_id)
        boards = [board for board in self.boards if board.uuid in wanted]
        self._hear(deadline)
        answers, failed = ask_all(self.library, boards, _read, deadline, "sample")
        now = time.time()
        found: list[Condition] = []
        for board in boards:
            reading = answers.get(board.uuid)
            if reading is None:
                conditions = self._trouble(board, failed.get(board.uuid), None, now)
                board.lost = board.lost or e.code_of(failed.get(board.uuid) or ValueError()) in e.LOST
            else:
                board.lost = False
                conditions = health.judge(board, reading, now)
            if conditions:
                for device_id in wanted[board.uuid]:
                    found.extend(health.said_of(conditions, device_id, board.uuid))
        return found

    def _listen(self, boards: Sequence[Board]) -> None:
        """Register for events, so that samples know the XIDs of between."""
        if self._listening == self.library.generation and self._listener is not None:
            return
        try:
            with self.library.in_use() as nvml:
                self._listener = Listener(nvml, boards)
                self._listening = self.library.generation
        except Exception as error:  # a guard around the library: without events XIDs are known by the recovery action
            if e.code_of(error) is None:
                raise
            self._listener = None

    def _hear(self, deadline: Deadline) -> None:
        listener = self._listener
        if listener is None or not listener.listens or self._listening != self.library.generation:
            return
        try:
            with self.library.in_use():
                for happening in listener.drain():
                    note(happening, time.time())
        except Exception as error:  # the same guard: a lost GPU spoils the set; the next discovery makes another
            if e.code_of(error) is None:
                raise
            self._listener = None

    def events(self, deadline: Deadline) -> Iterator[Event]:
        """Yield what the GPUs report from this call on until the deadline: XIDs, memory errors, a GPU that is lost."""
        if self._host is None:
            raise self._no_tree(None, "events")
        if not self.boards.known:
            self.discover(or_default(deadline))
        return listen(self.library, tuple(self.boards), deadline)

    # whose it is

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse a lost GPU and a lower fence; see that a share's daemon runs."""
        board = self._whose(device_id, "prepare", deadline)
        ask(self.library, board, "prepare", _answers, deadline)
        sharing = self.plan(device_id)
        if sharing.mode is SharingMode.MPS:
            require_daemon(device_id, sharing)
        self._fences.raise_to(device_id, grant, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Remember the fence, and see that no process of the holder computes any more. A lost GPU is let go."""
        board = self._find(device_id, "unprepare", deadline)
        self._fences.raise_to(device_id, grant, "unprepare")
        if board.lost or self.plan(device_id).shared:
            return  # shares of one GPU cannot be told apart by process
        refuse_leftovers(self.library, board, device_id, deadline)

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> NvidiaGpu:
        """Open a GPU, a MIG device or a share in this process."""
        from hal_nvidia.handle import NvidiaGpu

        guard.check()
        board = self._whose(device_id, "open", deadline)
        ask(self.library, board, "open", _answers, deadline)
        device = next((found for found in self.discover(deadline).devices if found.id == device_id), None)
        if device is None:
            raise DeviceNotFound("it is not there any more", device=device_id, during="open", hint="hal-probe list")
        sharing = self.plan(device_id) if sharing_.is_share(device_id) else EXCLUSIVE
        return NvidiaGpu(self, board, device, guard, sharing)

    def close(self) -> None:
        """Give the event set back; NVML itself stays initialised for the process."""
        listener, self._listener = self._listener, None
        if listener is not None and self._listening == self.library.generation:
            listener.close()

    def _whose(self, device_id: str, step: str, deadline: Deadline) -> Board:
        board = self._find(device_id, step, deadline)
        if board.lost:
            raise gone(device_id, step)
        sharing = self.plan(device_id)
        if sharing.shared and not sharing_.is_share(device_id):
            raise Unsupported(
                f"the GPU is shared ({sharing.mode}); it is leased in shares only",
                device=device_id,
                during=step,
                hint=f"claim a share of it, or take it out of {sharing_.SHARING}",
            )
        if sharing.shared and ask(self.library, board, step, mig.enabled, deadline):
            raise Unsupported(
                f"the GPU is in MIG mode and configured for {sharing.mode}: the two are never mixed",
                device=device_id,
                during=step,
                hint=f"leave MIG mode, or take {board.uuid} out of {sharing_.SHARING}",
            )
        return board

    def _find(self, device_id: str, step: str, deadline: Deadline) -> Board:
        if self._host is None:
            raise self._no_tree(device_id, step)
        gpu = sharing_.gpu_of(device_id)
        found = self.boards.find(gpu, step, lambda: self.discover(deadline))
        if gpu != device_id:
            number = device_id.rpartition("-")[2]
            if not (number.isdigit() and int(number) < self.plan(gpu).shares and self.plan(gpu).shared):
                raise DeviceNotFound(
                    "the GPU has no such share", device=device_id, during=step, hint=f"look at {sharing_.SHARING}"
                )
        return found

    def _no_tree(self, device: str | None, step: str) -> Unsupported:
        return Unsupported(ONLY_HERE, device=device, during=step, hint=REMEDY)


def _look_closely(board: Board) -> dict[str, Any]:
    board.rearm()
    return {
        "links": find_links(board.nvml, board.handle),
        "modes": modes(board.nvml, board.handle) | mig.placements(board),
        "instances": mig.instances(board),
        "reading": board.sampler.read(),
    }


def _read(board: Board) -> Any:
    return board.sampler.read()


def _answers(board: Board) -> None:
    board.nvml.nvmlDeviceGetMemoryInfo(board.handle)
