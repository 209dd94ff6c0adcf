"""What keeps a device from a request: the kind, its health, a cordon, a selector, its size, or somebody who has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from hal.broker.allocation.facts import ancestors, capacity_of, selector_of, why_unfit
from hal.broker.allocation.places import Node, has_profile
from hal.model.claim import FRACTION, Request, Share
from hal.model.device import Device
from hal.model.lease import AllocatedDevice
from hal.model.words import are, measured, sized

if TYPE_CHECKING:
    from hal.broker.state import State

NODE = "node:"
NO_REASON = "no reason given"


def why_not(state: State, request: Request, device: Device) -> str | None:
    """Return what keeps a device from a request (its alternatives aside), or None if it could be given now."""
    if device.kind is not request.kind:
        return f"it is a {device.kind.value}, not a {request.kind.value}"
    return (
        why_unfit(device, ancestors(device, state.devices), request.tolerate)
        or why_cordoned(state, device)
        or why_unmatched(request, device)
        or why_taken(state, request, device)
    )


def why_never(state: State, request: Request, device: Device) -> str | None:
    """Return what keeps a device of the kind from a request as long as it is what it is, whoever has it."""
    return why_unfit(device, ancestors(device, state.devices), request.tolerate) or why_unmatched(request, device)


def why_cordoned(state: State, device: Device) -> str | None:
    """Return who keeps a device, or what shares its fate, from new leases."""
    if not state.cordons:
        return None
    for target, what in ((device.id, ""), (NODE + device.location.node, f"its machine {device.location.node} is ")):
        cordon = state.cordons.get(target)
        if cordon is not None:
            word = "draining, cordoned" if cordon.draining else "cordoned"
            return f"{what}{word} by {cordon.by}: {cordon.why or NO_REASON}"
    for target, found in state.cordons.items():
        relative = state.devices.get(target)
        if relative is None or relative.location.node != device.location.node:
            continue
        if device in ancestors(relative, state.devices) or relative in ancestors(device, state.devices):
            why = found.why or NO_REASON
            return f"it shares its fate with {relative.name}, which is cordoned by {found.by}: {why}"
    return None


def why_unmatched(request: Request, device: Device) -> str | None:
    """Return which part of what was asked for a device of the kind is not."""
    if request.cel:
        from hal.model.cel import compile_cel  # the language is loaded when somebody speaks it
    if request.where:
        selector = selector_of(request.where)
        answer = selector.answer(device)
        if answer is False:
            return f"{request.where} is false"
        if answer is None:
            lacking = ", ".join(selector.unknown_names(device)) or "a value of the right type"
            return f"{request.where} is unknown: the device has no {lacking}"
    for text in request.cel:
        why = compile_cel(text).why(device)
        if why is not None:
            return why
    for name, amount in sorted(request.capacity.items()):
        has = capacity_of(device, name)
        if has < amount:
            asked = f"{sized(amount, name)} {are(amount)} asked"
            return f"it has {measured(has, name)}, {asked}" if has else f"it has no {name}"
    if request.profile and not has_profile(device, request.profile):
        if device.value("mig_mode") != "enabled":
            return f"no {request.profile} can be made of it: it is not in a mode to be divided"
        return f"no {request.profile} can be made of it: it knows no such profile"
    return None


def why_taken(state: State, request: Request, device: Device) -> str | None:
    """Return who has a device, keeps it, or has what shares its fate; or how much is left of one that is shared."""
    kept = state.reserved.get(device.id)
    if kept:
        return f"kept for claim {next(iter(kept))}"
    alone = holder(state, device.id)
    if alone is not None:
        return alone
    node = state.node(device.location.node)
    position = node.place.get(device.id) if node is not None else None
    if node is None or position is None:
        return None
    others = state.sharers.get(device.id)
    if others:
        why = _no_room(state, node, request, device, others.values())
        if why is not None:
            return why if request.profile or request.share is Share.SHARED else sharer(state, device.id)
    for other in _related(node, position):
        relative = node.devices[other]
        if request.profile and other in node.made.get(position, {}).values():
            continue
        why = holder(state, relative.id) or sharer(state, relative.id)
        if why is None and relative.id in state.reserved:
            why = f"kept for claim {next(iter(state.reserved[relative.id]))}"
        if why is not None:
            return f"it shares its fate with {relative.name}, which is {why}"
    if request.profile and not others:
        return _no_room(state, node, request, device, ())
    return None


def holder(state: State, device_id: str) -> str | None:
    """Return who has the whole device, in words."""
    fenced = state.fenced.get(device_id)
    if fenced is not None:
        return f"fenced since lease {fenced.lease} ended (fence {fenced.fence}): {fenced.why}"
    lease_id = state.holders.get(device_id)
    return None if lease_id is None else _held_by(state, "held", lease_id)


def sharer(state: State, device_id: str) -> str | None:
    """Return who has a part of the device, or a share in it, in words."""
    others = state.sharers.get(device_id)
    if not others:
        return None
    key, found = next(iter(others.items()))
    lease_id = key.partition("\n")[0]
    more = f", and {len(others) - 1} more" if len(others) > 1 else ""
    return _held_by(state, "held in part" if found.partition else "shared", lease_id) + more


def _held_by(state: State, how: str, lease_id: str) -> str:
    lease = state.leases.get(lease_id)
    if lease is None:
        return f"{how} by lease {lease_id}, which is over without proof"
    return f"{how} by lease {lease.id} of {lease.tenant} ({lease.state.value})"


def _no_room(
    state: State, node: Node, request: Request, device: Device, others: Iterable[AllocatedDevice]
) -> str | None:
    """Return why there is no room beside what others have of a device."""
    given = tuple(others)
    parts = sorted({found.partition for found in given if found.partition} | {*_made(node, device)})
    used: dict[str, int] = {}
    for found in given:
        for name, amount in found.uses.items():
            used[name] = used.get(name, 0) + amount
    if request.profile:
        if used:
            return f"it cannot be divided: it is {sharer(state, device.id)}"
        from hal.broker.allocation.partitions import best_placement

        if best_placement(device.value("partition_placements"), tuple(parts), request.profile) is not None:
            return None
        return f"no place for a {request.profile} on it beside {', '.join(parts)}" if parts else None
    if request.share is Share.SHARED and not any(found.partition for found in given):
        return _used_up(device, request.capacity, used)
    return sharer(state, device.id)


def _used_up(device: Device, asked: Mapping[str, int], used: Mapping[str, int]) -> str | None:
    for name, amount in sorted(asked.items()):
        left = capacity_of(device, name) - used.get(name, 0)
        if left < amount:
            gone, has = used.get(name, 0), capacity_of(device, name)
            whole = f"{has} thousandths" if name == FRACTION else measured(has, name)
            return f"{sized(gone, name)} of its {whole} {are(gone)} used, {sized(amount, name)} {are(amount)} asked"
    return None


def _made(node: Node, device: Device) -> Mapping[str, int]:
    return node.made.get(node.place[device.id], {})


def _related(node: Node, position: int) -> Iterator[int]:
    rest = node.fate[position] & ~(1 << position)
    while rest:
        bit = rest & -rest
        rest ^= bit
        yield bit.bit_length() - 1
