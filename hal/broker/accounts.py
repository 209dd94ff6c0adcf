"""What counts on whose account, and which waiting claims are alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import msgspec

from hal.model.claim import FRACTION, Claim, Request, Share
from hal.model.device import Device
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice
from hal.model.tenant import Tenant

WHOLE = 1000
"""A whole device, in thousandths."""
Amounts = dict[str, int]
_NAMES = {kind: kind.value for kind in Kind}


def amounts_of(devices: Iterable[AllocatedDevice]) -> Amounts:
    """Return what devices count on their tenant's account: thousandths of a device, by kind."""
    amounts: Amounts = {}
    for device in devices:
        kind = _NAMES[device.kind]
        amounts[kind] = amounts.get(kind, 0) + device.milli
    return amounts


def demand_of(claim: Claim) -> Amounts:
    """Return what a claim asks for with its first choices, as far as that is known before devices are chosen."""
    amounts: Amounts = {}
    for request in claim.requests:
        count = 1 if request.count == "all" else request.count
        kind = request.kind.value
        amounts[kind] = amounts.get(kind, 0) + _least(request) * count * claim.replicas
    return amounts


def _least(request: Request) -> int:
    if request.share is Share.SHARED:
        return request.capacity.get(FRACTION, 1)
    return 1 if request.profile else WHOLE


def group_of(claim: Claim) -> Hashable:
    """Return what waiting claims have in common that are feasible together or not at all."""
    return (
        claim.requests,
        claim.constraints,
        claim.replicas,
        claim.max_replicas,
        claim.gang,
        claim.duration_seconds,
    )


def in_thousandths(tenant: Tenant) -> Tenant:
    """Return a tenant whose guarantee and quota, said in whole devices, are in the unit of the accounts."""
    return msgspec.structs.replace(
        tenant,
        guarantee={name: amount * WHOLE for name, amount in tenant.guarantee.items()},
        quota={name: amount * WHOLE for name, amount in tenant.quota.items()},
    )


def billed(devices: tuple[AllocatedDevice, ...], known: Mapping[str, Device]) -> tuple[AllocatedDevice, ...]:
    """Return the devices with what each counts on an account; a device held alone counts whole.

    A share counts as its largest used fraction of any capacity, a part of a GPU as its fraction of the memory slices.
    """
    for device in devices:
        if device.uses or device.partition:
            break
    else:
        return devices
    return tuple(
        msgspec.structs.replace(device, milli=_milli(device, known.get(device.id)))
        if device.uses or device.partition
        else device
        for device in devices
    )


def _milli(device: AllocatedDevice, known: Device | None) -> int:
    if device.partition:
        return max(1, min(WHOLE, _slices_milli(device.partition, known)))
    most = 1
    for name, amount in device.uses.items():
        whole = WHOLE if name == FRACTION else (known.capacity.get(name, amount) if known is not None else amount)
        most = max(most, -(-amount * WHOLE // max(1, whole)))
    return min(WHOLE, most)


def _slices_milli(partition: str, known: Device | None) -> int:
    """Return a part's memory slices as thousandths, from the device's table of placements."""
    table = known.value("partition_placements") if known is not None else None
    sizes: dict[str, int] = {}
    end = 1
    for line in table if isinstance(table, tuple) else ():
        name, size, starts = str(line).split(":")
        sizes[name] = int(size)
        end = max(end, *(int(start) + int(size) for start in starts.split(",")))
    return sizes.get(partition.partition("@")[0], end) * WHOLE // end
