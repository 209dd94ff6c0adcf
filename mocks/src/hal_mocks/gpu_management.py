"""The side of an opened mock GPU that looks after the device: telemetry, errors, partitions, peers."""

from __future__ import annotations

from collections.abc import Sequence

from hal.drivers.guard import Guard
from hal.errors import Unsupported
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.gpu import Ecc, GpuProcess, Mode, Partition, PartitionProfile, Peer, PowerLimit, RowRemapping
from hal.interfaces.operation import Operation
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device
from hal_mocks.base import MockHandle
from hal_mocks.faults import Fault
from hal_mocks.gpu_boards import GpuBoards, attempt
from hal_mocks.gpu_describe import SOURCE, peers_of
from hal_mocks.gpu_health import meet_faults
from hal_mocks.gpu_measure import nvlinks_up
from hal_mocks.machine import Machine

# What a partition can tell of its own; the rest is the whole GPU's and not told to one tenant of several.
_OF_A_PARTITION = frozenset({"memory_used_bytes", "memory_free_bytes", "memory_total_bytes", "recovery_action"})


class MockGpuManagement(MockHandle):
    """What needs no context on the device: it answers while work cannot run."""

    def __init__(self, machine: Machine, device: Device, guard: Guard, boards: GpuBoards) -> None:
        super().__init__(machine, device, guard)
        self._boards = boards
        self._gpu = device.parent or device.id
        self._clean = -1

    def _enter(self, step: str, deadline: Deadline | None = None) -> tuple[Fault, ...]:
        """Raise if the lease has ended, the handle is closed or the device is gone."""
        self._check()
        if deadline is not None:
            self._be_in_time(step, deadline)
        return () if self._control[0] == self._clean else self._meet(step, deadline)

    def _meet(self, step: str, deadline: Deadline | None) -> tuple[Fault, ...]:
        self._be_open(step)
        generation = self._control[0]
        concerned = (self._id, self._gpu)
        if any(fault.device in concerned for fault in self._machine.state.faults()):
            return meet_faults(self._machine, self._device, step, or_default(deadline))
        # Nothing ever set concerns this device: until the list of faults changes, one load says so.
        if self._sound:
            self._clean = generation
        return ()

    @property
    def _sound(self) -> bool:
        return True

    def _collect(self) -> None:
        """Count memory that was let go without being freed."""

    def telemetry(self, *, deadline: Deadline | None = None) -> dict[str, Attribute]:
        """Return what can be measured; what a partition is not told says so."""
        self._enter("telemetry", deadline)
        self._collect()
        told = self._boards.telemetry(self._gpu)
        if self._gpu == self._id:
            return told
        total = self._device.capacity["memory_bytes"]
        used = sum(used for _, used in self._boards.contexts(self._id).holders())
        for name in told:
            if name not in _OF_A_PARTITION:
                told[name] = absent(Absence.UNSUPPORTED, SOURCE, "a partition is not told")
        told["memory_used_bytes"] = known(used, SOURCE)
        told["memory_free_bytes"] = known(total - used, SOURCE)
        told["memory_total_bytes"] = known(total, SOURCE)
        return told

    def processes(self, *, deadline: Deadline | None = None) -> Sequence[GpuProcess]:
        """Return who has a context here."""
        self._enter("processes", deadline)
        self._collect()
        found = self._boards.processes(self._gpu)
        if self._gpu == self._id:
            return found
        return [process for process in found if process.partition == self._id]

    def ecc(self, *, deadline: Deadline | None = None) -> Ecc:
        """Return mode and counts, a partition's GPU's."""
        self._enter("ecc", deadline)
        return self._boards.ecc(self._gpu)

    def set_ecc(self, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for error correction from the next reset on."""
        self._enter_whole("set_ecc", deadline)
        return self._boards.set_ecc(self._gpu, enabled)

    def row_remapping(self, *, deadline: Deadline | None = None) -> RowRemapping:
        """Return the rows replaced."""
        self._enter_whole("row_remapping", deadline)
        return self._boards.row_remapping(self._gpu)

    def power_limit(self, *, deadline: Deadline | None = None) -> PowerLimit:
        """Return the limit and its bounds."""
        self._enter_whole("power_limit", deadline)
        return self._boards.power_limit(self._gpu)

    def set_power_limit(self, watts: float | None, *, deadline: Deadline | None = None) -> PowerLimit:
        """Set the limit, or the board's own."""
        self._enter_whole("set_power_limit", deadline)
        return self._boards.set_power_limit(self._gpu, watts)

    def partitioning(self, *, deadline: Deadline | None = None) -> Mode:
        """Return the mode, now and after the next reset."""
        self._enter_whole("partitioning", deadline)
        return self._boards.partitioning(self._gpu)

    def set_partitioning(self, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for the mode from the next reset on."""
        self._enter_whole("set_partitioning", deadline)
        return self._boards.set_partitioning(self._gpu, enabled)

    def partition_profiles(self, *, deadline: Deadline | None = None) -> Sequence[PartitionProfile]:
        """Return the shapes that the board knows."""
        self._enter_whole("partition_profiles", deadline)
        return self._boards.partition_profiles(self._gpu)

    def partitions(self, *, deadline: Deadline | None = None) -> Sequence[Partition]:
        """Return the partitions that exist."""
        self._enter_whole("partitions", deadline)
        return self._boards.partitions(self._gpu)

    def create_partition(
        self, profile: str, start: int | None = None, *, deadline: Deadline | None = None
    ) -> Operation[Partition]:
        """Make a partition."""
        self._enter_whole("create_partition", deadline)
        return attempt(self._gpu, "create_partition", lambda: self._boards.create_partition(self._gpu, profile, start))

    def destroy_partition(self, partition_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """End a partition."""
        self._enter_whole("destroy_partition", deadline)
        return attempt(self._gpu, "destroy_partition", lambda: self._boards.destroy_partition(self._gpu, partition_id))

    def peers(self, *, deadline: Deadline | None = None) -> Sequence[Peer]:
        """Return the other GPUs of the host, nearest first."""
        faults = self._enter_whole("peers", deadline)
        up = nvlinks_up(faults, self._machine.clock.now())
        return peers_of(self._boards.place(self._gpu), self._boards.places, up)

    def _enter_whole(self, step: str, deadline: Deadline | None) -> tuple[Fault, ...]:
        faults = self._enter(step, deadline)
        if self._gpu != self._id:
            raise Unsupported(
                "a partition cannot do that", device=self._id, during=step, hint=f"open its GPU, {self._gpu}"
            )
        return faults
