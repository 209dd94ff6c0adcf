"""The mock DPU driver: finds the cards of a machine, and says how they are."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.drivers.contract import Grant
from hal.drivers.guard import Guard
from hal.errors import AccessDenied, DeviceBusy, DeviceGone
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import BOOT_TIMEOUT_SECONDS, BootState, DpuMode
from hal.interfaces.operation import Operation
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device, Location
from hal.model.health import Action, Condition, Radius, Severity
from hal.model.kind import Kind
from hal_mocks.base import MockDriver, pass_through_faults
from hal_mocks.dpu_handle import MockDpu
from hal_mocks.dpu_offloads import offloads_of
from hal_mocks.dpu_restart import heal_by_reset, restart, scrub, take_back
from hal_mocks.dpu_state import Card, cards_of, find_card
from hal_mocks.dpu_telemetry import HOT_CELSIUS
from hal_mocks.faults import Fault, FaultType
from hal_mocks.machine import Machine

_VENDORS = {"15b3": "NVIDIA (Mellanox)", "1dd8": "AMD", "8086": "Intel"}


class MockDpuDriver(MockDriver):
    """Drives the cards of a mock machine; also ``Resets`` and ``Scrubs``."""

    name = "mock-dpu"

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._cards = cards_of(machine)

    def describe(self) -> Sequence[Device]:
        """Return all cards in their mode and boot state."""
        return [describe_card(card, self.name, self.machine.clock.now()) for card in self._cards.values()]

    def look_at(self, device: Device) -> Device | None:
        """Add what the card's own state amounts to before the faults."""
        conditions = state_conditions(find_card(self.machine, device.id), self.name, self.machine.clock.now())
        return super().look_at(msgspec.structs.replace(device, conditions=(*device.conditions, *conditions)))

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return what state and faults amount to."""
        found = list(super().sample(device_ids, deadline))
        for device_id in device_ids:
            found.extend(state_conditions(find_card(self.machine, device_id), self.name, self.machine.clock.now()))
        return found

    def conditions_of(self, device: Device, fault: Fault) -> Sequence[Condition]:
        """Return what heat and a firmware fault look like; the rest is common."""
        now = self.machine.clock.now()
        if fault.type is FaultType.THERMAL:
            return (
                Condition(
                    device=device.id,
                    type="OverTemperature",
                    severity=Severity.DEGRADED,
                    evidence=f"temperature_celsius={HOT_CELSIUS}: the card throttles",
                    source=self.name,
                    first_seen_at=fault.onset_at,
                    last_seen_at=now,
                ),
            )
        if fault.type is FaultType.FW_FATAL:
            return (
                Condition(
                    device=device.id,
                    type="FirmwareFatal",
                    severity=Severity.FATAL,
                    evidence="devlink health reporter fw_fatal is in error",
                    source=self.name,
                    radius=Radius.BOARD,
                    action=Action.RESET,
                    code=fault.code,
                    first_seen_at=fault.onset_at,
                    last_seen_at=now,
                    latched=True,
                ),
            )
        return super().conditions_of(device, fault)

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Prepare a card that is ready; what an earlier lease left behind is gone."""
        card = find_card(self.machine, device_id)
        super().prepare(device_id, grant, deadline)
        self._admit(card, "prepare")
        boot = card.state().boot
        if boot is not None and self.machine.clock.now() < boot.ready_at:
            raise DeviceBusy("the card boots", device=device_id, during="prepare", hint="wait until it is ready")
        take_back(card, grant.fence - 1, deadline)
        with card.locked():
            if card.state().fence != grant.fence:
                card.change(fence=grant.fence)

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Stop the lease's services and drop its flow rules, virtual functions and exposures."""
        super().unprepare(device_id, grant, deadline)
        take_back(find_card(self.machine, device_id), grant.fence, deadline)

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> MockDpu:
        """Open a card in this process."""
        device = self.find(device_id)
        pass_through_faults(self.machine, device_id, "open", deadline)
        return MockDpu(self.machine, device, guard)

    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset a card from its ROM on. It mends a lost or hung card and a firmware fault, unless they have a
        duration; a card off the bus is beyond it.
        """
        card = find_card(self.machine, device_id)
        self._admit(card, "reset")
        for fault in self.machine.faults_of(device_id):
            if fault.type is FaultType.FALLEN_OFF_BUS:
                raise DeviceGone(
                    "fallen off the bus: no reset reaches it", device=device_id, during="reset", hint="reboot the host"
                )
        heal_by_reset(self.machine, device_id, FaultType.LOST, FaultType.HANG)
        return restart(self.machine, card, BootState.ROM, "reset", deadline)

    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Make a card as it came: services, flows, virtual functions, exposures, image, pending mode, console log."""
        card = find_card(self.machine, device_id)
        self._admit(card, "scrub")
        pass_through_faults(self.machine, device_id, "scrub", deadline or Deadline.after(10))
        return scrub(self.machine, card, deadline)

    def _admit(self, card: Card, step: str) -> None:
        if card.state().mode is DpuMode.RESTRICTED:
            raise AccessDenied(
                "the card is in restricted mode: its host may not touch it",
                device=card.id,
                during=step,
                hint="the card's own controller (BMC) can leave the mode",
            )


