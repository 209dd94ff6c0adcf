"""Saying by itself what changes: uevents of the kernel at once, and what no uevent tells by looking again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from hal.drivers.contract import HostRoot
from hal.errors import DriverError
from hal.host.uevents import Loss, UeventReader
from hal.interfaces.deadline import Deadline
from hal.model.event import Event, EventType
from hal.model.inventory import Inventory, diff
from hal_pmem.discovery import Look

_SUBSYSTEMS = frozenset({"nd", "dax", "cxl", "block"})
LOOK_SECONDS = 2.0
"""How often it looks by itself: bad blocks and health change without a uevent."""
_LOOK_LIMIT_SECONDS = 5.0


def watch(
    hosts: Sequence[HostRoot], look: Callable[[Deadline], Look], deadline: Deadline, every: float = LOOK_SECONDS
) -> Iterator[Event]:
    """Yield changes until the deadline. Lost uevents are an event, followed by what a new look finds."""
    with contextlib.ExitStack() as stack:
        reader: UeventReader | None = None
        if any(host.root is None for host in hosts):
            with contextlib.suppress(DriverError):  # without netlink it looks again, which finds the same later
                reader = stack.enter_context(UeventReader())
        before = _inventory(look)
        while not deadline.expired:
            if _wait(reader, min(every, deadline.remaining_seconds)):
                yield Event(
                    type=EventType.LOST, subject="uevents", at=time.time(), detail="events were lost: looking again"
                )
            now = _inventory(look)
            yield from _changes(before, now)
            before = now


def _inventory(look: Callable[[Deadline], Look]) -> Inventory:
    return Inventory(look(Deadline.after(_LOOK_LIMIT_SECONDS)).devices)


def _wait(reader: UeventReader | None, seconds: float) -> bool:
    """Wait until something of ours happens or the time is over; True if uevents were lost."""
    limit = Deadline.after(seconds)
    if reader is None:
        time.sleep(seconds)
        return False
    while True:
        event = reader.next(limit)
        if event is None:
            return False
        if isinstance(event, Loss):
            return True
        if event.subsystem in _SUBSYSTEMS:
            return False


def _changes(before: Inventory, now: Inventory) -> Iterator[Event]:
    at = time.time()
    for change in diff(before, now):
        old = before.get(change.device.id)
        known = {one.type for one in old.conditions} if old is not None else set()
        conditions = () if change.type is EventType.REMOVED else change.device.conditions
        for one in conditions:
            if one.type not in known:
                yield Event(
                    type=EventType.CONDITION, subject=change.device.id, at=at, detail=f"{one.type}: {one.evidence}"
                )
        fields = [field for field in change.fields if not field.startswith("condition ")]
        told = change.type is not EventType.CHANGED or fields or known - {one.type for one in conditions}
        if told:
            yield Event(type=change.type, subject=change.device.id, at=at, detail="; ".join(change.fields))
