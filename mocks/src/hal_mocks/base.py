"""What all mock drivers share: answering from the graph, faults before every step, fences that only grow."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakSet

from hal.drivers.contract import READY, Discovery, Grant, Problem, Readiness
from hal.drivers.guard import Guard
from hal.errors import DeadlineExceeded, DeviceGone, InvalidArgument, StaleFence
from hal.interfaces.deadline import Deadline, or_default
from hal.model.attributes import Attribute, Value, known
from hal.model.device import Device
from hal.model.event import Event
from hal.model.health import Action, Condition, Radius, Severity, Status
from hal_mocks.faults import Fault, FaultType
from hal_mocks.machine import Machine, device_not_found

GONE = (FaultType.LOST, FaultType.FALLEN_OFF_BUS)


def pass_through_faults(machine: Machine, device_id: str, step: str, deadline: Deadline) -> tuple[Fault, ...]:
    """Meet the faults that any device can have: raise for a lost one, wait for a hung or slow one.

    Returns the other faults that hold, for the kind to act upon.
    """
    faults = machine.faults_of(device_id)
    for fault in faults:
        if fault.type in GONE:
            raise DeviceGone(
                "lost" if fault.type is FaultType.LOST else "fallen off the bus",
                device=device_id,
                during=step,
                hint="hal-probe doctor; a reset or a reboot may bring it back",
            )
        if fault.type is FaultType.HANG:
            wait_out(machine, device_id, step, deadline)
        if fault.type is FaultType.SLOW:
            if fault.seconds >= deadline.remaining_seconds:
                wait_out(machine, device_id, step, deadline)
            machine.clock.sleep(fault.seconds)
    return faults


def wait_out(machine: Machine, device_id: str, step: str, deadline: Deadline) -> None:
    """Wait as a hung device makes one wait, then raise :class:`~hal.errors.DeadlineExceeded`."""
    remaining = deadline.timeout
    if remaining is None:
        threading.Event().wait()
    else:
        machine.clock.sleep(remaining)
    raise DeadlineExceeded(
        "no answer in time; the outcome is unknown",
        device=device_id,
        during=step,
        hint="hal-probe doctor; a hung device needs a reset or a reboot",
    )


_OPEN: WeakSet[MockHandle] = WeakSet()
"""This process's handles, so that a forked child learns that they are not its own."""


def _leave_to_parent() -> None:
    for handle in tuple(_OPEN):
        handle._forked = True
        handle._calm = -1
        handle._abandon()
    _OPEN.clear()


