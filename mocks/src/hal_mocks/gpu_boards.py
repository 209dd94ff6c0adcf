"""The management side of all GPUs of a mock machine: modes, partitions, error counts, telemetry, reset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from hal.errors import DeviceBusy, DeviceNotFound, HalError, InvalidArgument, Unsupported
from hal.interfaces.gpu import Ecc, EccCounts, GpuProcess, Mode, Partition, PartitionProfile, PowerLimit, RowRemapping
from hal.interfaces.operation import Operation
from hal.model.attributes import Attribute
from hal.model.health import Condition
from hal_mocks.faults import FaultType
from hal_mocks.gpu_contexts import BUSY_NS, TO_DEVICE, TO_HOST, Contexts
from hal_mocks.gpu_describe import Place, places_of
from hal_mocks.gpu_health import all_conditions, gone, loses_device, recovery_action
from hal_mocks.gpu_measure import measured, replays_per_second
from hal_mocks.gpu_mig import place, profiles_of
from hal_mocks.gpu_store import Counts, GpuStore, Record, after_reset, after_scrub
from hal_mocks.gpu_thermal import Thermal, advance
from hal_mocks.machine import Machine, device_not_found

T = TypeVar("T")
HEALED_BY_RESET = frozenset({FaultType.XID, FaultType.ECC_UNCORRECTABLE, FaultType.LOST, FaultType.HANG})
LEAST_POWER_SHARE = 2 / 7  # of the board's own limit: an H100 of 700 W can be told to draw 200 W


class GpuBoards:
    """All GPUs of one machine, by id; a partition is reached through its GPU."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.store = GpuStore(machine)
        self.places: dict[str, Place] = places_of(machine.graph)
        self._contexts: dict[str, Contexts] = {}

    def place(self, gpu: str) -> Place:
        """Return a whole GPU, or raise :class:`~hal.errors.DeviceNotFound`."""
        found = self.places.get(gpu)
        if found is None:
            raise device_not_found(gpu)
        return found

    def contexts(self, device_id: str) -> Contexts:
        """Return the page on which the contexts of a GPU or a partition are counted."""
        found = self._contexts.get(device_id)
        if found is None:
            found = self._contexts[device_id] = Contexts(self.machine.state.device(device_id), device_id)
        return found

    def conditions(self, gpu: str, device_id: str | None = None) -> tuple[Condition, ...]:
        """Return what is wrong with a GPU, said of itself or of one of its partitions."""
        said_of = device_id or gpu
        now = self.machine.clock.now()
        faults = self.machine.faults_of(gpu)
        if device_id is not None and device_id != gpu:
            faults = (*faults, *self.machine.faults_of(device_id))
        return all_conditions(said_of, self.store.record(gpu), faults, now)

    # partitions

    def partitioning(self, gpu: str) -> Mode:
        """Return the mode, now and after the next reset."""
        self._divisible(gpu, "partitioning")
        record = self.store.record(gpu)
        return Mode(current=record.partitioning, pending=record.partitioning_pending)

    def set_partitioning(self, gpu: str, enabled: bool) -> Mode:
        """Ask for the mode."""
        self._divisible(gpu, "set_partitioning")

        def change(record: Record) -> Record:
            if record.partitions and not enabled:
                raise DeviceBusy(
                    f"{len(record.partitions)} partition(s) exist",
                    device=gpu,
                    during="set_partitioning",
                    hint="destroy them first",
                )
            return msgspec.structs.replace(record, partitioning_pending=enabled)

        record = self.store.update(gpu, change)
        return Mode(current=record.partitioning, pending=record.partitioning_pending)

    def partition_profiles(self, gpu: str) -> tuple[PartitionProfile, ...]:
        """Return the shapes that the board knows."""
        return profiles_of(self._divisible(gpu, "partition_profiles").gpu)

    def partitions(self, gpu: str) -> tuple[Partition, ...]:
        """Return the partitions that exist."""
        self._divisible(gpu, "partitions")
        return self.store.record(gpu).partitions

    def create_partition(self, gpu: str, profile: str, start: int | None) -> Partition:
        """Make a partition."""
        board = self._divisible(gpu, "create_partition").gpu
        made: list[Partition] = []

        def change(record: Record) -> Record:
            if not record.partitioning:
                raise Unsupported(
                    "the GPU is not in the mode in which it can be divided",
                    device=gpu,
                    during="create_partition",
                    hint="set_partitioning(True), then reset",
                )
            made.append(place(board, record.partitions, profile, start))
            partitions = sorted((*record.partitions, *made), key=lambda partition: partition.start)
            return msgspec.structs.replace(record, partitions=tuple(partitions))

        self.store.update(gpu, change)
        return made[0]

    def destroy_partition(self, gpu: str, partition_id: str) -> None:
        """End a partition that nobody uses."""
        self._divisible(gpu, "destroy_partition")

        def change(record: Record) -> Record:
            left = tuple(partition for partition in record.partitions if partition.id != partition_id)
            if len(left) == len(record.partitions):
                raise DeviceNotFound(
                    f"no partition of {gpu}", device=partition_id, during="destroy_partition", hint="partitions()"
                )
            holders = self.contexts(partition_id).holders()
            if holders:
                raise DeviceBusy(
                    f"process {holders[0][0]} uses it",
                    device=partition_id,
                    during="destroy_partition",
                    hint="end the process, or release its lease",
                )
            return msgspec.structs.replace(record, partitions=left)

        self.store.update(gpu, change)

    def _divisible(self, gpu: str, step: str) -> Place:
        found = self.place(gpu)
        if not found.gpu.mig:
            raise Unsupported(
                f"{found.gpu.model} cannot be divided", device=gpu, during=step, hint="a board with MIG (A100, H100)"
            )
        return found

    # errors of memory

    def ecc(self, gpu: str) -> Ecc:
        """Return mode and counts."""
        record = self.store.record(gpu)
        return Ecc(
            mode=Mode(current=record.ecc, pending=record.ecc_pending),
            volatile=_by_location(record.volatile),
            aggregate=_by_location(record.aggregate),
        )

    def set_ecc(self, gpu: str, enabled: bool) -> Mode:
        """Ask for error correction from the next reset on."""
        record = self.store.update(gpu, lambda before: msgspec.structs.replace(before, ecc_pending=enabled))
        return Mode(current=record.ecc, pending=record.ecc_pending)

    def row_remapping(self, gpu: str) -> RowRemapping:
        """Return the rows replaced."""
        board = self.place(gpu).gpu
        if float(board.compute_capability) < 8.0:
            raise Unsupported(
                f"{board.architecture} retires pages, it replaces no rows",
                device=gpu,
                during="row_remapping",
                hint="Ampere or later",
            )
        record = self.store.record(gpu)
        if record.partitions:
            raise Unsupported(
                "not readable while partitions exist", device=gpu, during="row_remapping", hint="destroy them first"
            )
        return RowRemapping(
            correctable=record.remapped_correctable,
            uncorrectable=record.remapped_uncorrectable,
            pending=record.remap_pending > 0,
            failed=record.remap_failed,
        )

    # power

    def power_limit(self, gpu: str) -> PowerLimit:
        """Return the limit and its bounds."""
        own = float(self.place(gpu).gpu.power_limit_watts)
        chosen = self.store.record(gpu).power_limit_watts
        return PowerLimit(
            watts=own if chosen is None else chosen,
            default_watts=own,
            min_watts=round(own * LEAST_POWER_SHARE),
            max_watts=own,
        )

    def set_power_limit(self, gpu: str, watts: float | None) -> PowerLimit:
        """Set the limit; the heat of the time before counts under the old one."""
        bounds = self.power_limit(gpu)
        if watts is not None and not bounds.min_watts <= watts <= bounds.max_watts:
            raise InvalidArgument(
                f"{watts} W",
                device=gpu,
                during="set_power_limit",
                hint=f"{bounds.min_watts:g} to {bounds.max_watts:g} W, or None for the board's own",
            )
        self.thermal(gpu)
        limit = None if watts is None else float(watts)
        self.store.update(gpu, lambda before: msgspec.structs.replace(before, power_limit_watts=limit))
        self.machine.show()
        return self.power_limit(gpu)

    # what can be measured

    def used_bytes(self, gpu: str) -> int:
        """Return the memory in use on a GPU, its partitions included."""
        pages = (gpu, *(partition.id for partition in self.store.record(gpu).partitions))
        return sum(used for page in pages for _, used in self.contexts(page).holders())

    def processes(self, gpu: str) -> tuple[GpuProcess, ...]:
        """Return who has a context on a GPU or one of its partitions."""
        pages: tuple[str | None, ...] = (None, *(partition.id for partition in self.store.record(gpu).partitions))
        found = [
            GpuProcess(pid=pid, name=_command(pid), memory_bytes=used, partition=page)
            for page in pages
            for pid, used in self.contexts(page or gpu).holders()
        ]
        return tuple(sorted(found, key=lambda process: process.pid))

    def thermal(self, gpu: str) -> Thermal:
        """Let the thermal model catch up with the clock."""
        limit = self.power_limit(gpu).watts
        pages = (gpu, *(partition.id for partition in self.store.record(gpu).partitions))
        busy_ns = sum(self.contexts(page).counter(BUSY_NS) for page in pages)
        replays = replays_per_second(self.machine.faults_of(gpu))
        now = self.machine.clock.now()
        return self.store.thermal(gpu, lambda before: advance(before, now, limit, busy_ns, replays))

    def set_surroundings(self, gpu: str, *, load: float | None = None, inlet_celsius: float | None = None) -> None:
        """Say how busy a GPU is besides what is really computed (0 to 1), and how warm the air that cools it."""
        self.thermal(gpu)

        def change(before: Thermal) -> Thermal:
            return msgspec.structs.replace(
                before,
                load=before.load if load is None else load,
                inlet_celsius=before.inlet_celsius if inlet_celsius is None else inlet_celsius,
            )

        self.store.thermal(gpu, change)
        self.machine.show()

    def telemetry(self, gpu: str) -> dict[str, Attribute]:
        """Return everything that can be measured on a whole GPU, lies included."""
        found = self.place(gpu)
        contexts = self.contexts(gpu)
        return measured(
            found,
            self.machine.faults_of(gpu),
            self.thermal(gpu),
            power_limit_watts=self.power_limit(gpu).watts,
            used_bytes=self.used_bytes(gpu),
            received_bytes=contexts.counter(TO_DEVICE),
            sent_bytes=contexts.counter(TO_HOST),
            action=recovery_action(self.conditions(gpu)),
        )

    # repair

    def end_contexts(self, device_id: str) -> None:
        """End whatever still computes on a device and its partitions."""
        pages = [device_id]
        if device_id in self.places:
            pages += [partition.id for partition in self.store.record(device_id).partitions]
        for page in pages:
            self.contexts(page).end_all()

    def scrub(self, device_id: str) -> None:
        """Wipe one tenant's traces: contexts and their memory, counts of errors since the reset, a power limit."""
        gpu = next((g for g, p in self._parents() if p == device_id), device_id)
        self.place(gpu)
        pages = [device_id]
        if gpu == device_id:
            pages += [partition.id for partition in self.store.record(gpu).partitions]
            for partition in pages[1:]:
                if self.contexts(partition).holders():
                    raise DeviceBusy(
                        f"{partition} is in use", device=gpu, during="scrub", hint="take its partitions back first"
                    )
        for page in pages:
            self.contexts(page).end_all()
        if gpu == device_id:
            self.store.update(gpu, after_scrub)
            self.machine.show()

    def _parents(self) -> Iterator[tuple[str, str]]:
        for gpu in self.places:
            for partition in self.store.record(gpu).partitions:
                yield gpu, partition.id

    def reset(self, gpu: str) -> None:
        """Reset a GPU: pending modes hold, what a reset heals is healed, every context has ended."""
        self.place(gpu)
        faults = self.machine.faults_of(gpu)
        if any(loses_device(fault) for fault in faults):
            raise gone(gpu, "reset")
        self.end_contexts(gpu)
        self.store.record(gpu)
        self.store.update(gpu, after_reset)
        now = self.machine.clock.now()
        for fault in self.machine.state.faults():
            if fault.device == gpu and fault.type in HEALED_BY_RESET and fault.onset_at <= now:
                self.machine.heal(id=fault.id)
        self.machine.show()
        for fault in faults:
            if fault.type is FaultType.SLOW:
                self.machine.clock.sleep(fault.seconds)


def attempt(device: str, step: str, work: Callable[[], T]) -> Operation[T]:
    """Do what a mock does at once, and carry the outcome as an operation."""
    try:
        return Operation.completed(work(), device, step)
    except HalError as error:
        return Operation.failed(error, device, step)


def _by_location(counts: Counts) -> dict[str, EccCounts]:
    return {
        "dram": EccCounts(corrected=counts.dram_corrected, uncorrected=counts.dram_uncorrected),
        "sram": EccCounts(corrected=counts.sram_corrected, uncorrected=counts.sram_uncorrected),
    }


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
