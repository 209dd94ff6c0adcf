"""What a driver of NICs says by itself: the kernel's events make it look, and the difference is what happened.

The socket is read raw: a client of libudev's monitor dies in a burst of events (ENOBUFS), this one notes a loss and
looks at everything again. Link changes and health make no event of the kernel's, so it looks once a second as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from hal.errors import DriverError
from hal.host.uevents import Loss, Uevent, UeventReader
from hal.interfaces.deadline import Deadline
from hal.model.event import Event, EventType

if TYPE_CHECKING:
    from hal.model.device import Device
    from hal.model.health import Condition
    from hal_rdma.driver import RdmaDriver

LOOK_SECONDS = 1.0
SETTLE_SECONDS = 0.02
_SUBSYSTEMS = frozenset({"infiniband", "infiniband_verbs", "net", "pci"})
_TELLING = ("port_state", "rate_gbps", "netdev", "firmware", "gids")
LOST = "rdma"


def watch(driver: RdmaDriver, live: bool, deadline: Deadline) -> Iterator[Event]:
    """Return the events from this call on. The first look, and the socket, are made before it returns."""
    reader: UeventReader | None = None
    if live:
        try:
            reader = UeventReader()
        except DriverError:  # no netlink in here: looking every second is all there is
            reader = None
    return _changes(driver, reader, _look(driver, deadline), deadline)


def _look(driver: RdmaDriver, deadline: Deadline) -> dict[str, Device]:
    return {device.id: device for device in driver.discover(deadline).devices}


def _changes(
    driver: RdmaDriver, reader: UeventReader | None, before: dict[str, Device], deadline: Deadline
) -> Iterator[Event]:
    try:
        while not deadline.expired:
            lost = _wait(reader, deadline)
            if lost:
                detail = f"the kernel dropped events ({lost} overruns so far); everything is looked at again"
                yield Event(type=EventType.LOST, subject=LOST, at=time.time(), detail=detail)
            now = _look(driver, deadline)
            yield from differences(before, now, time.time())
            before = now
    finally:
        if reader is not None:
            reader.close()


def _wait(reader: UeventReader | None, deadline: Deadline) -> int:
    """Wait for an event that may concern NICs, or a second; then until the burst is over. Returns overruns, if any."""
    until = Deadline.after(min(LOOK_SECONDS, deadline.remaining_seconds))
    if reader is None:
        time.sleep(until.remaining_seconds)
        return 0
    lost = 0
    while True:
        event = reader.next(until)
        if event is None:
            return lost
        if isinstance(event, Loss):
            lost = event.count
        if isinstance(event, Loss) or _concerns(event):
            until = Deadline.after(min(SETTLE_SECONDS, until.remaining_seconds))


def _concerns(event: Uevent) -> bool:
    return event.subsystem in _SUBSYSTEMS


def differences(before: Mapping[str, Device], now: Mapping[str, Device], at: float) -> Iterator[Event]:
    """Yield what changed between two looks: NICs that came and went, ports that changed, conditions."""
    for device_id in before.keys() - now.keys():
        yield Event(type=EventType.REMOVED, subject=device_id, at=at)
    for device_id, device in now.items():
        known = before.get(device_id)
        if known is None:
            yield Event(type=EventType.ADDED, subject=device_id, at=at, detail=device.name)
        else:
            changed = [
                f"{name}: {known.value(name)} to {device.value(name)}"
                for name in _TELLING
                if known.value(name) != device.value(name)
            ]
            if changed:
                yield Event(type=EventType.CHANGED, subject=device_id, at=at, detail="; ".join(changed))
        were = _named(known.conditions if known is not None else ())
        are = _named(device.conditions)
        for name in are.keys() - were.keys():
            detail = f"{are[name].type} ({are[name].severity}): {are[name].evidence}"
            yield Event(type=EventType.CONDITION, subject=device_id, at=at, detail=detail)
        for name in were.keys() - are.keys():
            detail = f"{were[name].type} is over"
            yield Event(type=EventType.CONDITION, subject=device_id, at=at, detail=detail)


def _named(conditions: tuple[Condition, ...]) -> dict[tuple[str, str], Condition]:
    return {(one.type, one.evidence.partition(" is ")[0]): one for one in conditions}
