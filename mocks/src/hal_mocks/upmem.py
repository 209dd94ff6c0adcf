"""The mock driver of UPMEM: ranks of the graph, whose memories live in the process that opens them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from hal.drivers.contract import Grant
from hal.drivers.guard import Guard
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.model.attributes import Absence, absent, known
from hal.model.device import Device, Location
from hal.model.health import Action, Condition, Severity
from hal.model.kind import Kind
from hal_mocks.base import GONE, MockDriver, apply_faults, pass_through_faults, with_lies
from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph import Host, UpmemDimm, UpmemRank
from hal_mocks.machine import device_not_found
from hal_mocks.upmem_handle import MockUpmem, rank_facts

_SOURCE = "sysfs:dpu_rank"


class MockUpmemDriver(MockDriver):
    """Ranks can be leased; the DIMMs they sit on are listed, and a rank shares its DIMM's fate."""

    name = "mock-upmem"

    def describe(self) -> Sequence[Device]:
        """Return the ranks, then the DIMMs."""
        ranks = [_describe_rank(host, dimm, rank, self.name) for host, dimm, rank in self._ranks()]
        dimms = [
            _describe_dimm(host, dimm, self.name) for host in self.machine.graph.hosts for dimm in host.upmem_dimms
        ]
        return [*ranks, *dimms]

    def _ranks(self) -> Iterator[tuple[Host, UpmemDimm, UpmemRank]]:
        for host in self.machine.graph.hosts:
            dimms = {dimm.name: dimm for dimm in host.upmem_dimms}
            for rank in host.upmem_ranks:
                yield host, dimms[rank.dimm], rank

    def look_at(self, device: Device) -> Device | None:
        """Return the device with its own faults and, for a rank, those of its DIMM that it shares."""
        faults = self._faults_of(device)
        return with_lies(apply_faults(device, faults, self.conditions_of), faults) if faults else device

    def _faults_of(self, device: Device) -> tuple[Fault, ...]:
        own = self.machine.faults_of(device.id)
        if device.parent is None:
            return own
        shared = self.machine.faults_of(device.parent)
        return (*own, *(fault for fault in shared if fault.type in (*GONE, FaultType.HANG)))

    def conditions_of(self, device: Device, fault: Fault) -> Sequence[Condition]:
        """Return what a unit that faults and heat look like, then what all kinds share."""
        common = super().conditions_of(device, fault)
        table = {
            FaultType.RUN_FAULT: ("DpuRunFault", Action.REPLACE, f"dpu {fault.dpu} faults at tasklet {fault.tasklet}"),
            FaultType.ECC_UNCORRECTABLE: ("UncorrectableEcc", Action.REPLACE, f"MRAM of dpu {fault.dpu} lost data"),
            FaultType.THERMAL: ("OverTemperature", Action.NONE, "the DIMM throttles"),
        }
        if fault.type not in table:
            return common
        type_, action, evidence = table[fault.type]
        return (
            *common,
            Condition(
                device=device.id,
                type=type_,
                severity=Severity.DEGRADED,
                evidence=evidence,
                source=self.name,
                action=action,
                first_seen_at=fault.onset_at,
                last_seen_at=self.machine.clock.now(),
                latched=fault.type is not FaultType.THERMAL,
            ),
        )

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold now."""
        by_id = {device.id: device for device in self.describe()}
        found: list[Condition] = []
        for device_id in device_ids:
            if device_id not in by_id:
                raise device_not_found(device_id)
            device = by_id[device_id]
            for fault in self._faults_of(device):
                found.extend(self.conditions_of(device, fault))
        return found

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse a lower fence, and a rank whose DIMM is gone."""
        parent = self.find(device_id).parent
        if parent is not None:
            pass_through_faults(self.machine, parent, "prepare", deadline)
        super().prepare(device_id, grant, deadline)

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Take the rank back: whoever still has it open keeps memories that are nobody's."""
        super().unprepare(device_id, grant, deadline)
        self._disown(device_id)

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> MockUpmem:
        """Open a rank with its memories zero. Raises ``DeviceBusy`` while another handle has it."""
        for _, dimm, rank in self._ranks():
            if rank_id(dimm, rank) == device_id:
                guard.check()
                device = self.find(device_id)
                for each in (device.parent, device_id):
                    pass_through_faults(self.machine, each or device_id, "open", deadline)
                return MockUpmem(self.machine, device, guard, rank, self._owner(device_id))
        raise device_not_found(device_id)

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset a rank: a hung or lost one answers again, whoever had it open has it no longer."""
        self._rank(device_id)
        for fault in self.machine.faults_of(device_id):
            if fault.type in (FaultType.HANG, FaultType.LOST) and fault.duration_seconds is None:
                self.machine.heal(id=fault.id)
        pass_through_faults(self.machine, device_id, "reset", deadline or Deadline.after(10))
        self._disown(device_id)
        return Operation.completed(None, device_id, "reset")

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Erase a rank. Its bytes lived in the holder's process alone: cutting that off leaves none."""
        self._rank(device_id)
        pass_through_faults(self.machine, device_id, "scrub", deadline or Deadline.after(10))
        self._disown(device_id)
        return Operation.completed(None, device_id, "scrub")

    def _rank(self, device_id: str) -> UpmemRank:
        for _, dimm, rank in self._ranks():
            if rank_id(dimm, rank) == device_id:
                return rank
        raise device_not_found(device_id)

    def _owner(self, device_id: str) -> Path:
        return self.machine.state.device(device_id) / "owner"

    def _disown(self, device_id: str) -> None:
        try:
            self._owner(device_id).unlink()
        except FileNotFoundError:
            return
        self.machine.state.touch()


