"""Whether what was granted keeps everything that was asked, by rules that share nothing with the broker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

from hal.model.claim import Claim, Request, Share, request_names
from hal.model.lease import AllocatedDevice
from tests.unit.broker.oracle import concerned, fits, gang_is_right, is_free, is_well, kept
from tests.unit.broker.oracle_values import Hold, Take, World


class Wrong(AssertionError):
    """The allocation breaks this rule."""


def verify(world: World, claim: Claim, given: Sequence[AllocatedDevice]) -> float:
    """Return what the allocation costs; raise :class:`Wrong` if it is none that the claim allows."""
    numbers = sorted({device.replica for device in given})
    most = claim.max_replicas or claim.replicas
    if not claim.replicas <= len(numbers) <= most:
        raise Wrong(f"{len(numbers)} replicas")
    everything = [(found, take_of(world, found, world.number[found.id])) for found in given]
    for found, take in everything:
        if not is_free(world, take):
            raise Wrong(f"{found.slot} is not free")
    for (a, one), (b, other) in combinations(everything, 2):
        if one.device == other.device:
            raise Wrong(f"{a.id} twice")
        if not is_free(world, one, (other,)):
            raise Wrong(f"{a.slot} and {b.slot} cannot be given together")
    for found, _ in everything:
        device = world.by_id[found.id]
        if (device.name, device.location.node, device.kind) != (found.name, found.node, found.kind):
            raise Wrong(f"{found.id} is described as another")
    cost, where = 0.0, []
    for replica in numbers:
        mine = [(found, take) for found, take in everything if found.replica == replica]
        nodes = sorted({found.node for found, _ in mine})
        if (most > 1 or claim.gang is not None) and len(nodes) > 1:
            raise Wrong(f"replica {replica} lies on {', '.join(nodes)}")
        where.append(nodes[0])
        cost += _replica(world, claim, mine)
    if claim.gang is not None and not gang_is_right(world, claim, where):
        raise Wrong(f"the replicas lie on {', '.join(where)}")
    return cost


def take_of(world: World, found: AllocatedDevice, number: int) -> Take:
    """Return what one entry of an allocation takes."""
    hold = hold_of(world, found)
    return Take(number, tuple(sorted(hold.uses.items())), ((1 << hold.slices) - 1) << hold.first)


def hold_of(world: World, found: AllocatedDevice) -> Hold:
    """Return what others find held of a device, once it was given like that."""
    if not found.partition:
        return Hold(found.id, found.uses)
    profile, _, start = found.partition.rpartition("@")
    slices, starts = world.profiles[found.id][profile]
    if int(start) not in starts:
        raise Wrong(f"{profile} cannot start at {start}")
    return Hold(found.id, {}, int(start), slices)


def _replica(world: World, claim: Claim, mine: Sequence[tuple[AllocatedDevice, Take]]) -> float:
    names = request_names(claim.requests)
    groups = [[(f, take) for f, take in mine if f.request == name] for name in names]
    if sum(map(len, groups)) != len(mine):
        raise Wrong(f"given for {sorted({f.request for f, _ in mine})}, asked for {names}")
    costs: list[list[float]] = []
    for i, request in enumerate(claim.requests):
        choices = [c.cost for c in (request, *request.or_else) if _meets(world, c, groups[i])]
        if not choices:
            raise Wrong(f"{names[i]} was given {[f.slot for f, _ in groups[i]]}")
        costs.append(choices)
    total = min(sum(row) for row in product(*costs))
    for constraint, about in zip(claim.constraints, concerned(claim), strict=True):
        if not kept(world, constraint, [[take for _, take in groups[i]] for i in about]):
            if constraint.weight is None:
                raise Wrong(f"{constraint} is broken")
            total += constraint.weight
    return total


def _meets(world: World, choice: Request, group: Sequence[tuple[AllocatedDevice, Take]]) -> bool:
    if choice.count == "all":
        nodes = {found.node for found, _ in group}
        fitting = {d.id for d in world.devices if d.location.node in nodes and fits(world, choice, d)}
        if len(nodes) != 1 or {found.id for found, _ in group} != fitting:
            return False
    elif len(group) != choice.count:
        return False
    for found, _ in group:
        device = world.by_id[found.id]
        if not fits(world, choice, device) or not is_well(world, choice, device):
            return False
        if found.partition.rpartition("@")[0] != choice.profile:
            return False
        if dict(found.uses) != (choice.capacity if choice.share is Share.SHARED else {}):
            return False
    return True
