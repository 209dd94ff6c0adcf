"""Calling a driver from the agent: what it raises is an error of the device, and it cannot hang who calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from hal.drivers.contract import Driver
from hal.drivers.guarded import Call, describe
from hal.errors import DeadlineExceeded, DeviceError, HalError, NotReady
from hal.interfaces.deadline import Deadline
from hal.model.lease import AllocatedDevice

T = TypeVar("T")
Begin = Callable[[Callable[[], Any], str], Call[Any]]
"""How a call of a driver is begun: in a thread of its own, or as a simulation wants it."""


class DriverCalls:
    """Calls drivers with a deadline, each call under a guard. A device with a call that never came back is left alone.

    ``patience_seconds`` is how much longer than the driver's own deadline is waited, so that a driver that keeps it
    can say what happened. ``begin`` starts a call. Who calls sees to it that there is one call at a time for a device.
    """

    def __init__(self, drivers: Mapping[str, Driver], deadline_seconds: float, begin: Begin = Call) -> None:
        self.drivers = drivers
        self.deadline_seconds = deadline_seconds
        self.begin = begin
        self.patience_seconds = 1.0
        self._pending: dict[str, Call[Any]] = {}

    def deadline(self) -> Deadline:
        """Return the deadline of a call that begins now."""
        return Deadline.after(self.deadline_seconds)

    def driver(self, device: AllocatedDevice, step: str) -> Driver:
        """Return a device's driver; raises ``NotReady`` if it is not here."""
        driver = self.drivers.get(device.driver)
        if driver is None:
            raise NotReady(
                f"its driver {device.driver} is not here", device=device.id, during=step, hint="hal-probe doctor"
            )
        return driver

    def run(self, device: AllocatedDevice, step: str, work: Callable[[Driver, Deadline], T]) -> T:
        """Return what ``work`` returns; raises errors of ours alone, ``DeadlineExceeded`` if it does not return."""
        driver = self.driver(device, step)
        earlier = self._pending.get(device.id)
        if earlier is not None and not earlier.finished:
            raise DeadlineExceeded(
                "an earlier call has not returned yet; nobody knows what it will still do",
                device=device.id,
                during=step,
                hint="hal repair, or wait for it",
            )
        deadline = self.deadline()
        call = self.begin(lambda: work(driver, deadline), f"{step}-{device.id}")
        self._pending[device.id] = call
        if not call.join(Deadline.after(self.deadline_seconds + self.patience_seconds)):
            raise DeadlineExceeded(
                "the driver did not return; the outcome is unknown",
                device=device.id,
                during=step,
                hint="hal-probe doctor",
            )
        del self._pending[device.id]
        if isinstance(call.error, HalError):
            raise call.error
        if call.error is not None:
            raise DeviceError(
                describe(call.error), device=device.id, during=step, hint="report it to the plugin"
            ) from call.error
        return cast(T, call.value)
