"""The driver of mock RDMA NICs: what the graph holds, with the conditions that faults and damping amount to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from hal.drivers.contract import Grant
from hal.drivers.guard import Guard
from hal.errors import DeviceGone
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device, Link, Location
from hal.model.health import Action, Condition, Presence, Radius, Severity
from hal.model.kind import Kind
from hal_mocks.base import MockDriver, pass_through_faults, tell_lies
from hal_mocks.faults import Fault, FaultType
from hal_mocks.graph import Graph
from hal_mocks.machine import Machine
from hal_mocks.rnic_files import disable_all, port_key, sweep, zero_counters
from hal_mocks.rnic_handle import MockRnic
from hal_mocks.rnic_link import (
    LANES,
    Place,
    card_is_up,
    damping,
    forget_count,
    link_is_down,
    observe,
    place_of,
    places_of,
    ports_of,
)

_SOURCE = "mock:graph"


class MockRnicDriver(MockDriver):
    """All RDMA NICs of a mock machine."""

    name = "mock-rnic"

    def describe(self) -> Sequence[Device]:
        """Return the NICs of all hosts."""
        return [self._describe(place) for place in places_of(self.machine).values()]

    def _describe(self, place: Place) -> Device:
        rnic, host = place.rnic, place.host
        function = host.function(rnic.pci) if rnic.pci else None
        ports = ports_of(self.machine, place)
        first = ports[0]
        attributes: dict[str, Attribute] = {
            "model": known(rnic.model, _SOURCE),
            "firmware": known(rnic.firmware, _SOURCE),
            "node_guid": known(rnic.node_guid, _SOURCE),
            "board_id": known(rnic.board_id, _SOURCE),
            "netdev": _text(rnic.netdev),
            "port_state": known(first.state.value, _SOURCE),
            "link_layer": known(first.link_layer.value, _SOURCE),
            "rate_gbps": known(first.rate_gbps, _SOURCE),
        }
        numa_node = None
        if function is not None:
            numa_node = function.numa_node if function.numa_node >= 0 else None
            attributes |= {
                "pci_vendor": known(function.vendor, _SOURCE),
                "pci_device": known(function.device, _SOURCE),
                "pci_class": known(function.class_code, _SOURCE),
                "pci_driver": _text(function.driver),
                "serial": _text(function.serial),
                "link_speed_gts": known(function.speed_gts, _SOURCE),
                "link_max_speed_gts": known(function.max_speed_gts, _SOURCE),
                "link_width": known(function.width, _SOURCE),
                "link_max_width": known(function.max_width, _SOURCE),
            }
        attributes["numa_node"] = (
            absent(Absence.NOT_REPORTED, _SOURCE, "the firmware does not say")
            if numa_node is None
            else known(numa_node, "sysfs:numa_node")
        )
        aliases = [f"rdma:{rnic.name}", f"guid:{rnic.node_guid}"]
        aliases += [f"netdev:{rnic.netdev}"] if rnic.netdev else []
        aliases += [f"pci:{rnic.pci}"] if rnic.pci else []
        return Device(
            id=place.id,
            kind=Kind.RNIC,
            name=rnic.name,
            driver=self.name,
            location=Location(
                node=host.name,
                rack=host.rack or None,
                numa_node=numa_node,
                pci_address=rnic.pci or None,
                pci_path=host.pci_path(rnic.pci) if rnic.pci else (),
            ),
            aliases=tuple(aliases),
            attributes=attributes,
            capacity={"ports": len(ports)},
            links=tuple(
                Link(
                    type=port.link_layer.value.lower(),
                    lanes=LANES,
                    bandwidth_bytes_per_second=port.rate_gbps * 1e9 / 8,
                    state="up" if port.up else "down",
                    detail=f"port {port.number}",
                )
                for port in ports
            ),
            parent=place.card,
            allocatable=True,
        )

    def look_at(self, device: Device) -> Device | None:
        """Add what the link's past and the DPU's state amount to, and what a lying device says."""
        seen = super().look_at(device)
        if seen is None:
            return None
        place = place_of(self.machine, device.id)
        faults = self.machine.faults_of(device.id)
        extra = self._lasting_conditions(place)
        presence = seen.presence
        if not card_is_up(self.machine, place) and presence is Presence.PRESENT:
            presence = Presence.GHOST
        if not (extra or faults or presence is not seen.presence):
            return seen
        return msgspec.structs.replace(
            seen,
            conditions=(*seen.conditions, *extra),
            presence=presence,
            attributes=tell_lies(dict(seen.attributes), faults),
        )

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions of faults, of a flapping past, and of a DPU that is down."""
        found = list(super().sample(device_ids, deadline))
        for device_id in device_ids:
            found.extend(self._lasting_conditions(place_of(self.machine, device_id)))
        return found

    def conditions_of(self, device: Device, fault: Fault) -> Sequence[Condition]:
        """A NIC without a link is of no use to anybody (critical: drain); a slow one is finished with and tested."""
        now = self.machine.clock.now()
        if fault.type in (FaultType.LINK_DOWN, FaultType.FLAP):
            if not link_is_down((fault,), now):
                return ()
            evidence = "port 1 is DOWN: no carrier"
            return (_link_condition(device.id, "PortDown", Severity.CRITICAL, evidence, fault.onset_at, now, 1),)
        if fault.type is FaultType.LINK_DEGRADED:
            port = ports_of(self.machine, place_of(self.machine, device.id))[0]
            evidence = f"rate is {port.rate_gbps:g} Gb/s of {port.max_rate_gbps:g}"
            return (_link_condition(device.id, "LinkDegraded", Severity.DEGRADED, evidence, fault.onset_at, now, 1),)
        return super().conditions_of(device, fault)

    def _lasting_conditions(self, place: Place) -> Sequence[Condition]:
        now = self.machine.clock.now()
        found: list[Condition] = []
        history = observe(self.machine, place.id)
        penalty, suppressed = damping(history.downs, now)
        if suppressed:
            evidence = f"the link went down {history.count} times (penalty {penalty:.0f}, cleared at 750)"
            found.append(
                _link_condition(
                    place.id, "LinkFlapping", Severity.DEGRADED, evidence, history.downs[0], now, history.count
                )
            )
        if not card_is_up(self.machine, place):
            found.append(
                Condition(
                    device=place.id,
                    type="ParentDown",
                    severity=Severity.CRITICAL,
                    evidence=f"its DPU {place.card} is down",
                    source=self.name,
                    radius=Radius.BOARD,
                    first_seen_at=now,
                    last_seen_at=now,
                )
            )
        return found

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Sweep up after dead holders; refuse a NIC whose DPU is down."""
        self.find(device_id)
        if not card_is_up(self.machine, place_of(self.machine, device_id)):
            raise DeviceGone(
                "its DPU is down", device=device_id, during="prepare", hint="wait until the DPU is ready, or reset it"
            )
        super().prepare(device_id, grant, deadline)
        sweep(self.machine, device_id)

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Break every connection and deregister all memory, in whichever process, then remove what is dead."""
        super().unprepare(device_id, grant, deadline)
        disable_all(self.machine, device_id)
        sweep(self.machine, device_id)

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> MockRnic:
        """Open one NIC in this process."""
        device = self.find(device_id)
        pass_through_faults(self.machine, device_id, "open", deadline)
        if not card_is_up(self.machine, place_of(self.machine, device_id)):
            raise DeviceGone(
                "its DPU is down", device=device_id, during="open", hint="wait until the DPU is ready, or reset it"
            )
        guard.check()
        return MockRnic(self.machine, device, guard)

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset: connections break, memory is deregistered, counters start at zero; a lost or hung one is back."""
        self.find(device_id)
        if any(fault.type is FaultType.FALLEN_OFF_BUS for fault in self.machine.faults_of(device_id)):
            gone = DeviceGone("fallen off the bus", device=device_id, during="reset", hint="reboot the host")
            return Operation.failed(gone, device_id, "reset")
        disable_all(self.machine, device_id)
        sweep(self.machine, device_id)
        for type_ in (FaultType.LOST, FaultType.HANG):
            self.machine.heal(device_id, type_)
        forget_count(self.machine, device_id)
        for port in place_of(self.machine, device_id).rnic.ports:
            zero_counters(self.machine, port_key(device_id, port.number), places_of(self.machine))
        return Operation.completed(None, device_id, "reset")


def rebuild_driver(graph: bytes, folder: str) -> MockRnicDriver:
    """Return the driver of a machine that another process has: its graph as JSON, its state folder."""
    return MockRnicDriver(Machine(msgspec.json.decode(graph, type=Graph), Path(folder)))


def _text(value: str) -> Attribute:
    return known(value, _SOURCE) if value else absent(Absence.NOT_REPORTED, _SOURCE)


def _link_condition(
    device_id: str, type_: str, severity: Severity, evidence: str, since: float, now: float, count: int
) -> Condition:
    return Condition(
        device=device_id,
        type=type_,
        severity=severity,
        evidence=evidence,
        source=MockRnicDriver.name,
        radius=Radius.LINK,
        action=Action.NONE,
        first_seen_at=since,
        last_seen_at=now,
        count=count,
    )
