"""The mock GPU driver: discovery with partitions as children, health, fences, reset, and the partitions' management."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.drivers.contract import Grant
from hal.drivers.guard import Guard
from hal.errors import Unsupported
from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.gpu import Mode, Partition, PartitionProfile
from hal.interfaces.operation import Operation
from hal.model.device import Device
from hal.model.health import Condition
from hal_mocks.base import MockDriver, tell_lies
from hal_mocks.faults import Fault
from hal_mocks.gpu_boards import GpuBoards, attempt
from hal_mocks.gpu_describe import NAME, mode_attributes, partition_device
from hal_mocks.gpu_health import conditions_of, meet_faults, presence_of
from hal_mocks.gpu_measure import link_now, nvlinks_up
from hal_mocks.machine import Machine, device_not_found


class MockGpuDriver(MockDriver):
    """Drives the GPUs of a mock machine. :attr:`boards` is the door for tests: heat, load, error counts."""

    name = NAME

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.boards = GpuBoards(machine)

    def describe(self) -> Sequence[Device]:
        """Return every GPU, each followed by its partitions."""
        found: list[Device] = []
        for gpu, place in self.boards.places.items():
            record = self.boards.store.record(gpu)
            found.append(place.device)
            found.extend(partition_device(place.device, partition) for partition in record.partitions)
        return found

    def conditions_of(self, device: Device, fault: Fault) -> Sequence[Condition]:
        """Return what a fault looks like on a GPU."""
        return conditions_of(device.id, fault, self.machine.clock.now())

    def look_at(self, device: Device) -> Device:
        """Return the device with its modes, its link as it is, and what is wrong with it or with its GPU."""
        gpu = device.parent or device.id
        place = self.boards.place(gpu)
        faults = self.machine.faults_of(gpu)
        attributes = dict(device.attributes)
        links = device.links
        if device.parent is None:
            attributes |= mode_attributes(place.gpu, self.boards.store.record(gpu))
        if faults and device.parent is None:
            attributes |= link_now(device, faults)
            if not nvlinks_up(faults, self.machine.clock.now()):
                links = tuple(
                    msgspec.structs.replace(link, state="down") if link.type == "nvlink" else link for link in links
                )
        conditions = self.boards.conditions(gpu, device.id)
        if device.parent is not None:
            faults = (*faults, *self.machine.faults_of(device.id))
        attributes = tell_lies(attributes, faults)
        memory = attributes["memory_bytes"].value
        return msgspec.structs.replace(
            device,
            attributes=attributes,
            capacity=device.capacity | ({"memory_bytes": memory} if isinstance(memory, int) else {}),
            links=links,
            conditions=conditions,
            presence=presence_of(faults),
        )

    def find(self, device_id: str) -> Device:
        """Return one GPU or partition as it is."""
        return self.look_at(self._described(device_id))

    def _described(self, device_id: str) -> Device:
        place = self.boards.places.get(device_id)
        if place is not None:
            return place.device
        for gpu, place in self.boards.places.items():
            for partition in self.boards.store.record(gpu).partitions:
                if partition.id == device_id:
                    return partition_device(place.device, partition)
        raise device_not_found(device_id)

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return what is wrong with the devices now: faults, and what the boards remember."""
        found: list[Condition] = []
        for device_id in device_ids:
            device = self._described(device_id)
            found.extend(self.boards.conditions(device.parent or device.id, device.id))
        return found

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse a lost device and a lower fence; remember the highest."""
        self._meet(self._described(device_id), "prepare", deadline)
        self._raise_fence(device_id, grant, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse a lower fence; end the device's contexts, so that a holder who does not stop is stopped.

        Partitions have leases of their own and are left alone.
        """
        self._described(device_id)
        self._raise_fence(device_id, grant, "unprepare")
        self.boards.contexts(device_id).end_all()

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> Handle:
        """Open a GPU or a partition."""
        from hal_mocks.gpu_handle import MockGpuHandle

        guard.check()
        device = self._described(device_id)
        self._meet(device, "open", deadline)
        return MockGpuHandle(self.machine, self.look_at(device), guard, self.boards)

    def _meet(self, device: Device, step: str, deadline: Deadline) -> None:
        meet_faults(self.machine, device, step, deadline)

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset a GPU. Its partitions end with it; a GPU that has fallen off the bus stays there."""
        device = self._described(device_id)
        if device.parent is not None:
            unsupported = Unsupported(
                "a partition is reset with its GPU", device=device_id, during="reset", hint=f"reset {device.parent}"
            )
            return Operation.failed(unsupported, device_id, "reset")
        return attempt(device_id, "reset", lambda: self.boards.reset(device_id))

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """End what computes on a GPU or a partition; its memory went with the contexts.

        Also forgets the counts of memory errors since the last reset, and a power limit.
        """
        meet_faults(self.machine, self._described(device_id), "scrub", or_default(deadline))
        return attempt(device_id, "scrub", lambda: self.boards.scrub(device_id))

    def partitioning(self, device_id: str, *, deadline: Deadline | None = None) -> Mode:
        """Return the mode, now and after the next reset."""
        self._manage(device_id, "partitioning", deadline)
        return self.boards.partitioning(device_id)

    def set_partitioning(self, device_id: str, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for the mode from the next reset on."""
        self._manage(device_id, "set_partitioning", deadline)
        return self.boards.set_partitioning(device_id, enabled)

    def partition_profiles(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[PartitionProfile]:
        """Return the shapes that the board knows."""
        self._manage(device_id, "partition_profiles", deadline)
        return self.boards.partition_profiles(device_id)

    def partitions(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[Partition]:
        """Return the partitions that exist."""
        self._manage(device_id, "partitions", deadline)
        return self.boards.partitions(device_id)

    def create_partition(
        self, device_id: str, profile: str, start: int | None = None, *, deadline: Deadline | None = None
    ) -> Operation[Partition]:
        """Make a partition."""
        self._manage(device_id, "create_partition", deadline)
        return attempt(device_id, "create_partition", lambda: self.boards.create_partition(device_id, profile, start))

    def destroy_partition(
        self, device_id: str, partition_id: str, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """End a partition."""
        self._manage(device_id, "destroy_partition", deadline)
        return attempt(device_id, "destroy_partition", lambda: self.boards.destroy_partition(device_id, partition_id))

    def _manage(self, device_id: str, step: str, deadline: Deadline | None) -> None:
        meet_faults(self.machine, self.boards.place(device_id).device, step, or_default(deadline))
