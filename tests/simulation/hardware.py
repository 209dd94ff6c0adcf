"""Devices that remember who had them, and a driver that fails, crashes its process, or does not answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from hal.drivers.contract import READY, Discovery, Grant, Readiness
from hal.errors import DeviceError, DeviceNotFound, StaleFence
from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal.model.health import Condition, Presence, Severity, Status
from tests.simulation.timeline import Crash, Timeline


class Hang(Exception):
    """A call that does not come back before its deadline."""


class Inline:
    """A call of a driver as :class:`hal.drivers.guarded.Call`, without a thread: a simulation has one order."""

    def __init__(self, work: Callable[[], Any], name: str) -> None:
        self.name = name
        self.value: Any = None
        self.error: BaseException | None = None
        self.finished = True
        self.seconds = 0.0
        self._hung = False
        try:
            self.value = work()
        except Hang:
            self._hung = True
        except Exception as error:
            self.error = error

    def join(self, deadline: Deadline) -> bool:
        return not self._hung


class Touch(NamedTuple):
    """What the hardware saw: ``what`` is prepared, unprepared or used."""

    what: str
    device: str
    lease: str
    fence: int


class SimDriver:
    """Devices by id. ``prepared`` is whom each one serves, all that is done to any is history."""

    name = "sim"

    def __init__(self, time: Timeline, devices: Sequence[Device]) -> None:
        self.time = time
        self.devices = {device.id: device for device in devices}
        self.prepared: dict[str, dict[str, int]] = {}
        self.highest: dict[str, int] = {}
        self.sick: set[str] = set()
        self.gone: set[str] = set()
        self.trouble = 0.0

    def readiness(self) -> Readiness:
        return READY

    def discover(self, deadline: Deadline) -> Discovery:
        return Discovery(devices=self.look())

    def look(self) -> tuple[Device, ...]:
        found = []
        for device in self.devices.values():
            conditions = tuple(self._conditions(device.id))
            presence = Presence.MISSING if device.id in self.gone else Presence.PRESENT
            found.append(msgspec.structs.replace(device, conditions=conditions, presence=presence))
        return tuple(found)

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> list[Condition]:
        self._meet_trouble("sample", device_ids[0])
        return [condition for device_id in device_ids for condition in self._conditions(device_id)]

    def _conditions(self, device_id: str) -> list[Condition]:
        if device_id not in self.sick:
            return []
        return [
            Condition(
                device=device_id,
                type="Broken",
                severity=Severity.FATAL,
                status=Status.TRUE,
                evidence="it broke",
                source="sim",
                latched=True,
                first_seen_at=0.0,
                last_seen_at=0.0,
            )
        ]

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        self._meet_trouble("prepare", device_id)
        if grant.fence < self.highest.get(device_id, 0):
            raise StaleFence("a later holder is known", device=device_id, during="prepare")
        self.highest[device_id] = grant.fence
        self.prepared.setdefault(device_id, {})[grant.lease] = grant.fence
        self.time.history.append(Touch("prepared", device_id, grant.lease, grant.fence))
        self.time.note(f"device {device_id}: prepared for {grant.lease}")
        self._meet_trouble("after prepare", device_id)

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        self._meet_trouble("unprepare", device_id)
        if grant.fence < self.highest.get(device_id, 0):
            raise StaleFence("a later holder is known", device=device_id, during="unprepare")
        self.prepared.pop(device_id, None)
        self.time.history.append(Touch("unprepared", device_id, grant.lease, grant.fence))
        self.time.note(f"device {device_id}: unprepared for {grant.lease}")
        self._meet_trouble("after unprepare", device_id)

    def _meet_trouble(self, step: str, device_id: str) -> None:
        if device_id not in self.devices:
            raise DeviceNotFound("no such device", device=device_id, during=step)
        if not self.time.chance(self.trouble):
            return
        fate = self.time.random.random()
        self.time.note(f"device {device_id}: trouble at {step}")
        if fate < 0.4:
            raise DeviceError("it does not want to", device=device_id, during=step)
        if fate < 0.6:
            self.time.pass_time(10.0)
            raise Hang
        if fate < 0.8:
            raise Crash
        self.time.pass_time(fate * 5)

    def use(self, device_id: str, lease: str, fence: int) -> None:
        self.time.history.append(Touch("used", device_id, lease, fence))

    def reboot(self) -> None:
        """Power comes back: nobody is served, and what was latched in hardware is not."""
        self.prepared.clear()
        self.highest.clear()
        self.time.history.append(Touch("power", "", "", 0))

    def open(self, device_id: str, guard: object, deadline: Deadline) -> Any:
        raise DeviceError("nobody opens simulated devices", device=device_id, during="open")

    def close(self) -> None:
        """Hardware outlives its drivers."""