def describe_card(card: Card, driver: str, now: float) -> Device:
    """Return a card as a device, without its faults."""
    dpu, host, state = card.dpu, card.host, card.state()
    restricted = state.mode is DpuMode.RESTRICTED
    # Functions that belong to the NICs on the card bear their names; the rest, management above all, the card's own.
    of_nics = {rnic.pci for rnic in host.rnics}
    own = [pci for pci in dpu.pci if pci not in of_nics]
    address = own[-1] if own else dpu.pci[0] if dpu.pci else None
    function = host.function(address) if address else None
    stage = BootState.READY if state.boot is None else state.boot.at(now)[0]
    denied = absent(Absence.PERMISSION, "rshim", "restricted mode")
    numa_node = function.numa_node if function is not None and function.numa_node >= 0 else None

    attributes: dict[str, Attribute] = {
        "model": known(dpu.generation, driver),
        "generation": known(dpu.generation, driver),
        "mode": known(str(state.mode), "rshim:misc" if not restricted else "firmware"),
        "pending_mode": (
            denied
            if restricted
            else known(str(state.pending_mode), "firmware")
            if state.pending_mode is not None
            else absent(Absence.NOT_REPORTED, "firmware", "no change is pending")
        ),
        "boot_state": denied if restricted else known(str(stage), "rshim:misc"),
        "rshim": denied
        if restricted
        else known(dpu.rshim, "sysfs")
        if dpu.rshim
        else absent(Absence.DRIVER_NOT_BOUND, "rshim"),
        "serial": known(dpu.serial, "vpd"),
        "psid": known(dpu.psid, "devlink"),
        "firmware": known(dpu.firmware, "devlink") if dpu.firmware else absent(Absence.NOT_REPORTED, "devlink"),
        "cores": known(dpu.cores, driver),
        "memory_bytes": known(dpu.memory_bytes, driver),
        "offloads": known(tuple(offload.name for offload in offloads_of(dpu, state.mode)), driver),
        "max_vfs": known(dpu.max_vfs, "sysfs:sriov_totalvfs"),
        "rnics": known(rnic_ids(card), driver),
        "functions": known(dpu.pci, "sysfs:bus/pci"),
        "numa_node": (
            known(numa_node, "sysfs:numa_node")
            if numa_node is not None
            else absent(Absence.NOT_REPORTED, "sysfs:numa_node")
        ),
    }
    if function is not None:
        attributes |= {
            "vendor": known(_VENDORS.get(function.vendor, function.vendor), "pci-ids"),
            "pci_vendor": known(function.vendor, "sysfs"),
            "pci_device": known(function.device, "sysfs"),
            "pci_class": known(function.class_code, "sysfs"),
            "pci_driver": known(function.driver, "sysfs")
            if function.driver
            else absent(Absence.DRIVER_NOT_BOUND, "sysfs"),
            "link_speed_gts": known(function.speed_gts, "sysfs"),
            "link_width": known(function.width, "sysfs"),
            "link_max_speed_gts": known(function.max_speed_gts, "sysfs"),
            "link_max_width": known(function.max_width, "sysfs"),
        }
    aliases = [*(f"pci:{pci}" for pci in own), f"serial:{dpu.serial}"]
    if dpu.rshim and not restricted:
        aliases.append(f"rshim:{dpu.rshim}")
    return Device(
        id=card.id,
        kind=Kind.DPU,
        name=dpu.name,
        driver=driver,
        location=Location(
            node=host.name,
            rack=host.rack or None,
            numa_node=numa_node,
            pci_address=address,
            pci_path=host.pci_path(address) if address else (),
        ),
        aliases=tuple(aliases),
        attributes=attributes,
        capacity={"cores": dpu.cores, "memory_bytes": dpu.memory_bytes, "vfs": dpu.max_vfs},
        allocatable=not restricted,
    )


def rnic_ids(card: Card) -> tuple[str, ...]:
    """Return the device ids of the RDMA NICs that sit on a card."""
    return tuple(
        f"rnic-{rnic.node_guid.removeprefix('0x').replace(':', '').lower()}"
        for rnic in card.host.rnics
        if rnic.name in card.dpu.rnics or rnic.dpu == card.dpu.name
    )


def state_conditions(card: Card, source: str, now: float) -> Sequence[Condition]:
    """Return the conditions of a card that boots, hangs in its boot, or waits for a power cycle."""
    state = card.state()
    found: list[Condition] = []
    boot = state.boot
    if boot is not None and now < boot.ready_at:
        stage, since_at = boot.at(now)
        late = now >= boot.times_out_at
        evidence = f"not ready {BOOT_TIMEOUT_SECONDS:.0f} s after reset: " if late else ""
        found.append(
            Condition(
                device=card.id,
                type="BootTimeout" if late else "Booting",
                severity=Severity.CRITICAL if late else Severity.DEGRADED,
                evidence=f"{evidence}{stage} since {now - since_at:.1f} s",
                source=source,
                radius=Radius.BOARD,
                action=Action.POWER_CYCLE if late else Action.NONE,
                first_seen_at=boot.times_out_at if late else boot.stages[0][1],
                last_seen_at=now,
            )
        )
    if state.pending_mode is not None:
        found.append(
            Condition(
                device=card.id,
                type="ModePending",
                severity=Severity.INFO,
                evidence=f"{state.mode} now, {state.pending_mode} after a power cycle",
                source=source,
                action=Action.POWER_CYCLE,
                first_seen_at=now,
                last_seen_at=now,
            )
        )
    return found
