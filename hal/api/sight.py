"""What a look at all devices brings, and which of it the journal can keep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from hal.broker.record import checked
from hal.drivers.contract import Problem
from hal.model.device import Device

_LOG = logging.getLogger(__name__)


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One look at all devices; ``silent`` drivers did not answer, which says nothing about theirs.

    ``problems`` are what kept something from being looked at.
    """

    devices: tuple[Device, ...]
    silent: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()


Observe = Callable[[], Sight | Iterable[Device]]


def readable(devices: Iterable[Device], known: Mapping[str, Device]) -> Iterator[Device]:
    """Yield the devices as the journal would give them back; leave out those that it could not read again."""
    for device in devices:
        before = known.get(device.id) if isinstance(device, Device) else None
        if before is not None and before == device:
            yield before
            continue
        try:
            yield checked(device, Device)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            _LOG.warning("%s is left out: its driver describes it wrongly: %s", getattr(device, "id", "?"), error)
