"""Parts of devices that are made for a lease and go with it.

A part is known by where it is: the one of that profile at that start is the one which a lease asked for, whoever made
it and however often this process has been started since. So making it twice makes it once, and what a crash left is
found again.
"""

from __future__ import annotations

from hal.drivers.contract import Driver
from hal.errors import DeviceNotFound, InvalidArgument, Unsupported
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import Partition, PartitionsDevices
from hal.model.lease import AllocatedDevice


def place_of(device: AllocatedDevice) -> tuple[str, int]:
    """Return the profile and the first slice of the part that was given: ``1g.10gb@3``."""
    profile, at, start = device.partition.rpartition("@")
    if not (profile and at and start.isascii() and start.isdecimal() and len(start) < 6):
        raise InvalidArgument(
            f"{device.partition!r} says no part of a device", device=device.id, during="prepare", hint="PROFILE@START"
        )
    return profile, int(start)


def find(driver: Driver, device: AllocatedDevice, deadline: Deadline) -> Partition | None:
    """Return the part that a lease asked for, None if it is not there."""
    profile, start = place_of(device)
    for part in _dividing(driver, device).partitions(device.id, deadline=deadline):
        if (part.profile, part.start) == (profile, start):
            return part
    return None


def make(driver: Driver, device: AllocatedDevice, deadline: Deadline) -> Partition:
    """Return the part that a lease asked for; it is made if it is not there yet."""
    found = find(driver, device, deadline)
    if found is not None:
        return found
    profile, start = place_of(device)
    return _dividing(driver, device).create_partition(device.id, profile, start, deadline=deadline).wait(deadline)


def unmake(driver: Driver, device: AllocatedDevice, part: Partition, deadline: Deadline) -> None:
    """Destroy a part; one that has gone already is no error."""
    try:
        _dividing(driver, device).destroy_partition(device.id, part.id, deadline=deadline).wait(deadline)
    except DeviceNotFound:
        if find(driver, device, deadline) is not None:
            raise


def _dividing(driver: Driver, device: AllocatedDevice) -> PartitionsDevices:
    if not isinstance(driver, PartitionsDevices):
        raise Unsupported(
            f"{driver.name} cannot divide it", device=device.id, during="prepare", hint="claim whole devices"
        )
    return driver
