"""What a mock GPU remembers across processes: modes, partitions, error counts, heat. One file a GPU, one lock."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hal.interfaces.gpu import Partition
from hal_mocks.faults import Fault, FaultType
from hal_mocks.gpu_thermal import Thermal
from hal_mocks.machine import Machine

if TYPE_CHECKING:
    from hal_mocks.nvml.managed import Managed

ECC_XIDS = frozenset({48, 63, 64, 94, 95})


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Uncorrected and corrected errors of the device memory and of the on-chip one."""

    dram_corrected: int = 0
    dram_uncorrected: int = 0
    sram_corrected: int = 0
    sram_uncorrected: int = 0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU's memory of itself. ``absorbed`` are the ids of faults whose traces are in it already."""

    partitioning: bool = False
    partitioning_pending: bool = False
    ecc: bool = True
    ecc_pending: bool = True
    partitions: tuple[Partition, ...] = ()
    volatile: Counts = Counts()
    aggregate: Counts = Counts()
    remapped_correctable: int = 0
    remapped_uncorrectable: int = 0
    remap_pending: int = 0
    remap_failed: bool = False
    ecc_seen_at: float = 0.0
    ecc_evidence: str = ""
    absorbed: tuple[int, ...] = ()
    power_limit_watts: float | None = None


FRESH = Record()
_RECORD = msgspec.json.Decoder(Record)
_THERMAL = msgspec.json.Decoder(Thermal)


class GpuStore:
    """The records of one machine's GPUs. A page counts their changes, so that looking again costs one load."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        descriptor = os.open(machine.state.folder / "gpu.page", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size < 8:
                os.ftruncate(descriptor, 8)
            self._map = mmap.mmap(descriptor, 8)
        finally:
            os.close(descriptor)
        self._changes = memoryview(self._map).cast("Q")
        self._cache: dict[str, tuple[int, Record]] = {}
        self._managed: Managed | None = None
        self._fault_generation = -1
        self._traces: dict[str, tuple[Fault, ...]] = {}

    def record(self, gpu: str) -> Record:
        """Return what the GPU remembers, the traces of its faults included."""
        changes = self._changes[0]
        if changes == 0:
            record = FRESH
        else:
            cached = self._cache.get(gpu)
            if cached is None or cached[0] != changes:
                cached = (changes, self.load(gpu))
                self._cache[gpu] = cached
            record = cached[1]
        if self._fault_generation != self.machine.state.generation:
            self._read_traces()
        traces = self._traces.get(gpu)
        if traces:
            now = self.machine.clock.now()
            if any(fault.onset_at <= now and fault.id not in record.absorbed for fault in traces):
                return self.update(gpu, lambda before: absorb(before, traces, now))
        return record

    def update(self, gpu: str, change: Callable[[Record], Record]) -> Record:
        """Change a record under the lock of all processes; nothing is written if ``change`` raises."""
        with self.machine.state.locked("gpu.lock"):
            before = self.load(gpu)
            after = change(before)
            if after != before:
                self.count_change()  # before it, too: should we be killed in between, the others look again
                self._write(self.machine.state.device(gpu) / "gpu.json", after)
                managed = self._shared()
                if managed is not None:
                    managed.write(gpu, after)
                self.count_change()
        return after

    def thermal(self, gpu: str, change: Callable[[Thermal], Thermal]) -> Thermal:
        """Move the thermal model on under the lock."""
        path = self.machine.state.device(gpu) / "thermal.json"
        with self.machine.state.locked("gpu.lock"):
            try:
                before = _THERMAL.decode(path.read_bytes())
            except FileNotFoundError:
                before = Thermal(at=self.machine.clock.now())
            after = change(before)
            if after != before or not path.exists():
                self._write(path, after)
        return after

    def count_change(self) -> None:
        """Make every process look again."""
        self._changes[0] += 1

    def load(self, gpu: str) -> Record:
        """Return the record as it lies on disk, with what programs have set through a fake NVML library."""
        try:
            record = _RECORD.decode((self.machine.state.device(gpu) / "gpu.json").read_bytes())
        except FileNotFoundError:
            record = FRESH
        managed = self._shared()
        return record if managed is None else managed.read(gpu, record)

    def _shared(self) -> Managed | None:
        if self._managed is None and (self.machine.state.folder / "nvml").is_dir():
            from hal_mocks.nvml.managed import Managed

            self._managed = Managed(self.machine)
        return self._managed

    @staticmethod
    def _write(path: Path, value: msgspec.Struct) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(value))
        fresh.replace(path)

    def _read_traces(self) -> None:
        generation = self.machine.state.generation
        traces: dict[str, tuple[Fault, ...]] = {}
        for fault in self.machine.state.faults():
            if leaves_traces(fault):
                traces[fault.device] = (*traces.get(fault.device, ()), fault)
        self._traces = traces
        self._fault_generation = generation


def leaves_traces(fault: Fault) -> bool:
    """True if a GPU remembers the fault when it is over."""
    return fault.type is FaultType.ECC_UNCORRECTABLE or (fault.type is FaultType.XID and fault.code in ECC_XIDS)


def absorb(record: Record, traces: tuple[Fault, ...], now: float) -> Record:
    """Return the record with the traces that memory errors leave behind, each fault counted once."""
    for fault in traces:
        if fault.onset_at <= now and fault.id not in record.absorbed:
            record = msgspec.structs.replace(_trace(record, fault), absorbed=(*record.absorbed, fault.id))
    return record


def _trace(record: Record, fault: Fault) -> Record:
    replace = msgspec.structs.replace
    if fault.type is FaultType.XID and fault.code == 63:
        return replace(record, remapped_correctable=record.remapped_correctable + 1)
    if fault.type is FaultType.XID and fault.code == 64:
        return replace(record, remap_failed=True, ecc_seen_at=fault.onset_at)
    where = f"at {fault.offset:#x}" if fault.offset else "in device memory"
    return replace(
        record,
        volatile=replace(record.volatile, dram_uncorrected=record.volatile.dram_uncorrected + 1),
        aggregate=replace(record.aggregate, dram_uncorrected=record.aggregate.dram_uncorrected + 1),
        remap_pending=record.remap_pending + 1,
        ecc_seen_at=fault.onset_at,
        ecc_evidence=f"uncorrectable error {where}",
    )


def after_scrub(record: Record) -> Record:
    """Return what a scrub leaves: modes, partitions, and what the board remembers for life."""
    return msgspec.structs.replace(record, volatile=Counts(), power_limit_watts=None)


def after_reset(record: Record) -> Record:
    """Return what a reset leaves: pending modes hold, pending rows are replaced, partitions and volatile counts end."""
    return msgspec.structs.replace(
        record,
        partitioning=record.partitioning_pending,
        ecc=record.ecc_pending,
        partitions=(),
        volatile=Counts(),
        power_limit_watts=None,
        remapped_uncorrectable=record.remapped_uncorrectable + record.remap_pending,
        remap_pending=0,
    )
