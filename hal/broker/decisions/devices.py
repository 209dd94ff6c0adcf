"""Decisions about devices: what is seen of them, their repair, and who keeps them from new leases."""

from __future__ import annotations

import msgspec

from hal.broker import command as c
from hal.broker import record as r
from hal.broker.allocation.places import ancestors
from hal.broker.index import NODE
from hal.broker.lifecycle import STAYING
from hal.broker.state import State
from hal.errors import DeviceBusy, DeviceNotFound
from hal.model.device import Device
from hal.model.health import Action, Condition, Presence, Status
from hal.model.kind import Kind
from hal.model.lease import Lease

AGENT = "hal-agent"
"""The source of conditions that the broker's own agent saw; they outlive an observation until they expire."""
FENCES_A_SECOND = 1_000_000
_REBOOT_MENDS = (Action.RESTART_APP, Action.RESET, Action.DRAIN_RESET, Action.REBOOT)

Decision = tuple[list[r.AnyRecord], c.Answer]


def begin(state: State, command: c.Begin, now: float) -> Decision:
    """Start under a boot id: what was held before another boot is proven to be let go."""
    records: list[r.AnyRecord] = []
    if state.revision == 0:
        # A journal that was lost and begun anew must not give a fence again: the time is above all it can have given.
        records.append(r.JournalBegun(at=now, fence=int(now) * FENCES_A_SECOND))
    if command.boot_id == state.boot_id:
        return records, c.Done()
    records.append(r.BootSeen(at=now, boot_id=command.boot_id, clock_offset_seconds=command.clock_offset_seconds))
    if not state.boot_id:
        return records, c.Done()
    proof = f"the machine was booted since (boot id {command.boot_id}, it was {state.boot_id})"
    for lease in state.leases.values():
        own = {
            lease.slot_of(d): "a DPU's own cores do not stop with the host" for d in lease.devices if d.kind is Kind.DPU
        }
        slots = (lease.slot_of(device) for device in lease.devices)
        freed = tuple(slot for slot in slots if slot not in own)
        records.append(r.LeaseEnded(at=now, lease=lease.id, freed=freed, fenced=own, proof=proof))
    for slot, fenced in state.fenced.items():
        if fenced.device.kind is not Kind.DPU:
            records.append(r.DeviceFreed(at=now, device=slot, proof=proof))
    for device in state.devices.values():
        if any(condition.latched for condition in device.conditions) and not _boots_by_itself(device, state):
            records.append(r.DeviceSeen(at=now, device=_rebooted(device)))
    return records, c.Done()


def _boots_by_itself(device: Device, state: State) -> bool:
    family = (device, *ancestors(device, state.devices))
    return any(isinstance(member, Device) and member.kind is Kind.DPU for member in family)


def _rebooted(device: Device) -> Device:
    """A reboot is the repair that some evidence asks for: the next look, and no memory, says whether it passed."""
    conditions = tuple(
        msgspec.structs.replace(condition, latched=False) if condition.action in _REBOOT_MENDS else condition
        for condition in device.conditions
    )
    return msgspec.structs.replace(device, conditions=conditions)


def observe(state: State, command: c.Observe, now: float) -> Decision:
    """Write down what is new about devices, and which are gone."""
    records: list[r.AnyRecord] = []
    here: set[str] = set()
    for device in command.devices:
        if device.id in here:
            continue  # two findings of one identity: the first stands, or each look would undo the other
        here.add(device.id)
        before = state.devices.get(device.id)
        if before is not None and (before == device or _settled(before) == _settled(device)):
            continue
        kept = _kept(before, device, now) if before is not None else ()
        fresh = msgspec.structs.replace(device, conditions=(*device.conditions, *kept)) if kept else device
        if before is None or _settled(before) != _settled(fresh):
            records.append(r.DeviceSeen(at=now, device=fresh))
    if command.complete:
        for device_id, device in state.devices.items():
            if device_id in here or device.driver in command.silent:
                continue
            if not state.holders_of(device_id) and not any(condition.latched for condition in device.conditions):
                records.append(r.DeviceForgotten(at=now, device=device_id))
            elif device.presence is not Presence.MISSING:
                lost = msgspec.structs.replace(device, presence=Presence.MISSING)
                records.append(r.DeviceSeen(at=now, device=lost))
    return records, c.Done()


