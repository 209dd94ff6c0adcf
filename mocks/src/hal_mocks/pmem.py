"""The mock driver of persistent memory: regions of the graph, whose bytes live in files of the state folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from hal.drivers.contract import Grant
from hal.drivers.guard import Guard
from hal.errors import AccessDenied
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.interfaces.pmem import PersistenceDomain, Region
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device, Location
from hal.model.health import Action, Condition, Severity
from hal.model.kind import Kind
from hal_mocks.base import GONE, MockDriver, apply_faults, pass_through_faults, with_lies
from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph import Dimm, Host, PmemRegion
from hal_mocks.machine import Machine, device_not_found
from hal_mocks.pmem_handle import HOT_CELSIUS, MockPmem
from hal_mocks.pmem_region import RegionStore, dimm_id, region_facts, region_id

_SOURCE = "mock:nd"


class MockPmemDriver(MockDriver):
    """Regions can be leased; the DIMMs behind them are listed. Scrubs, but cannot reset: memory has nothing to."""

    name = "mock-pmem"

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._stores: dict[str, RegionStore] = {}

    def describe(self) -> Sequence[Device]:
        """Return the regions and, once each, their DIMMs."""
        devices: list[Device] = []
        dimms: dict[str, Device] = {}
        for host in self.machine.graph.hosts:
            for region in host.pmem:
                devices.append(self._describe(host, region))
                for dimm in region.dimms:
                    device = _describe_dimm(host, region, dimm, self.name)
                    dimms.setdefault(device.id, device)
        return [*devices, *dimms.values()]

    def _describe(self, host: Host, region: PmemRegion) -> Device:
        store = self._store_of(region)
        facts = region_facts(store, self.machine.faults_of(store.device_id))
        modes = tuple(dict.fromkeys(str(namespace.mode) for namespace in store.load().namespaces))
        return Device(
            id=store.device_id,
            kind=Kind.PMEM,
            name=region.name,
            driver=self.name,
            location=_location(host, region),
            aliases=(f"nd:{region.name}",),
            attributes=_attributes(region, facts, modes),
            capacity={"memory_bytes": region.size_bytes},
            conditions=_locked_condition(store.device_id, facts, self.name, self.machine.clock.now()),
            allocatable=True,
        )

    def look_at(self, device: Device) -> Device | None:
        """Return the device with its faults and those of DIMMs it cannot do without; a liar says something else."""
        faults = self._faults_of(device)
        return with_lies(apply_faults(device, faults, self.conditions_of), faults) if faults else device

    def _faults_of(self, device: Device) -> tuple[Fault, ...]:
        own = self.machine.faults_of(device.id)
        if device.kind is not Kind.PMEM:
            return own
        dimms = self._store(device.id).region.dimms
        return (
            *own,
            *(
                fault
                for dimm in dimms
                for fault in self.machine.faults_of(dimm_id(dimm))
                if fault.type in (*GONE, FaultType.HANG)
            ),
        )

    def conditions_of(self, device: Device, fault: Fault) -> Sequence[Condition]:
        """Return what a bad block or a region gone read-only looks like, then what all kinds share."""
        common = super().conditions_of(device, fault)
        if fault.type is FaultType.BAD_BLOCK:
            evidence = f"poison in {max(fault.length, 1)} bytes at {fault.offset}: data is lost there"
            return (*common, self._condition(device, fault, "BadBlocks", Severity.DEGRADED, Action.NONE, evidence))
        if fault.type is FaultType.READ_ONLY:
            evidence = "the region reports read_only"
            return (*common, self._condition(device, fault, "ReadOnly", Severity.CRITICAL, Action.REPLACE, evidence))
        if fault.type is FaultType.THERMAL:
            evidence = f"temperature_celsius={HOT_CELSIUS}: the DIMMs throttle"
            return (
                *common,
                self._condition(device, fault, "OverTemperature", Severity.DEGRADED, Action.NONE, evidence),
            )
        return common

    def _condition(
        self, device: Device, fault: Fault, type: str, severity: Severity, action: Action, evidence: str
    ) -> Condition:
        return Condition(
            device=device.id,
            type=type,
            severity=severity,
            evidence=evidence,
            source=self.name,
            action=action,
            first_seen_at=fault.onset_at,
            last_seen_at=self.machine.clock.now(),
            latched=fault.type is not FaultType.THERMAL,
        )

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold now, locks included."""
        seen = {device.id: self.look_at(device) or device for device in self.describe()}
        found: list[Condition] = []
        for device_id in device_ids:
            if device_id not in seen:
                raise device_not_found(device_id)
            found.extend(seen[device_id].conditions)
        return found

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse a locked region and a lower fence."""
        store = self._store(device_id)
        store.meet_dimms("prepare", deadline)
        self._refuse_locked(store, "prepare")
        super().prepare(device_id, grant, deadline)

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Take the region back: a holder who still has it mapped keeps a memory that nobody else can see."""
        store = self._store(device_id)
        super().unprepare(device_id, grant, deadline)
        with store.locked():
            record = store.load()
            if any(store.in_use(namespace) for namespace in record.namespaces):
                store.begin_epoch(record, store.memory_path(record.epoch))

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> MockPmem:
        """Open a region. Raises ``AccessDenied`` while a DIMM of it is locked."""
        store = self._store(device_id)
        guard.check()
        pass_through_faults(self.machine, device_id, "open", deadline)
        store.meet_dimms("open", deadline)
        self._refuse_locked(store, "open")
        return MockPmem(self.machine, self.find(device_id), guard, store)

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Erase every byte and cut off whoever still has the region mapped.

        Namespaces stay as they are. Poison stays listed: only clearing it, or new hardware, takes it away.
        """
        store = self._store(device_id)
        pass_through_faults(self.machine, device_id, "scrub", deadline or Deadline.after(10))
        with store.locked():
            media = store.media_path()
            if media is not None:
                media.unlink()
            store.begin_epoch(store.load(), None)
        return Operation.completed(None, device_id, "scrub")

    def _store(self, device_id: str) -> RegionStore:
        for host in self.machine.graph.hosts:
            for region in host.pmem:
                if region_id(region) == device_id:
                    return self._store_of(region)
        raise device_not_found(device_id)

    def _store_of(self, region: PmemRegion) -> RegionStore:
        device_id = region_id(region)
        if device_id not in self._stores:
            self._stores[device_id] = RegionStore(self.machine, region)
        return self._stores[device_id]

    def _refuse_locked(self, store: RegionStore, step: str) -> None:
        locked = [dimm.name for dimm in store.region.dimms if dimm.locked]
        if locked:
            raise AccessDenied(
                f"locked: {', '.join(locked)}",
                device=store.device_id,
                during=step,
                hint=f"ndctl unlock-dimm {locked[0]}",
            )


def _attributes(region: PmemRegion, facts: Region, modes: tuple[str, ...]) -> dict[str, Attribute]:
    found = {
        "media": known(facts.media, _SOURCE),
        "persistence_domain": known(str(facts.persistence_domain), "sysfs:persistence_domain"),
        "set_cookie": known(facts.set_cookie, "sysfs:set_cookie"),
        "size_bytes": known(facts.size_bytes, "sysfs:size"),
        "memory_bytes": known(facts.size_bytes, "sysfs:size"),
        "available_bytes": known(facts.available_bytes, "sysfs:available_size"),
        "line_bytes": known(facts.line_bytes, _SOURCE),
        "granule_bytes": known(facts.granule_bytes, _SOURCE),
        "dimms": known(tuple(f"dimm-{serial}" for serial in facts.dimms), "sysfs:mappings"),
        "locked": known(facts.locked, "sysfs:security"),
        "encrypted": known(facts.encrypted, "sysfs:security"),
        "read_only": known(facts.read_only, "sysfs:read_only"),
        "persistent": known(facts.persistence_domain is not PersistenceDomain.NONE, "sysfs:persistence_domain"),
    }
    if modes:
        found["mode"] = known(modes[0] if len(modes) == 1 else modes, "sysfs:namespace")
    else:
        found["mode"] = absent(Absence.NOT_REPORTED, "sysfs:namespace", "no namespace yet")
    if region.numa_node >= 0:
        found["numa_node"] = known(region.numa_node, "sysfs:numa_node")
    else:
        found["numa_node"] = absent(Absence.NOT_REPORTED, "sysfs:numa_node")
    return found


def _locked_condition(device_id: str, facts: Region, source: str, now: float) -> tuple[Condition, ...]:
    if not facts.locked:
        return ()
    return (
        Condition(
            device=device_id,
            type="Locked",
            severity=Severity.DEGRADED,
            evidence="the security state of a DIMM is locked",
            source=source,
            first_seen_at=now,
            last_seen_at=now,
        ),
    )


def _location(host: Host, region: PmemRegion) -> Location:
    return Location(
        node=host.name, rack=host.rack or None, numa_node=region.numa_node if region.numa_node >= 0 else None
    )


def _describe_dimm(host: Host, region: PmemRegion, dimm: Dimm, driver: str) -> Device:
    return Device(
        id=dimm_id(dimm),
        kind=Kind.MEMORY,
        name=dimm.name,
        driver=driver,
        location=msgspec.structs.replace(
            _location(host, region),
            pci_address=dimm.pci or None,
            pci_path=host.pci_path(dimm.pci) if dimm.pci else (),
        ),
        aliases=tuple(_dimm_aliases(dimm)),
        attributes={
            "serial": known(dimm.serial, _SOURCE),
            "media": known(dimm.media, _SOURCE),
            "memory_bytes": known(dimm.capacity_bytes, _SOURCE),
            "firmware": known(dimm.firmware, _SOURCE) if dimm.firmware else absent(Absence.NOT_REPORTED, _SOURCE),
            "locked": known(dimm.locked, "sysfs:security"),
            "encrypted": known(dimm.encrypted, "sysfs:security"),
        },
        capacity={"memory_bytes": dimm.capacity_bytes},
    )


def _dimm_aliases(dimm: Dimm) -> Iterator[str]:
    yield f"serial:{dimm.serial}"
    if dimm.pci:  # a CXL memory device, which is not on the nvdimm bus by that name
        yield f"cxl:{dimm.name}"
        yield f"pci:{dimm.pci}"
    else:
        yield f"nd:{dimm.name}"
