"""The side of an opened GPU that looks after the device, through NVML alone: it needs no context and no CuPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hal.drivers.opened import OpenedDevice
from hal.errors import InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.gpu import (
    Ecc,
    EccCounts,
    GpuProcess,
    Mode,
    Partition,
    PartitionProfile,
    Peer,
    PowerLimit,
    RowRemapping,
)
from hal.interfaces.operation import Operation
from hal.model.attributes import Attribute, known
from hal_nvidia import errors as e
from hal_nvidia import mig, telemetry
from hal_nvidia.asking import ask
from hal_nvidia.board import Board, process_name
from hal_nvidia.nvlink import link_errors, peers_of
from hal_nvidia.sharing import Sharing

if TYPE_CHECKING:
    from hal.drivers.guard import Guard
    from hal.model.device import Device
    from hal_nvidia.driver import NvidiaDriver

T = TypeVar("T")
_DRAM, _SRAM = 2, 7
_CORRECTED, _UNCORRECTED = 0, 1
_VOLATILE, _AGGREGATE = 0, 1


class GpuManagement(OpenedDevice):
    """A GPU, MIG device or share, opened: what NVML tells of it and lets be set."""

    def __init__(self, driver: NvidiaDriver, board: Board, device: Device, guard: Guard, sharing: Sharing) -> None:
        super().__init__(device, guard)
        self._driver = driver
        self._board = board
        self._sharing = sharing
        self._id = device.id
        self._whole = device.id == board.uuid

    @property
    def sharing(self) -> Sharing:
        """How the GPU is shared with others; ``exclusive`` unless this is a share."""
        return self._sharing

    @property
    def environment(self) -> Mapping[str, str]:
        """What a child process needs in its environment to use this device and nothing else."""
        if self._sharing.shared:
            total = self._board.identity.get("memory_bytes")
            size = total.value if total is not None and isinstance(total.value, int) else None
            return self._sharing.environment(self._board.uuid, size)
        return {"CUDA_VISIBLE_DEVICES": self._id}

    def _ask(self, step: str, work: Callable[[Board], T], deadline: Deadline | None) -> T:
        return ask(self._driver.library, self._board, step, work, or_default(deadline))

    def _ask_whole(self, step: str, work: Callable[[Board], T], deadline: Deadline | None) -> T:
        self._enter(step, deadline)
        if not self._whole:
            raise Unsupported(
                "a part of a GPU cannot do that", device=self._id, during=step, hint=f"open its GPU, {self._board.uuid}"
            )
        return self._ask(step, work, deadline)

    def telemetry(self, *, deadline: Deadline | None = None) -> dict[str, Attribute]:
        """Return what can be measured; a MIG device is told its own memory, and not what is the whole GPU's."""
        self._enter("telemetry", deadline)
        told, memory = self._ask("telemetry", self._read, deadline)
        if self._whole:
            return told
        if self._sharing.shared:
            limit = self._device.capacity["memory_bytes"]
            told["memory_total_bytes"] = known(limit, "config")
            return told
        return telemetry.of_a_partition(told, memory)

    def _read(self, board: Board) -> tuple[dict[str, Attribute], Any]:
        told = telemetry.attributes(board.sampler.read())
        return told, None if self._whole or self._sharing.shared else self._partition_memory(board)

    def _partition_memory(self, board: Board) -> Any:
        try:
            return board.nvml.nvmlDeviceGetMemoryInfo(board.nvml.nvmlDeviceGetHandleByUUID(self._id))
        except Exception as error:  # a guard around the library: what it reports is the value's absence
            if e.code_of(error) is None:
                raise
            return error

    def nvlink_errors(self, *, deadline: Deadline | None = None) -> dict[int, dict[str, int]]:
        """Return the error counts of each NVLink since the driver was loaded; empty where none are counted."""
        return self._ask_whole("nvlink_errors", link_errors, deadline)

    def retired_pages(self, *, deadline: Deadline | None = None) -> tuple[int, int]:
        """Return how many pages were retired for corrected and for uncorrectable errors (before Ampere).

        ``Unsupported`` on boards that remap rows instead.
        """

        def read(board: Board) -> tuple[int, int]:
            corrected, uncorrected = (
                len(board.nvml.nvmlDeviceGetRetiredPages(board.handle, cause)) for cause in (0, 1)
            )
            return corrected, uncorrected

        return self._ask_whole("retired_pages", read, deadline)

    def processes(self, *, deadline: Deadline | None = None) -> Sequence[GpuProcess]:
        """Return who has a context here, by pid; a share cannot tell its own from the other shares'."""
        self._enter("processes", deadline)
        found = self._ask("processes", _processes, deadline)
        if self._whole or self._sharing.shared:
            return found
        return [process for process in found if process.partition == self._id]

    def ecc(self, *, deadline: Deadline | None = None) -> Ecc:
        """Return mode and counts; a part of a GPU tells its GPU's."""
        self._enter("ecc", deadline)
        return self._ask("ecc", _ecc, deadline)

    def set_ecc(self, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for error correction from the next reset on."""

        def change(board: Board) -> Mode:
            board.nvml.nvmlDeviceSetEccMode(board.handle, int(enabled))
            return _mode(board.nvml.nvmlDeviceGetEccMode(board.handle))

        return self._ask_whole("set_ecc", change, deadline)

    def row_remapping(self, *, deadline: Deadline | None = None) -> RowRemapping:
        """Return the rows replaced."""

        def read(board: Board) -> RowRemapping:
            rows = board.nvml.nvmlDeviceGetRemappedRows(board.handle)
            return RowRemapping(correctable=rows[0], uncorrectable=rows[1], pending=bool(rows[2]), failed=bool(rows[3]))

        return self._ask_whole("row_remapping", read, deadline)

    def power_limit(self, *, deadline: Deadline | None = None) -> PowerLimit:
        """Return the limit and its bounds."""
        return self._ask_whole("power_limit", _power_limit, deadline)

    def set_power_limit(self, watts: float | None, *, deadline: Deadline | None = None) -> PowerLimit:
        """Set the limit, or the board's own."""

        def change(board: Board) -> PowerLimit:
            limit = _power_limit(board)
            wanted = limit.default_watts if watts is None else watts
            if not limit.min_watts <= wanted <= limit.max_watts:
                raise InvalidArgument(
                    f"{wanted} W",
                    device=self._id,
                    during="set_power_limit",
                    hint=f"{limit.min_watts:g} to {limit.max_watts:g} W, or None for the board's own",
                )
            board.nvml.nvmlDeviceSetPowerManagementLimit(board.handle, round(wanted * 1000))
            return _power_limit(board)

        return self._ask_whole("set_power_limit", change, deadline)

    def peers(self, *, deadline: Deadline | None = None) -> Sequence[Peer]:
        """Return the other GPUs of the machine, nearest first."""
        return self._ask_whole("peers", lambda board: peers_of(board, tuple(self._driver.boards)), deadline)

    def partitioning(self, *, deadline: Deadline | None = None) -> Mode:
        """Return the mode, now and after the next reset."""
        return self._ask_whole("partitioning", mig.mode, deadline)

    def set_partitioning(self, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for the mode."""
        return self._ask_whole("set_partitioning", lambda board: mig.set_mode(board, enabled), deadline)

    def partition_profiles(self, *, deadline: Deadline | None = None) -> Sequence[PartitionProfile]:
        """Return the shapes that the board knows."""
        return self._ask_whole(
            "partition_profiles", lambda board: tuple(profile.told for profile in mig.profiles(board)), deadline
        )

    def partitions(self, *, deadline: Deadline | None = None) -> Sequence[Partition]:
        """Return the partitions that exist."""
        return self._ask_whole("partitions", mig.partitions, deadline)

    def create_partition(
        self, profile: str, start: int | None = None, *, deadline: Deadline | None = None
    ) -> Operation[Partition]:
        """Make a partition."""
        self._ask_whole("create_partition", mig.mode, deadline)
        return self._driver.create_partition(self._id, profile, start, deadline=deadline)

    def destroy_partition(self, partition_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """End a partition."""
        self._ask_whole("destroy_partition", mig.mode, deadline)
        return self._driver.destroy_partition(self._id, partition_id, deadline=deadline)


def _mode(pair: Sequence[int]) -> Mode:
    return Mode(current=bool(pair[0]), pending=bool(pair[1]))


def _ecc(board: Board) -> Ecc:
    nvml, handle = board.nvml, board.handle
    mode = _mode(nvml.nvmlDeviceGetEccMode(handle))

    def counts(counter: int) -> dict[str, EccCounts]:
        found: dict[str, EccCounts] = {}
        for name, location in (("dram", _DRAM), ("sram", _SRAM)):
            try:
                corrected, uncorrected = (
                    int(nvml.nvmlDeviceGetMemoryErrorCounter(handle, kind, counter, location))
                    for kind in (_CORRECTED, _UNCORRECTED)
                )
            except (
                Exception
            ) as error:  # a guard around the library: boards without SRAM counts tell DRAM's all the same
                if e.code_of(error) not in e.NEVER or location == _DRAM:
                    raise
                continue
            found[name] = EccCounts(corrected=corrected, uncorrected=uncorrected)
        return found

    return Ecc(mode=mode, volatile=counts(_VOLATILE), aggregate=counts(_AGGREGATE))


def _power_limit(board: Board) -> PowerLimit:
    nvml, handle = board.nvml, board.handle
    least, most = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    return PowerLimit(
        watts=nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
        default_watts=nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1000,
        min_watts=least / 1000,
        max_watts=most / 1000,
    )


def _processes(board: Board) -> list[GpuProcess]:
    parts = {(one.gpu_instance, one.compute_instance): one.partition.id for one in mig.instances(board)}
    return [
        GpuProcess(pid=pid, name=process_name(board.nvml, pid), memory_bytes=used, partition=parts.get((gpu, compute)))
        for pid, used, gpu, compute in mig.users(board)
    ]
