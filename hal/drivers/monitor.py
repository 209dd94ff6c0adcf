"""A driver that lives in a process of its own, the device's monitor: the same verbs, and it takes nobody along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from hal.drivers.contract import Cause, Discovery, Driver, Grant, Problem, Readiness
from hal.drivers.guard import Guard
from hal.drivers.monitor_calls import Monitor
from hal.drivers.monitor_child import Recipe
from hal.drivers.monitor_restarts import Restarts
from hal.drivers.monitor_wire import ITEM
from hal.errors import DeadlineExceeded, HalError, Unsupported
from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline, or_default
from hal.interfaces.gpu import Mode, Partition, PartitionProfile
from hal.interfaces.operation import Operation
from hal.model.device import Device
from hal.model.event import Event
from hal.model.health import Condition, Severity, Status

READINESS_SECONDS = 5.0
SLOW_SECONDS = 120.0
"""How long a verb that takes long may take if nobody says otherwise."""
LOST = "MonitorLost"
"""The type of the condition of devices whose driver does not answer."""


class MonitoredDriver:
    """Implements :class:`~hal.drivers.contract.Driver` by asking a process that has the real one.

    :func:`monitor` makes one that has the facets of the real driver, too. What the driver raises arrives as itself. A
    verb that is not answered in time raises :class:`~hal.errors.DeadlineExceeded`, and the process is killed; one that
    crashes raises ``DeviceError`` with the signal; in both cases the next verb finds a new process. ``sample`` raises,
    too: for the caller that is status unknown, never health. ``open`` is for the holder's own process; here it needs
    ``open_here``, which creates the driver in this process.
    """

    def __init__(self, process: Monitor, open_here: Callable[[], Driver] | None = None) -> None:
        self.process = process
        self._open_here = open_here
        self._opener: Driver | None = None
        self._seen: tuple[Device, ...] = ()

    @property
    def name(self) -> str:
        """The driver's name."""
        return self.process.name

    def readiness(self) -> Readiness:
        """Say whether the driver can work here, or why not; raises nothing."""
        try:
            found: Readiness = self.process.call("readiness", (), Deadline.after(READINESS_SECONDS))
        except DeadlineExceeded as error:
            return Readiness(cause=Cause.TIMEOUT, detail=error.message, remedy=error.hint or "")
        except HalError as error:
            return Readiness(cause=Cause.BROKEN, detail=error.message, remedy=error.hint or "")
        return found

    def discover(self, deadline: Deadline) -> Discovery:
        """Find all devices. If nobody answers: those last seen, each of them of status unknown, and the problem."""
        try:
            found: Discovery = self.process.call("discover", (), deadline)
        except HalError as error:
            if not self._seen:
                raise
            problem = Problem(source=self.name, step="discover", detail=error.message, hint=error.hint or "")
            return Discovery(devices=tuple(self._lost(device, error) for device in self._seen), problems=(problem,))
        self._seen = found.devices
        return found

    def _lost(self, device: Device, error: HalError) -> Device:
        unknown = Condition(
            device=device.id,
            type=LOST,
            severity=Severity.CRITICAL,
            status=Status.UNKNOWN,
            evidence=error.message,
            source=self.name,
        )
        return msgspec.structs.replace(device, conditions=(*device.conditions, unknown))

    def sample(self, device_ids: Sequence[str], deadline: Deadline) -> Sequence[Condition]:
        """Return the conditions that hold on the devices now.

        Raises what keeps the driver from answering; asked for one device at a time, one cannot speak for the others.
        """
        device = device_ids[0] if len(device_ids) == 1 else None
        found: Sequence[Condition] = self.process.call("sample", (tuple(device_ids),), deadline, device)
        return found

    def prepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Make the device ready for a holder."""
        self.process.call("prepare", (device_id, grant), deadline, device_id)

    def unprepare(self, device_id: str, grant: Grant, deadline: Deadline) -> None:
        """Take the device back."""
        self.process.call("unprepare", (device_id, grant), deadline, device_id)

    def open(self, device_id: str, guard: Guard, deadline: Deadline) -> Handle:
        """Open a device in this process, if that was asked for. Raises ``Unsupported`` if not."""
        if self._open_here is None:
            raise Unsupported(
                f"driver {self.name} runs in a process of its own, which opens nothing for others",
                device=device_id,
                during="open",
                hint="open the lease in the process that uses it: HeldLease.from_ticket, or hal run",
            )
        if self._opener is None:
            self._opener = self._open_here()
        return self._opener.open(device_id, guard, deadline)

    def close(self) -> None:
        """End the driver's process; the last call."""
        self.process.close()
        opener, self._opener = self._opener, None
        if opener is not None:
            opener.close()

    def forgive(self, by: str) -> None:
        """Lift a quarantine, by an operator's word."""
        self.process.restarts.forgive(by)

    def _operate(self, verb: str, arguments: tuple[Any, ...], deadline: Deadline | None) -> Operation[Any]:
        device = arguments[0]
        try:
            steps = self.process.follow(verb, arguments, or_default(deadline, SLOW_SECONDS), device)
        except HalError as error:
            return Operation.failed(error, device, verb)
        return Operation.spawn(device, verb, lambda _: [value for _, value in steps][-1])


