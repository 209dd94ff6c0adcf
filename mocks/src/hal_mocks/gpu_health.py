"""What a mock GPU's faults and memory of errors look like as conditions, and what they do to a program."""

from __future__ import annotations

from collections.abc import Sequence

from hal.errors import DeviceError, DeviceGone, HardwareFault, ProgramFault, UncorrectableError
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu_xid import Blame, Xid, xid
from hal.model.device import Device
from hal.model.health import Action, Condition, Presence, Radius, Severity
from hal_mocks.base import common_conditions, pass_through_faults
from hal_mocks.faults import Fault, FaultType
from hal_mocks.gpu_store import Record
from hal_mocks.machine import Machine

SOURCE = "mock-gpu"
OFF_BUS = 79
ECC = 48


def loses_device(fault: Fault) -> bool:
    """True if the fault takes the GPU off the bus, from where no reset brings it back."""
    return fault.type is FaultType.FALLEN_OFF_BUS or (fault.type is FaultType.XID and fault.code == OFF_BUS)


def xid_of(fault: Fault) -> Xid | None:
    """Return the XID that a fault is reported as, if it is."""
    match fault.type:
        case FaultType.XID:
            return xid(fault.code or 0)
        case FaultType.FALLEN_OFF_BUS:
            return xid(OFF_BUS)
        case FaultType.ECC_UNCORRECTABLE:
            return xid(ECC)
    return None


def conditions_of(device_id: str, fault: Fault, now: float) -> Sequence[Condition]:
    """Return what one fault looks like from outside. A lie looks like nothing."""
    found: list[Condition] = []
    meaning = xid_of(fault)
    if meaning is not None:
        found.append(
            _condition(
                device_id,
                "XidError",
                meaning.severity,
                f"XID {meaning.code}: {meaning.meaning}",
                fault,
                now,
                action=meaning.action,
                code=meaning.code,
                radius=meaning.radius,
                latched=meaning.needs_reset and meaning.blame is not Blame.APPLICATION,
            )
        )
        if fault.type is FaultType.XID and meaning.loses_device:
            found.append(
                _condition(
                    device_id,
                    "FallenOffBus",
                    Severity.FATAL,
                    "config space reads all ones",
                    fault,
                    now,
                    action=Action.REBOOT,
                    latched=True,
                )
            )
    match fault.type:
        case FaultType.LINK_DEGRADED:
            speed = f" generation {fault.generation}" if fault.generation else ""
            width = f" x{fault.width}" if fault.width else ""
            left = f"PCIe{speed}{width}," if speed or width else "the PCIe link is"
            found.append(
                _link(device_id, "LinkDegraded", Severity.DEGRADED, f"{left} below the most it can", fault, now)
            )
        case FaultType.LINK_DOWN:
            found.append(_link(device_id, "NvlinkDown", Severity.DEGRADED, "NVLinks are down", fault, now))
        case FaultType.FLAP:
            evidence = f"NVLinks go down and up every {fault.seconds} s"
            found.append(_link(device_id, "LinkFlapping", Severity.DEGRADED, evidence, fault, now))
    found.extend(common_conditions(device_id, fault, SOURCE, now))
    return found


def _link(device_id: str, type: str, severity: Severity, evidence: str, fault: Fault, now: float) -> Condition:
    return _condition(device_id, type, severity, evidence, fault, now, radius=Radius.LINK, action=Action.DRAIN_RESET)


def _condition(
    device_id: str,
    type: str,
    severity: Severity,
    evidence: str,
    fault: Fault,
    now: float,
    *,
    action: Action = Action.NONE,
    code: int | None = None,
    radius: Radius = Radius.DEVICE,
    latched: bool = False,
) -> Condition:
    return Condition(
        device=device_id,
        type=type,
        severity=severity,
        evidence=evidence,
        source=SOURCE,
        radius=radius,
        action=action,
        code=code,
        first_seen_at=fault.onset_at,
        last_seen_at=now,
        latched=latched,
    )


