"""What the allocator answers: the chosen devices node by node, or what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from hal.broker.allocation.places import Node
from hal.broker.allocation.problem import Conflict
from hal.model.claim import Constraint, Gather, Locality, Request, Share
from hal.model.lease import AllocatedDevice

Positions = tuple[tuple[int, ...], ...]
"""For each request, positions of devices of one node, in order."""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """What one node gives to one replica: a mask for each request.

    ``order`` are the same positions, the n-th of paired requests belonging together. ``partitions`` are the parts to be
    made, as (request, position, ``profile@first slice``). ``in_part``: some device is shared or parted.
    """

    node: Node
    masks: tuple[int, ...]
    order: Positions
    replica: int = 0
    partitions: tuple[tuple[int, int, str], ...] = ()
    in_part: bool = False


class Place(msgspec.Struct, frozen=True, gc=False):
    """The chosen devices. ``requests`` are what was chosen of the alternatives, for each replica if they differ.

    ``cost`` adds up the alternatives taken and the wishes not kept, over all replicas.
    """

    choices: tuple[Choice, ...]
    names: tuple[str, ...]
    requests: tuple[Request, ...]
    cost: float = 0.0
    replicas: int = 1
    mixed: tuple[tuple[Request, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class NoNode:
    """No single node can, and one must: for rule ``rule`` of the claim, or (None) because a replica lies on one."""

    rule: int | None
    nodes: int


@dataclass(frozen=True, slots=True)
class GangShort:
    """Room for ``fits`` replicas of ``needed``, placed as the gang wants; ``places`` were looked at.

    ``one`` is how many fit in the best single place, ``everywhere`` how many there are, however they lie.
    """

    needed: int
    fits: int
    everywhere: int
    places: int
    how: Gather
    over: Locality


Cause = Conflict | NoNode | GangShort


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not. ``cause`` speaks of ``requests`` (the alternatives first in line) under ``constraints``.

    Rules in it are numbered as in the claim. ``tried`` counts the ways to choose alternatives and wishes that were
    found impossible.
    """

    cause: Cause
    requests: tuple[Request, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    tried: int = 1


Outcome = Place | Refusal | None
"""None: the budget ran out, nobody knows."""


def given(place: Place, fence: int = 0, first: int = 0) -> tuple[AllocatedDevice, ...]:
    """Return the devices in the order of the replicas, then of the requests; the same choice is the same tuple.

    ``fence`` 0 is the lease's own. Replicas are numbered from ``first``.
    """
    choices = place.choices
    if len(choices) == 1:
        choice = choices[0]
        found = _given(place, choice, first) if choice.in_part else choice.node.given(choice.order, place.names, first)
    elif place.replicas == 1:
        found = _across(place, first)
    else:
        found = tuple([device for choice in choices for device in _given(place, choice, choice.replica + first)])
    if fence:
        return tuple([msgspec.structs.replace(device, fence=fence) for device in found])
    return found


def _given(place: Place, choice: Choice, replica: int) -> tuple[AllocatedDevice, ...]:
    plain = choice.node.given(choice.order, place.names, replica)
    if not choice.in_part:
        return plain
    return _in_part(choice, place.mixed[choice.replica] if place.mixed else place.requests, plain)


def _in_part(
    choice: Choice, requests: tuple[Request, ...], plain: tuple[AllocatedDevice, ...]
) -> tuple[AllocatedDevice, ...]:
    slots = {(number, position): slot for number, position, slot in choice.partitions}
    found: list[AllocatedDevice] = []
    rest = iter(plain)
    for number, (request, positions) in enumerate(zip(requests, choice.order, strict=True)):
        for position in positions:
            device = next(rest)
            if request.profile:
                device = msgspec.structs.replace(device, partition=slots[number, position])
            elif request.share is Share.SHARED:
                device = msgspec.structs.replace(device, uses=dict(request.capacity))
            found.append(device)
    return tuple(found)


def _across(place: Place, replica: int) -> tuple[AllocatedDevice, ...]:
    """One replica on several nodes: request by request, node by node."""
    parts = [_given(place, choice, replica) for choice in place.choices]
    taken = [0] * len(parts)
    found: list[AllocatedDevice] = []
    for number in range(len(place.names)):
        for part, choice in enumerate(place.choices):
            many = len(choice.order[number])
            found += parts[part][taken[part] : taken[part] + many]
            taken[part] += many
    return tuple(found)