class _Resetting(MonitoredDriver):
    def reset(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Reset one device."""
        return self._operate("reset", (device_id,), deadline)


class _Scrubbing(MonitoredDriver):
    def scrub(self, device_id: str, *, deadline: Deadline | None = None) -> Operation[None]:
        """Erase the previous holder's data."""
        return self._operate("scrub", (device_id,), deadline)


class _Reporting(MonitoredDriver):
    def events(self, deadline: Deadline) -> Iterator[Event]:
        """Yield events until the deadline."""
        for tag, event in self.process.follow("events", (), deadline):
            if tag == ITEM:
                yield event


class _Partitioning(MonitoredDriver):
    def partitioning(self, device_id: str, *, deadline: Deadline | None = None) -> Mode:
        """Return the mode, now and after the next reset."""
        mode: Mode = self.process.call("partitioning", (device_id,), or_default(deadline), device_id)
        return mode

    def set_partitioning(self, device_id: str, enabled: bool, *, deadline: Deadline | None = None) -> Mode:
        """Ask for the mode from the next reset on."""
        mode: Mode = self.process.call("set_partitioning", (device_id, enabled), or_default(deadline), device_id)
        return mode

    def partition_profiles(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[PartitionProfile]:
        """Return the shapes that the board knows."""
        arguments = (device_id,)
        found: Sequence[PartitionProfile]
        found = self.process.call("partition_profiles", arguments, or_default(deadline), device_id)
        return found

    def partitions(self, device_id: str, *, deadline: Deadline | None = None) -> Sequence[Partition]:
        """Return the partitions that exist."""
        found: Sequence[Partition] = self.process.call("partitions", (device_id,), or_default(deadline), device_id)
        return found

    def create_partition(
        self, device_id: str, profile: str, start: int | None = None, *, deadline: Deadline | None = None
    ) -> Operation[Partition]:
        """Make a partition."""
        return self._operate("create_partition", (device_id, profile, start), deadline)

    def destroy_partition(
        self, device_id: str, partition_id: str, *, deadline: Deadline | None = None
    ) -> Operation[None]:
        """End a partition."""
        return self._operate("destroy_partition", (device_id, partition_id), deadline)


_FACETS: dict[str, type[MonitoredDriver]] = {
    "Resets": _Resetting,
    "Scrubs": _Scrubbing,
    "Reports": _Reporting,
    "PartitionsDevices": _Partitioning,
}


@cache
def _class_with(facets: frozenset[str]) -> type[MonitoredDriver]:
    """Return the class that has these facets and no others: ``isinstance`` tells what the real driver can do."""
    bases = tuple(mixin for name, mixin in _FACETS.items() if name in facets)
    return type("MonitoredDriver", bases or (MonitoredDriver,), {"__doc__": MonitoredDriver.__doc__})


def monitor(
    recipe: Recipe,
    environ: Mapping[str, str],
    deadline: Deadline,
    *,
    user: str | None = None,
    record: Path | None = None,
    open_here: Callable[[], Driver] | None = None,
    process: Monitor | None = None,
) -> MonitoredDriver:
    """Start a driver in a process of its own and return it, with the facets that it says it has.

    ``environ`` is the process's whole environment, ``user`` whose rights it has (root only), ``record`` the file in
    which a quarantine is kept. Raises what kept the driver from being created, and ``DeadlineExceeded``.
    """
    process = process or Monitor(recipe, Restarts(recipe.name, record), environ, user=user)
    try:
        hello = process.hello(deadline)
    except BaseException:
        process.close()
        raise
    return _class_with(frozenset(hello.facets))(process, open_here)