def latched_conditions(device_id: str, record: Record, now: float) -> Sequence[Condition]:
    """Return what the GPU remembers of memory errors, whether or not the fault is still there."""
    found: list[Condition] = []
    if record.remap_pending:
        found.append(
            Condition(
                device=device_id,
                type="UncorrectableEcc",
                severity=Severity.CRITICAL,
                evidence=f"{record.ecc_evidence}; {record.remap_pending} row(s) wait for a reset to be replaced",
                source=SOURCE,
                action=Action.DRAIN_RESET,
                code=ECC,
                first_seen_at=record.ecc_seen_at,
                last_seen_at=now,
                count=record.aggregate.dram_uncorrected,
                latched=True,
            )
        )
    if record.remap_failed:
        found.append(
            Condition(
                device=device_id,
                type="RowRemappingFailed",
                severity=Severity.CRITICAL,
                evidence="no spare row was left to replace a faulty one",
                source=SOURCE,
                action=Action.REPLACE,
                code=64,
                first_seen_at=record.ecc_seen_at,
                last_seen_at=now,
                latched=True,
            )
        )
    return found


def all_conditions(device_id: str, record: Record, faults: Sequence[Fault], now: float) -> tuple[Condition, ...]:
    """Return what is wrong with a GPU: what it remembers, then what holds now."""
    return (
        *latched_conditions(device_id, record, now),
        *(condition for fault in faults for condition in conditions_of(device_id, fault, now)),
    )


_LADDER = tuple(Action)


def recovery_action(conditions: Sequence[Condition]) -> Action:
    """Return the strongest action that the conditions ask for, as NVML's ``GPU_RECOVERY_ACTION`` would."""
    return max((c.action for c in conditions), key=_LADDER.index, default=Action.NONE)


def what_work_meets(device_id: str, fault: Fault, step: str) -> DeviceError | None:
    """Return the error that a fault raises in work on the device, None if work goes on."""
    meaning = xid_of(fault)
    if loses_device(fault):
        return gone(device_id, step)
    if meaning is None or not (meaning.ends_context or (step == "copy_peer" and meaning.needs_reset)):
        return None
    text = f"XID {meaning.code}: {meaning.meaning}"
    if meaning.blame is Blame.APPLICATION:
        hint = "close the handle and open the device again; look for the fault in the program"
        return ProgramFault(text, device=device_id, during=step, code=meaning.code, hint=hint)
    if meaning.code in (48, 94, 95, 140):
        hint = "close the handle; the data is lost, and the device may need a reset"
        return UncorrectableError(text, device=device_id, during=step, code=meaning.code, hint=hint)
    hint = "give the device back and have it reset"
    return HardwareFault(text, device=device_id, during=step, code=meaning.code, hint=hint)


def outlives_context(fault: Fault) -> bool:
    """True if not only the program that met the fault is ended by it, but every later one until a reset."""
    meaning = xid_of(fault)
    return meaning is not None and meaning.needs_reset and meaning.code != 74


def gone(device_id: str, step: str) -> DeviceGone:
    """Return the error that every call on a GPU gives that has fallen off the bus (NVML ``ERROR_GPU_IS_LOST``)."""
    return DeviceGone(
        "XID 79: fallen off the bus; no call is answered any more",
        device=device_id,
        during=step,
        hint="a reset does not help: reboot or power-cycle the node",
    )


def meet_faults(machine: Machine, device: Device, step: str, deadline: Deadline) -> tuple[Fault, ...]:
    """Raise or wait as a device's faults, and its GPU's, make every verb do; return what is left for the caller."""
    found: tuple[Fault, ...] = ()
    for source in (device.id,) if device.parent is None else (device.id, device.parent):
        faults = machine.faults_of(source)
        if not faults:
            continue
        if any(loses_device(fault) for fault in faults):
            raise gone(device.id, step)
        try:
            pass_through_faults(machine, source, step, deadline)
        except DeviceError as error:
            error.device = device.id
            raise
        found += faults
    return found


def presence_of(faults: Sequence[Fault]) -> Presence:
    """Return whether a device with these faults is still there."""
    if any(loses_device(fault) for fault in faults):
        return Presence.MISSING
    if any(fault.type in (FaultType.LOST, FaultType.HANG) for fault in faults):
        return Presence.GHOST
    return Presence.PRESENT
