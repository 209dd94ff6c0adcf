"""An opened GPU or partition: what amdgpu and KFD tell of it, and lets be set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from hal.errors import DeviceGone, InvalidArgument, Unsupported
from hal.host.tree import HostTree
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
from hal.interfaces.gpu_compute import MemoryInfo
from hal.interfaces.operation import Operation
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.health import Action
from hal_amd import health
from hal_amd.computing import ManagedOnly
from hal_amd.reading import Reading, number, read
from hal_amd.writing import write

if TYPE_CHECKING:
    from hal.drivers.guard import Guard
    from hal_amd.driver import AmdDriver, Seen

T = TypeVar("T")
_CAPS = ("power1_cap", "power1_cap_default", "power1_cap_min", "power1_cap_max")
_MEMORY = "umc"
_LOCATIONS = {_MEMORY: "dram"}
_OF_A_PART = frozenset({"memory_total_bytes", "memory_used_bytes", "memory_free_bytes", "recovery_action"})


class RetiredPages(msgspec.Struct, frozen=True, kw_only=True):
    """Pages of memory taken out of use over the board's life: done, waiting for a reset, and in vain."""

    retired: int
    pending: int
    failed: int


class AmdGpu(ManagedOnly):
    """A GPU or partition, opened. Of a partition only memory in use and processes are its own."""

    def __init__(self, driver: AmdDriver, seen: Seen, guard: Guard) -> None:
        super().__init__(seen.device, guard)
        self._driver = driver
        self._seen = seen
        self._memory = health.Memory()

    def _ask(self, step: str, work: Callable[[HostTree], T], deadline: Deadline | None) -> T:
        self._enter(step, deadline)
        seen = self._seen
        return self._driver.lookout.ask(seen.host, seen.card, seen.device.id, step, work, or_default(deadline))

    def _whole(self, step: str, deadline: Deadline | None) -> None:
        self._enter(step, deadline)
        if self._seen.node is not None:
            raise self._unsupported(step, "a part of a GPU cannot do that", f"open its GPU, {self._seen.card.id}")

    def _unsupported(self, step: str, what: str, hint: str) -> Unsupported:
        return Unsupported(what, device=self._device.id, during=step, hint=hint)

    def _look(self, step: str, deadline: Deadline | None) -> Reading:
        reading = self._ask(step, lambda machine: read(machine.sys, self._seen.card), deadline)
        if reading.lost:
            raise DeviceGone(
                "the GPU does not answer any more", device=self._device.id, during=step, hint="reboot the node"
            )
        return reading

    def telemetry(self, *, deadline: Deadline | None = None) -> dict[str, Attribute]:
        """Return what can be measured. A partition is told its memory; the rest is the whole GPU's."""
        reading = self._look("telemetry", deadline)
        told = dict(reading.told)
        conditions = health.judge(self._seen.card, reading, self._memory, 0.0)
        actions = [condition.action for condition in conditions]
        told["recovery_action"] = known(max(actions, key=tuple(Action).index, default=Action.NONE), "computed")
        if self._seen.node is None:
            return told
        memory = self.memory_info(deadline=deadline)
        told |= {
            "memory_total_bytes": known(memory.total_bytes, "kfd"),
            "memory_used_bytes": known(memory.used_bytes, "kfd"),
            "memory_free_bytes": known(memory.free_bytes, "kfd"),
        }
        for name in told:
            if name not in _OF_A_PART:
                told[name] = absent(Absence.UNSUPPORTED, "sysfs", "a part of a GPU is not told")
        return told

    def memory_info(self, *, deadline: Deadline | None = None) -> MemoryInfo:
        """Return what there is and what is taken; of a partition, by the processes that KFD lists."""
        step = "memory_info"
        if self._seen.node is not None:
            used = sum(process.memory_bytes or 0 for process in self.processes(deadline=deadline))
            return MemoryInfo(total_bytes=self._device.capacity["memory_bytes"], used_bytes=used)
        told = self._look(step, deadline).told
        found = [told[name].value for name in ("memory_total_bytes", "memory_used_bytes")]
        if not all(isinstance(value, int) for value in found):
            raise self._unsupported(step, "the driver does not tell its memory", "look at telemetry() for the reason")
        total, taken = (int(value) for value in found if isinstance(value, int))
        return MemoryInfo(total_bytes=total, used_bytes=taken)

    def processes(self, *, deadline: Deadline | None = None) -> Sequence[GpuProcess]:
        """Return who holds memory or a queue of KFD's here, by pid."""
        return self._ask("processes", lambda machine: self._driver.processes(self._seen, machine), deadline)

    def peers(self, *, deadline: Deadline | None = None) -> Sequence[Peer]:
        """Return the other GPUs of the machine, nearest first."""
        self._whole("peers", deadline)
        return self._driver.peers(self._seen)

    # errors

    def ecc(self, *, deadline: Deadline | None = None) -> Ecc:
        """Return the counts of the memory (``dram``) and of each block of the chip that counts its errors.

        They begin when the driver is loaded. Over the board's life only retired pages are kept, so ``aggregate`` is
        what it is at least: of the memory's uncorrectable errors no fewer than pages that were retired.
        """
        reading = self._look("ecc", deadline)
        if not reading.errors:
            raise self._unsupported("ecc", "this board, or its driver, counts no errors", "amdgpu.ras_enable=1, reboot")
        now = {
            _LOCATIONS.get(block, block): EccCounts(corrected=counts.get("ce", 0), uncorrected=counts.get("ue", 0))
            for block, counts in reading.errors.items()
        }
        ever = dict(now)
        retired = sum((reading.pages or {}).values())
        if "dram" in ever and retired > ever["dram"].uncorrected:
            ever["dram"] = EccCounts(corrected=ever["dram"].corrected, uncorrected=retired)
        on = _MEMORY in reading.errors
        return Ecc(mode=Mode(current=on, pending=on), volatile=now, aggregate=ever)

    def set_ecc(self, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Raise ``Unsupported``: it is decided when the driver is loaded."""
        self._enter("set_ecc", deadline)
        raise self._unsupported(
            "set_ecc", "error correction is set when amdgpu is loaded", f"amdgpu.ras_enable={int(enabled)}, reboot"
        )

    def row_remapping(self, *, deadline: Deadline | None = None) -> RowRemapping:
        """Raise ``Unsupported``: AMD retires pages."""
        self._enter("row_remapping", deadline)
        raise self._unsupported("row_remapping", "no rows are replaced: pages are retired", "retired_pages()")

    def retired_pages(self, *, deadline: Deadline | None = None) -> RetiredPages:
        """Return the pages taken out of use. ``Unsupported`` where the driver keeps no list."""
        pages = self._look("retired_pages", deadline).pages
        if pages is None:
            raise self._unsupported("retired_pages", "the driver keeps no list of bad pages", "a board with RAS")
        return RetiredPages(retired=pages["R"], pending=pages["P"], failed=pages["F"])

    # power

    def power_limit(self, *, deadline: Deadline | None = None) -> PowerLimit:
        """Return the limit and its bounds."""
        self._whole("power_limit", deadline)
        return self._ask("power_limit", lambda machine: self._read_limit(machine, "power_limit"), deadline)

    def set_power_limit(self, watts: float | None, *, deadline: Deadline | None = None) -> PowerLimit:
        """Set the limit, or the board's own; needs root (``AccessDenied``)."""
        step = "set_power_limit"
        self._whole(step, deadline)

        def change(machine: HostTree) -> PowerLimit:
            limit = self._read_limit(machine, step)
            wanted = limit.default_watts if watts is None else watts
            if not limit.min_watts <= wanted <= limit.max_watts:
                raise InvalidArgument(
                    f"{wanted} W",
                    device=self._device.id,
                    during=step,
                    hint=f"{limit.min_watts:g} to {limit.max_watts:g} W, or None for the board's own",
                )
            write(machine.sys, f"{self._seen.card.hwmon}/power1_cap", str(round(wanted * 1e6)), self._device.id, step)
            return self._read_limit(machine, step)

        return self._ask(step, change, deadline)

    def _read_limit(self, machine: HostTree, step: str) -> PowerLimit:
        hwmon = self._seen.card.hwmon
        texts = machine.sys.read_many(hwmon, _CAPS) if hwmon is not None else []
        found = [number(text, name).value for text, name in zip(texts, _CAPS, strict=False)]
        values = [value / 1e6 for value in found if isinstance(value, int)]
        if len(values) < len(_CAPS):
            raise self._unsupported(step, "the driver does not tell its power limits", "a newer kernel; not an APU")
        now, default, least, most = values
        return PowerLimit(watts=now, default_watts=default, min_watts=least, max_watts=most)

    # partitions: AMD divides a GPU into equal parts all at once, and not one by one

    def _not_one_by_one(self, step: str, deadline: Deadline | None) -> Unsupported:
        self._enter(step, deadline)
        return self._unsupported(
            step,
            "a GPU of AMD's is divided as a whole, by its mode",
            "attributes compute_partition and compute_partitions; set_compute_partition() of the driver",
        )

    def partitioning(self, *, deadline: Deadline | None = None) -> Mode:
        """Raise ``Unsupported``."""
        raise self._not_one_by_one("partitioning", deadline)

    def set_partitioning(self, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Raise ``Unsupported``."""
        raise self._not_one_by_one("set_partitioning", deadline)

    def partition_profiles(self, *, deadline: Deadline | None = None) -> Sequence[PartitionProfile]:
        """Raise ``Unsupported``."""
        raise self._not_one_by_one("partition_profiles", deadline)

    def partitions(self, *, deadline: Deadline | None = None) -> Sequence[Partition]:
        """Raise ``Unsupported``."""
        raise self._not_one_by_one("partitions", deadline)

    def create_partition(
        self, profile: str, start: int | None = None, *, deadline: Deadline | None = None
    ) -> Operation[Partition]:
        """Raise ``Unsupported``."""
        raise self._not_one_by_one("create_partition", deadline)

    def destroy_partition(self, partition_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Raise ``Unsupported``."""
        raise self._not_one_by_one("destroy_partition", deadline)
