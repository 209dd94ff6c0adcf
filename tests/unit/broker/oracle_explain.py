"""Whether an explanation is true: the conflict is one and minimal, what is near is possible, no device is maligned."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from hal.broker.allocation.explain import Explanation, Nearby, explain
from hal.broker.state import State
from hal.model.claim import Claim, Request, request_names
from tests.unit.broker.oracle import best, fits, takes
from tests.unit.broker.oracle_values import World


def check_explanation(world: World, state: State, claim: Claim) -> str | None:
    """Explain a claim that was refused, and return what is wrong with what was told, or None."""
    told = explain(state, claim, most_devices=100_000)
    if not told.decided:
        return None
    if told.feasible or not told.reason:
        return f"explained as {told}"
    return _conflict(world, claim, told) or _nearby(world, claim, told) or _devices(world, claim, told)


def part_of(
    claim: Claim, requests: Collection[str], constraints: Collection[int], gang: bool = True, replicas: bool = True
) -> Claim:
    """Return what is left of a claim: these requests, and these constraints as far as they speak of them."""
    names = request_names(claim.requests)
    kept = [msgspec.structs.replace(r, name=n) for r, n in zip(claim.requests, names, strict=True) if n in requests]
    bound = []
    for number, constraint in enumerate(claim.constraints):
        about = [name for name in (constraint.requests or names) if name in requests]
        if number in constraints and len(about) > constraint.pairwise:
            bound.append(msgspec.structs.replace(constraint, requests=tuple(about)))
    return msgspec.structs.replace(
        claim,
        requests=tuple(kept),
        constraints=tuple(bound),
        gang=claim.gang if gang else None,
        replicas=claim.replicas if replicas else 1,
        max_replicas=None,
    )


def _conflict(world: World, claim: Claim, told: Explanation) -> str | None:
    core = told.conflict
    if core is None or not core.requests:
        return "no conflict is named"
    several = core.replicas or core.gang

    def possible(requests: Collection[str], constraints: Collection[int], gang: bool, many: bool) -> bool:
        return best(world, part_of(claim, requests, constraints, gang, many)) is not None

    if possible(core.requests, core.constraints, core.gang, core.replicas):
        return f"it is no conflict: {core}"
    if not core.minimal:
        return None
    for name in core.requests:
        rest = [other for other in core.requests if other != name]
        if rest and not possible(rest, core.constraints, core.gang, core.replicas):
            return f"{name} could be left out of {core}"
    for number in core.constraints:
        rest_of = [other for other in core.constraints if other != number]
        if not possible(core.requests, rest_of, core.gang, core.replicas):
            return f"constraint {number} could be left out of {core}"
    if core.gang and not possible(core.requests, core.constraints, False, core.replicas):
        return f"the gang could be left out of {core}"
    if several and not possible(core.requests, core.constraints, False, False):
        return f"the number of replicas could be left out of {core}"
    return None


def _nearby(world: World, claim: Claim, told: Explanation) -> str | None:
    for near in told.nearby:
        if best(world, changed_as(claim, near)) is None:
            return f"it is near, and impossible: {near}"
    if len(told.nearby) != len(told.nearest):
        return "the nearest in words are not those in values"
    reports = [report for report in told.requests if not report.alternative]
    for i, report in enumerate(reports):
        count = claim.requests[i].count
        if count == "all" or any(rule.pairwise for rule in claim.constraints):
            continue
        for fewer in range(1, count):
            requests = list(claim.requests)
            requests[i] = fewer_of(requests[i], fewer)
            possible = best(world, msgspec.structs.replace(claim, requests=tuple(requests))) is not None
            if possible != (fewer <= report.feasible_count):
                return f"{report.request}: {fewer} are {'' if possible else 'im'}possible, told was {report}"
    return None


def fewer_of(request: Request, count: int) -> Request:
    """Return a request for so many at most; so are its alternatives."""
    others = [
        msgspec.structs.replace(o, count=count) if o.count != "all" and o.count > count else o for o in request.or_else
    ]
    least = count if request.count == "all" else min(count, request.count)
    return msgspec.structs.replace(request, count=least, or_else=tuple(others))


def changed_as(claim: Claim, near: Nearby) -> Claim:
    """Return the claim that something near is about, worked out from its values alone."""
    names = request_names(claim.requests)
    constraints = set(range(len(claim.constraints))) - set(near.without)
    left = [name for name in names if near.counts.get(name) != 0]
    part = part_of(claim, left, constraints, not near.loose)
    requests = [fewer_of(r, near.counts[r.name]) if r.name in near.counts else r for r in part.requests]
    return msgspec.structs.replace(part, requests=tuple(requests), replicas=near.replicas)


def _devices(world: World, claim: Claim, told: Explanation) -> str | None:
    names = request_names(claim.requests)
    refused: dict[tuple[str, int], set[str]] = {}
    for row in told.devices:
        refused.setdefault((row.request, row.alternative), set()).add(row.device)
        if row.reason == "it is not free":
            return f"{row.device} is refused for no reason"
    for report in told.requests:
        request = claim.requests[names.index(report.request)]
        choice = (request, *request.or_else)[report.alternative]
        fitting = [number for number, device in enumerate(world.devices) if fits(world, choice, device)]
        free = {world.devices[number].id for number in fitting if takes(world, choice, number)}
        if (report.matching, report.free) != (len(fitting), len(free)):
            return f"{len(fitting)} match and {len(free)} are free, told was {report}"
        kind = {device.id for device in world.devices if device.kind is choice.kind and device.allocatable}
        if refused.get((report.request, report.alternative), set()) != kind - free:
            return f"refused are {sorted(kind - free)}, told was {report}, {told.devices}"
    return None