def rank_id(dimm: UpmemDimm, rank: UpmemRank) -> str:
    """Return the device's id: DIMM serial and index on it."""
    return f"upmem-{dimm.serial}-{rank.index}"


def _describe_rank(host: Host, dimm: UpmemDimm, rank: UpmemRank, driver: str) -> Device:
    facts = rank_facts(rank)
    location = _location(host, dimm)
    return Device(
        id=rank_id(dimm, rank),
        kind=Kind.UPMEM,
        name=rank.name,
        driver=driver,
        location=location,
        aliases=(f"rank:{rank.name}",),
        attributes={
            "dpus": known(len(facts.dpus), _SOURCE),
            "disabled_dpus": known(facts.disabled, _SOURCE),
            "mram_bytes": known(facts.mram_bytes, _SOURCE),
            "wram_bytes": known(facts.wram_bytes, _SOURCE),
            "iram_bytes": known(facts.iram_bytes, _SOURCE),
            "tasklets": known(facts.tasklets, _SOURCE),
            "clock_hz": known(facts.clock_hz, _SOURCE),
            "chip": known(facts.chip, _SOURCE),
            "serial": known(dimm.serial, _SOURCE),
            "part_number": known(dimm.part_number, _SOURCE),
            "rank_index": known(rank.index, _SOURCE),
            "numa_node": absent(Absence.NOT_REPORTED, "sysfs:numa_node")
            if location.numa_node is None
            else known(location.numa_node, "sysfs:numa_node"),
        },
        capacity={"dpus": len(facts.dpus), "mram_bytes": len(facts.dpus) * facts.mram_bytes},
        parent=f"dimm-{dimm.serial}",
        allocatable=True,
    )


def _describe_dimm(host: Host, dimm: UpmemDimm, driver: str) -> Device:
    ranks = [rank for rank in host.upmem_ranks if rank.dimm == dimm.name]
    memory_bytes = sum(rank.mram_bytes * rank.control_interfaces * rank.dpus_per_ci for rank in ranks)
    return Device(
        id=f"dimm-{dimm.serial}",
        kind=Kind.MEMORY,
        name=dimm.name,
        driver=driver,
        location=msgspec.structs.replace(_location(host, dimm), slot=f"channel {dimm.channel} slot {dimm.slot}"),
        aliases=(f"serial:{dimm.serial}",),
        attributes={
            "serial": known(dimm.serial, _SOURCE),
            "part_number": known(dimm.part_number, _SOURCE),
            "memory_bytes": known(memory_bytes, _SOURCE),
        },
        capacity={"memory_bytes": memory_bytes},
    )


def _location(host: Host, dimm: UpmemDimm) -> Location:
    return Location(node=host.name, rack=host.rack or None, numa_node=dimm.numa_node if dimm.numa_node >= 0 else None)
