"""What the difference between two trees amounts to as hot-plug events: devices that go, come, or look different."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from hal_mocks.sysfs_files import Entry, Link

_DEVICES = "sys/devices/"
_UEVENT = "/uevent"


class Event(msgspec.Struct, frozen=True):
    """One event: ``action`` is ``remove``, ``add`` or ``change``; ``devpath`` begins with ``/devices``."""

    action: str
    devpath: str
    subsystem: str
    properties: dict[str, str]


def events_between(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> list[Event]:
    """Return the events that lead from one tree to another, in the kernel's order.

    What goes goes from the leaves up, what comes comes from the root down; a device of which only attributes differ
    has one ``change``. Folders without a subsystem have no events.
    """
    old, new = _devices(before), _devices(after)
    found = [_event("remove", path, before) for path in sorted(old - new, key=_depth, reverse=True)]
    found += [_event("add", path, after) for path in sorted(new - old, key=_depth)]
    changed = set()
    for path in before.keys() | after.keys():
        if path.startswith(_DEVICES) and not _same(before.get(path), after.get(path)):
            device = _device_of(path, old | new)
            if device in old and device in new:
                changed.add(device)
    found += [_event("change", path, after) for path in sorted(changed)]
    return [event for event in found if event.subsystem]


def _same(one: Entry | None, other: Entry | None) -> bool:
    return type(one) is type(other) and (one == other or not isinstance(one, bytes | str))


def _devices(entries: Mapping[str, Entry]) -> set[str]:
    end = len(_UEVENT)
    return {path[:-end] for path in entries if path.endswith(_UEVENT) and path.startswith(_DEVICES)}


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path


def _device_of(path: str, devices: set[str]) -> str:
    while path and path not in devices:
        path = path.rpartition("/")[0]
    return path


def _event(action: str, path: str, entries: Mapping[str, Entry]) -> Event:
    subsystem = entries.get(f"{path}/subsystem")
    told = entries.get(path + _UEVENT)
    lines = told.decode().splitlines() if isinstance(told, bytes) else []
    properties = dict(line.partition("=")[::2] for line in lines if "=" in line)
    name = subsystem.rpartition("/")[2] if isinstance(subsystem, Link) else ""
    return Event(action, path.removeprefix("sys"), name, properties)
