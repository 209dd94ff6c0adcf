"""How devices are now: the drivers are asked under a guard, and no answer is an answer of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import msgspec

from hal.agent.calling import DriverCalls
from hal.broker import command as c
from hal.broker.core import AGENT
from hal.broker.ledger import Ledger
from hal.broker.record import checked
from hal.drivers.contract import Driver
from hal.drivers.guarded import describe
from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal.model.health import Condition, Severity, Status

HELD_BACK_SECONDS = 60.0
"""How long a device that could not be prepared is kept from new leases, unless its driver says worse."""
ASK_AGAIN_SECONDS = 5.0
"""How long a device is kept from new leases that could not be asked how it is."""


class Sampling:
    """Asks drivers how devices are, and writes down what is new. Thread-safe, and no lock is held meanwhile."""

    def __init__(self, ledger: Ledger, calls: DriverCalls) -> None:
        self.ledger = ledger
        self.calls = calls

    def sample(self, devices: Iterable[Device]) -> bool:
        """Ask the drivers how the devices are now and write down what is new; True if a device became unfit."""
        by_driver: dict[str, list[Device]] = {}
        changed: list[Device] = []
        for device in devices:
            if device.driver in self.calls.drivers:
                by_driver.setdefault(device.driver, []).append(device)
            elif device.allocatable:
                gone = self._condition(device.id, "NoDriver", f"{device.driver} is not here", Status.UNKNOWN)
                left = [condition for condition in device.conditions if condition.type != gone.type]
                changed.append(msgspec.structs.replace(device, conditions=(*left, gone)))
        for name, group in by_driver.items():
            seen = self.look(self.calls.drivers[name], [device.id for device in group])
            for device in group:
                fresh = [condition for condition in seen if condition.device == device.id]
                types = {condition.type for condition in fresh}
                kept = [condition for condition in device.conditions if condition.type not in types]
                changed.append(msgspec.structs.replace(device, conditions=(*kept, *fresh)))
        self.ledger.execute(c.Observe(devices=tuple(changed)))
        return any(condition.blocks_new_leases for device in changed for condition in device.conditions)

    def look(self, driver: Driver, device_ids: list[str]) -> list[Condition]:
        """Ask a driver how devices are now; no answer is a condition of status unknown."""
        deadline = self.calls.deadline()
        call = self.calls.begin(lambda: _conditions(driver, device_ids, deadline), f"sample-{driver.name}")
        # A monitored driver is killed at its deadline, and says so a moment later.
        patience = Deadline.after(self.calls.deadline_seconds + min(0.25, self.calls.deadline_seconds * 0.1))
        if call.join(patience) and call.value is not None:
            return cast(list[Condition], call.value)
        detail = describe(call.error) if call.error is not None else "no answer in time"
        if len(device_ids) > 1:  # one broken device must not speak for the others
            return [found for device_id in device_ids for found in self.look(driver, [device_id])]
        return [self._condition(device_id, "SampleFailed", detail, Status.UNKNOWN) for device_id in device_ids]

    def keep_back(self, device_id: str, evidence: str) -> None:
        """Keep a device that could not be prepared from new leases for a while."""
        known = self.ledger.state.devices.get(device_id)
        if known is not None:
            left = tuple(found for found in known.conditions if found.type != "PrepareFailed")
            found = self._condition(device_id, "PrepareFailed", evidence, Status.TRUE)
            self.ledger.execute(c.Observe(devices=(msgspec.structs.replace(known, conditions=(*left, found)),)))

    def _condition(self, device_id: str, type_: str, evidence: str, status: Status) -> Condition:
        now = self.ledger.clock.now()
        seconds = HELD_BACK_SECONDS if status is Status.TRUE else ASK_AGAIN_SECONDS
        return Condition(
            device=device_id,
            type=type_,
            severity=Severity.CRITICAL,
            status=status,
            evidence=evidence,
            source=AGENT,
            first_seen_at=now,
            last_seen_at=now,
            expires_at=now + seconds,
        )


def _conditions(driver: Driver, device_ids: list[str], deadline: Deadline) -> list[Condition]:
    """Ask a driver; what is no condition, or none that the journal could read again, is an error of the driver."""
    return [checked(condition, Condition) for condition in driver.sample(device_ids, deadline)]
