"""A card as a device: what sysfs says of it, with what rshim, devlink and the BMC add; its conditions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hal.errors import DeviceError
from hal.interfaces.deadline import Deadline
from hal.interfaces.dpu import BootState, DpuMode
from hal.model.attributes import Absence, Attribute, absent, known
from hal.model.device import Device
from hal.model.health import Action, Condition, Radius, Severity, Status
from hal_bluefield.boot import read_boot
from hal_bluefield.card import Card
from hal_bluefield.devlink import DevlinkInfo, read_devlink
from hal_bluefield.telemetry import TEMPERATURE, why

DRIVER = "bluefield"
_DEVLINK_OK = ("healthy", "")


def describe(card: Card, rnics: Sequence[str], now: float, deadline: Deadline) -> Device:
    """Return a card with everything that can be learned of it in time."""
    device = card.device
    facts = dict(device.attributes)
    facts["rnics"] = known(tuple(rnics), "sysfs:bus/pci")
    info = read_devlink(card.nic_address, card.id, deadline) if card.ours and card.nic_address else DevlinkInfo()
    facts["firmware"] = _told(info.firmware, "devlink:fw.version", info)
    facts["psid"] = _told(info.board, "devlink:fw.psid", info)
    facts["offloads"] = known((), DRIVER)
    if card.ours:
        facts["mode"] = _mode(card, facts.get("mode"), deadline)
        pending = card.record.read().pending
        facts["pending_mode"] = (
            known(str(pending), DRIVER)
            if pending is not None and str(pending) != facts["mode"].value
            else absent(Absence.NOT_REPORTED, DRIVER, "no change is pending")
        )
        facts["boot_state"] = _boot(card, deadline)
        cores, memory = card.size(deadline)
    else:
        cores = memory = None
    facts["cores"] = _size(card, cores)
    facts["memory_bytes"] = _size(card, memory)
    facts["max_vfs"] = _most(card)
    capacity = dict(device.capacity)
    for name, attribute in (("cores", "cores"), ("memory_bytes", "memory_bytes"), ("vfs", "max_vfs")):
        value = facts[attribute].value
        if isinstance(value, int):
            capacity[name] = value
    conditions = [*device.conditions, *conditions_of(card, facts, info, now, deadline)]
    return msgspec.structs.replace(
        device,
        driver=DRIVER,
        allocatable=card.ours,
        attributes=facts,
        capacity=capacity,
        conditions=tuple(conditions),
    )


def conditions_of(
    card: Card, facts: dict[str, Attribute], info: DevlinkInfo, now: float, deadline: Deadline
) -> list[Condition]:
    """Return what is wrong with a card by its firmware's reporters, its boot and its temperature."""
    found: list[Condition] = []

    def add(
        type: str, severity: Severity, evidence: str, action: Action, *, source: str, latched: bool = False
    ) -> None:
        found.append(
            Condition(
                device=card.id,
                type=type,
                severity=severity,
                evidence=evidence,
                source=source,
                action=action,
                radius=Radius.BOARD,
                first_seen_at=now,
                last_seen_at=now,
                latched=latched,
            )
        )

    for reporter in info.reporters:
        if reporter.state in _DEVLINK_OK:
            continue
        evidence = f"devlink health reporter {reporter.name} is in {reporter.state}, {reporter.errors} errors so far"
        if reporter.name == "fw_fatal":
            add("FirmwareFatal", Severity.FATAL, evidence, Action.RESET, source="devlink", latched=True)
        elif reporter.name == "fw":
            add("FirmwareError", Severity.DEGRADED, evidence, Action.RESET, source="devlink")
        else:
            add("ReporterError", Severity.WARN, evidence, Action.NONE, source="devlink")
    state = facts.get("boot_state")
    if state is not None and state.known and state.value != str(BootState.READY):
        add("Booting", Severity.DEGRADED, f"boot_state={state.value}", Action.NONE, source=state.source)
    pending = facts.get("pending_mode")
    if pending is not None and pending.known:
        evidence = f"mode {pending.value} waits for a power cycle"
        add("ModePending", Severity.INFO, evidence, Action.POWER_CYCLE, source=DRIVER)
    mode = facts.get("mode")
    if card.bmc is not None and not (mode is not None and mode.value == str(DpuMode.RESTRICTED)):
        found += _heat(card, now, deadline)
    return found


def _heat(card: Card, now: float, deadline: Deadline) -> list[Condition]:
    try:
        assert card.bmc is not None
        name, told = card.bmc.sensor(TEMPERATURE, "sample", deadline)
    except DeviceError as error:
        return [
            Condition(
                device=card.id,
                type="BmcUnreachable",
                severity=Severity.WARN,
                status=Status.TRUE,
                evidence=error.message,
                source="redfish",
                first_seen_at=now,
                last_seen_at=now,
            )
        ]
    reading = told.get("Reading")
    limits = told.get("Thresholds") or {}
    for limit, severity in (("UpperCritical", Severity.CRITICAL), ("UpperCaution", Severity.DEGRADED)):
        bound = (limits.get(limit) or {}).get("Reading")
        if isinstance(reading, int | float) and isinstance(bound, int | float) and reading >= bound:
            return [
                Condition(
                    device=card.id,
                    type="OverTemperature",
                    severity=severity,
                    evidence=f"temperature_celsius={reading}, {limit} is {bound}",
                    source=f"redfish:{name}",
                    first_seen_at=now,
                    last_seen_at=now,
                )
            ]
    return []


def _told(value: str, source: str, info: DevlinkInfo) -> Attribute:
    return known(value, source) if value else absent(Absence.NOT_REPORTED, source, info.why or "devlink was not asked")


def _mode(card: Card, seen: Attribute | None, deadline: Deadline) -> Attribute:
    try:
        mode, source = card.mode("discover", deadline)
    except DeviceError as error:
        return seen if seen is not None and seen.known else why(error, "rshim:misc")
    return known(str(mode), source)


def _boot(card: Card, deadline: Deadline) -> Attribute:
    source = "redfish:BootProgress" if card.bmc is not None else "rshim:log"
    try:
        return known(str(read_boot(card, "discover", deadline).state), source)
    except DeviceError as error:
        return why(error, source)


def _size(card: Card, value: int | None) -> Attribute:
    if value is not None:
        return known(value, "redfish:ComputerSystem" if card.bmc is not None else "card:/proc")
    return absent(Absence.NOT_REPORTED, "redfish:ComputerSystem", "neither its BMC nor its cores were asked")


def _most(card: Card) -> Attribute:
    try:
        return known(card.functions().most("discover"), "sysfs:sriov_totalvfs")
    except DeviceError as error:
        return why(error, "sysfs:sriov_totalvfs")
