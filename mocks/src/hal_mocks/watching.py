"""What a mock driver says by itself: the difference between two looks at its devices."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal.model.event import Event, EventType
from hal.model.health import Condition

if TYPE_CHECKING:
    from hal_mocks.base import MockDriver

LOOK_SECONDS = 0.02
"""Pause between two looks, of real time. What comes and goes in between is not seen, as with any vendor's polling."""


def watch(driver: MockDriver, deadline: Deadline) -> Iterator[Event]:
    """Return the events of a driver from this call on, until the deadline."""
    return _changes(driver, _look(driver, deadline), deadline)


def _look(driver: MockDriver, deadline: Deadline) -> dict[str, Device]:
    return {device.id: device for device in driver.discover(deadline).devices}


def _changes(driver: MockDriver, before: dict[str, Device], deadline: Deadline) -> Iterator[Event]:
    pause = threading.Event()
    while True:
        now = _look(driver, deadline)
        yield from differences(before, now, driver.machine.clock.now())
        before = now
        if deadline.expired:
            return
        pause.wait(min(LOOK_SECONDS, deadline.remaining_seconds))


def differences(before: Mapping[str, Device], now: Mapping[str, Device], at: float) -> Iterator[Event]:
    """Yield what changed between two looks: devices, their presence, conditions that came and went."""
    for device_id in before.keys() - now.keys():
        yield Event(type=EventType.REMOVED, subject=device_id, at=at)
    for device_id, device in now.items():
        known = before.get(device_id)
        if known is None:
            yield Event(type=EventType.ADDED, subject=device_id, at=at)
        elif known.presence is not device.presence:
            detail = f"presence: {known.presence} to {device.presence}"
            yield Event(type=EventType.CHANGED, subject=device_id, at=at, detail=detail)
        were, are = _named(known.conditions if known is not None else ()), _named(device.conditions)
        for name, condition in are.items():
            if name not in were:
                detail = f"{condition.type} ({condition.severity}): {condition.evidence}"
                yield Event(type=EventType.CONDITION, subject=device_id, at=at, detail=detail)
        for name, condition in were.items():
            if name not in are:
                detail = f"{condition.type} is over"
                yield Event(type=EventType.CONDITION, subject=device_id, at=at, detail=detail)


def _named(conditions: Iterable[Condition]) -> dict[tuple[str, int | None], Condition]:
    return {(condition.type, condition.code): condition for condition in conditions}