class MockHandle:
    """An opened mock device: the guard and the faults are met before every verb by :meth:`_enter`.

    It belongs to the process that opened it: in a forked child its verbs are refused, and what it holds open there is
    let go, so that a lock ends with its holder.
    """

    _closed = False
    _forked = False
    _heard_of_forks = False

    def __init__(self, machine: Machine, device: Device, guard: Guard) -> None:
        self._machine = machine
        self._device = device
        self._id = device.id
        self._guard = guard
        self._check = guard.check
        self._control = machine.state.control
        self._calm = -1  # the generation of the machine in which nothing is wrong with this device
        if not MockHandle._heard_of_forks:
            MockHandle._heard_of_forks = True
            os.register_at_fork(after_in_child=_leave_to_parent)
        _OPEN.add(self)

    @property
    def device(self) -> Device:
        """The device as it was when opened."""
        return self._device

    def _enter(self, step: str, deadline: Deadline | None = None) -> tuple[Fault, ...]:
        """Raise if the lease has ended or the device is gone; else return the faults left for the kind."""
        self._check()
        if deadline is not None:
            self._be_in_time(step, deadline)
        generation = self._control[0]
        if generation == self._calm:
            return ()
        self._be_open(step)
        self._look(step, deadline)
        machine = self._machine
        faults = pass_through_faults(machine, self._id, step, or_default(deadline))
        calm = not faults and not machine._scheduled and machine._generation == generation
        self._calm = generation if calm else -1
        return faults

    def _look(self, step: str, deadline: Deadline | None = None) -> None:
        """Raise what a kind has to say besides faults; asked whenever the machine's generation has changed."""

    def _be_in_time(self, step: str, deadline: Deadline) -> None:
        if deadline.expired:
            raise DeadlineExceeded(
                "the deadline had passed before it began: nothing was done",
                device=self._id,
                during=step,
                hint="give a later deadline",
            )

    def _be_open(self, step: str) -> None:
        if self._forked:
            raise InvalidArgument(
                "the handle belongs to the process that was forked",
                device=self._id,
                during=step,
                hint="open the device in this process",
            )
        if self._closed:
            raise InvalidArgument("the handle is closed", device=self._id, during=step, hint="open the device again")

    def _abandon(self) -> None:
        """Let go of descriptors in a forked child without touching what the parent shares."""

    def close(self) -> None:
        """Give back what the handle holds. A kind does its own part first."""
        self._closed = True
        self._calm = -1
        _OPEN.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MockDriver(ABC):
    """A driver over the graph. A kind gives :meth:`describe`, :meth:`conditions_of` and ``open``."""

    name = "mock"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def readiness(self) -> Readiness:
        """A mock is always ready."""
        return READY

    @abstractmethod
    def describe(self) -> Sequence[Device]:
        """Return all devices of this kind in the graph, as they are without faults."""

    def conditions_of(self, device: Device, fault: Fault) -> Sequence[Condition]:
        """Return what a fault looks like as conditions; the kind adds its own before asking here."""
        return common_conditions(device.id, fault, self.name, self.machine.clock.now())

    def discover(self, deadline: Deadline) -> Discovery:
        """Describe every device with its conditions; one that hangs becomes a ghost and a problem."""
        devices: list[Device] = []
        problems: list[Problem] = []
        for device in self.describe():
            seen = self.look_at(device)
            if seen is not None:
                devices.append(seen)
        return Discovery(devices=tuple(devices), problems=tuple(problems))

    def look_at(self, device: Device) -> Device | None:
        """Return the device as it is with its faults, or None if it cannot be seen at all."""
        faults = self.machine.faults_of(device.id)
        return device if not faults else apply_faults(device, faults, self.conditions_of)

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that the faults amount to."""
        found: list[Condition] = []
        by_id = {device.id: device for device in self.describe()}
        for device_id in device_ids:
            device = by_id.get(device_id)
            if device is None:
                raise device_not_found(device_id)
            for fault in self.machine.faults_of(device_id):
                found.extend(self.conditions_of(device, fault))
        return found

    def events(self, deadline: Deadline) -> Iterator[Event]:
        """Yield what changes from now on: conditions that come and go (an XID, a port that is down), devices."""
        from hal_mocks.watching import watch

        return watch(self, deadline)

    def find(self, device_id: str) -> Device:
        """Return one device as it is, or raise :class:`~hal.errors.DeviceNotFound`."""
        for device in self.describe():
            if device.id == device_id:
                return self.look_at(device) or device
        raise device_not_found(device_id)

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse a lower fence; remember the highest."""
        self.find(device_id)
        pass_through_faults(self.machine, device_id, "prepare", deadline)
        self._raise_fence(device_id, grant, "prepare")

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Refuse a lower fence; a lost device is let go all the same."""
        self.find(device_id)
        self._raise_fence(device_id, grant, "unprepare")

    def _raise_fence(self, device_id: str, grant: Grant, step: str) -> None:
        path = self.machine.state.device(device_id) / "fence"
        with self.machine.state.locked("fence.lock"):
            seen = int(path.read_text()) if path.exists() else 0
            if grant.fence < seen:
                raise StaleFence(
                    f"fence {grant.fence} is older than {seen}, which the device has seen",
                    device=device_id,
                    during=step,
                    hint="the lease was given to somebody else; claim again",
                )
            if grant.fence > seen:
                write_whole(path, str(grant.fence).encode())

    def close(self) -> None:  # noqa: B027 - a kind that holds something overrides it
        """Nothing is held."""


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one step: whoever reads sees the old one or the new one, also if the writer is killed."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def apply_faults(
    device: Device, faults: Sequence[Fault], conditions_of: Callable[[Device, Fault], Sequence[Condition]]
) -> Device:
    """Return the device as its faults make it look."""
    import msgspec

    from hal.model.health import Presence

    conditions = tuple(condition for fault in faults for condition in conditions_of(device, fault))
    presence = device.presence
    types = {fault.type for fault in faults}
    if FaultType.FALLEN_OFF_BUS in types:
        presence = Presence.MISSING
    elif types & {FaultType.LOST, FaultType.HANG}:
        presence = Presence.GHOST
    return msgspec.structs.replace(device, conditions=(*device.conditions, *conditions), presence=presence)


def with_lies(device: Device, faults: Sequence[Fault]) -> Device:
    """Return the device saying what its lying faults make it say."""
    import msgspec

    told = tell_lies(device.attributes, faults)
    return device if told is device.attributes else msgspec.structs.replace(device, attributes=told)


def tell_lies(attributes: dict[str, Attribute], faults: Sequence[Fault]) -> dict[str, Attribute]:
    """Return attributes with what lying faults say in their place, of the same type where that can be read so.

    The source stays: a lie does not show. An attribute that is not there cannot be lied about.
    """
    lies = [fault for fault in faults if fault.type is FaultType.LIE and fault.attribute in attributes]
    if not lies:
        return attributes
    told = dict(attributes)
    for fault in lies:
        true = told[fault.attribute]
        value: Value = fault.value
        if isinstance(true.value, bool):
            value = fault.value.lower() in ("true", "yes", "1")
        elif isinstance(true.value, int | float):
            try:
                value = type(true.value)(fault.value)
            except ValueError:
                value = fault.value
        told[fault.attribute] = known(value, true.source)
    return told


def common_conditions(device_id: str, fault: Fault, source: str, now: float) -> Sequence[Condition]:
    """Return the conditions of the faults that every kind can have."""
    table = {
        FaultType.LOST: ("DeviceLost", Severity.FATAL, Action.RESET, "every call answers that the device is lost"),
        FaultType.FALLEN_OFF_BUS: ("FallenOffBus", Severity.FATAL, Action.REBOOT, "config space reads all ones"),
        FaultType.HANG: ("NoAnswer", Severity.CRITICAL, Action.RESET, "a call did not return before its deadline"),
        FaultType.SLOW: ("Slow", Severity.WARN, Action.NONE, f"answers take {fault.seconds} s longer"),
    }
    if fault.type not in table:
        return ()
    type_, severity, action, evidence = table[fault.type]
    return (
        Condition(
            device=device_id,
            type=type_,
            severity=severity,
            status=Status.UNKNOWN if fault.type is FaultType.HANG else Status.TRUE,
            evidence=evidence,
            source=source,
            radius=Radius.DEVICE,
            action=action,
            first_seen_at=fault.onset_at,
            last_seen_at=now,
            latched=fault.type in GONE,
        ),
    )