def _kept(before: Device, device: Device, now: float) -> tuple[Condition, ...]:
    """Return what is known of a device and does not go because a look no longer shows it.

    That is what the agent saw, until it expires, and latched evidence, until a repair.
    """
    latched = {(condition.type, condition.code) for condition in device.conditions if _is_latched(condition)}
    return tuple(
        condition
        for condition in before.conditions
        if (
            (condition.type, condition.code) not in latched
            if _is_latched(condition)
            else condition.source == AGENT and condition.expires_at is not None and condition.expires_at > now
        )
        and condition not in device.conditions
    )


def _is_latched(condition: Condition) -> bool:
    return condition.latched and condition.status is Status.TRUE


def _settled(device: Device) -> Device:
    """Return the device without what changes at every look: how often and how lately a condition was seen."""
    if not device.conditions:
        return device
    conditions = tuple(
        msgspec.structs.replace(condition, first_seen_at=0.0, last_seen_at=0.0, count=0)
        for condition in device.conditions
    )
    return msgspec.structs.replace(device, conditions=conditions)


def repair(state: State, command: c.RepairDevice, now: float) -> Decision:
    """Clear the evidence of a device that was repaired while nobody held it."""
    device = state.devices.get(command.device)
    if device is None:
        raise DeviceNotFound("no such device", device=command.device, during="repair", hint="hal-probe list")
    for held in (*state.holders, *state.sharers):
        if not _share_fate(held, device.id, state):
            continue
        for lease_id in state.holders_of(held):
            if lease_id not in state.leases:
                continue  # its last holder's slot is fenced
            what = "it" if held == device.id else state.devices[held].name if held in state.devices else held
            raise DeviceBusy(
                f"{what} is held by lease {lease_id}" + ("" if held == device.id else ", and shares its fate"),
                device=device.id,
                during="repair",
                hint=f"hal release {lease_id}",
            )
    if not command.how:
        return [], c.Done()
    if any(fenced.device.id == device.id for fenced in state.fenced.values()):
        raise DeviceBusy("it is fenced", device=device.id, during="repair", hint="hal status")
    return [r.DeviceRepaired(at=now, device=device.id, how=command.how, conditions=command.conditions)], c.Done()


def _share_fate(one: str, other: str, state: State) -> bool:
    return one == other or one in _above(other, state) or other in _above(one, state)


def _above(device_id: str, state: State) -> set[str]:
    device = state.devices.get(device_id)
    if device is None:
        return set()
    return {member if isinstance(member, str) else member.id for member in ancestors(device, state.devices)}


def cordon(state: State, command: c.SetCordon, now: float) -> Decision:
    """Keep a device or a machine from new leases; with ``drain``, tell its holders to leave."""
    concerned = _concerned(state, command.target)
    records: list[r.AnyRecord] = []
    before = state.cordons.get(command.target)
    draining = command.drain or (before is not None and before.draining)
    if before is None or (before.why, before.draining) != (command.why or before.why, draining):
        why = command.why or (before.why if before is not None else "")
        records.append(r.Cordoned(at=now, target=command.target, why=why, by=command.by, draining=draining))
    told: list[Lease] = []
    if command.drain:
        drained = state.devices.get(command.target)
        name = command.target.removeprefix(NODE) if drained is None else drained.name
        reason = f"{name} is drained by {command.by}"
        if command.why:
            reason += f": {command.why}"
        holders = dict.fromkeys(lease_id for device_id in concerned for lease_id in state.holders_of(device_id))
        for lease_id in holders:
            lease = state.leases.get(lease_id)
            if lease is None or lease.state not in STAYING:
                continue
            grace = state.claims[lease_id].grace_seconds if command.grace_seconds is None else command.grace_seconds
            records.append(r.LeaseNoticed(at=now, lease=lease_id, leave_by=now + grace, why=reason))
            told.append(lease)
    return records, c.Done(leases=tuple(told))


def _concerned(state: State, target: str) -> list[str]:
    """Return the devices that a cordon is about, with those that share the device's fate from below."""
    if target.startswith(NODE):
        name = target.removeprefix(NODE)
        found = [device.id for device in state.devices.values() if device.location.node == name]
        if not found:
            raise DeviceNotFound("no such machine", device=name, during="cordon", hint="hal-probe list")
        return found
    if target not in state.devices:
        raise DeviceNotFound("no such device", device=target, during="cordon", hint="hal-probe list")
    return [
        held for held in dict.fromkeys((target, *state.holders, *state.sharers)) if _share_fate(held, target, state)
    ]


def lift(state: State, command: c.LiftCordon, now: float) -> Decision:
    """Take a cordon back; the same again is no error."""
    if command.target not in state.cordons:
        return [], c.Done()
    return [r.Uncordoned(at=now, target=command.target, by=command.by)], c.Done()
