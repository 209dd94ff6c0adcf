"""Why not: which request stands in the way, how many would fit, and what refused each device."""

from __future__ import annotations

from collections import Counter

import msgspec

from hal.broker.allocation.view import Place, Shape, View, Wide, allocate, view_of
from hal.broker.allocation.matching import NoPlace, Shortfall
from hal.broker.allocation.places import ancestors, selector_of, why_unfit
from hal.broker.state import State
from hal.model.claim import Claim, Locality, Request, request_names
from hal.model.claim_check import check_claim
from hal.model.device import Device

_PLACES = {
    Locality.NODE: "node",
    Locality.NUMA: "NUMA node",
    Locality.PCI_SWITCH: "PCI switch",
    Locality.RACK: "rack",
}


class DeviceReason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What keeps one device from one request."""

    device: str
    name: str
    node: str
    request: str
    reason: str


class RequestReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request: ``matching`` devices are of the kind and fit the selector, ``free`` of them could be given now.

    ``feasible_count`` is the largest count with which the whole claim would be granted, all else as it was asked.
    """

    request: str
    count: int
    matching: int
    free: int
    feasible_count: int
    blocks: bool = False


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Would the claim be granted now, and if not, why. ``decided`` is False if the search budget ran out.

    ``nearest`` are claims close to this one that would be granted, as one types them: fewer devices, or without what
    they must share.
    """

    feasible: bool
    reason: str
    requests: tuple[RequestReport, ...] = ()
    devices: tuple[DeviceReason, ...] = ()
    nearest: tuple[str, ...] = ()
    decided: bool = True


def explain(state: State, claim: Claim, most_devices: int = 1000) -> Explanation:
    """Explain a claim without granting it."""
    check_claim(claim)
    outcome = allocate(state, claim)
    names = request_names(claim.requests)
    cause = None if outcome is None or isinstance(outcome, Place) else outcome.cause
    blocking = frozenset(_blocking(state, claim, cause))
    reports: list[RequestReport] = []
    reasons: list[DeviceReason] = []
    for i, request in enumerate(claim.requests):
        free = _free(state, request)
        reports.append(
            RequestReport(
                request=names[i],
                count=request.count,
                matching=_matching(state, request),
                free=free,
                feasible_count=request.count if isinstance(outcome, Place) else _feasible_count(state, claim, i, free),
                blocks=i in blocking,
            )
        )
        for device in state.devices.values():
            reason = why_not(state, request, device)
            if reason is not None and device.kind is request.kind and len(reasons) < most_devices:
                where = device.location.node
                reasons.append(
                    DeviceReason(device=device.id, name=device.name, node=where, request=names[i], reason=reason)
                )
    if isinstance(outcome, Place):
        text = "it would be granted"
    elif cause is None:
        text = "undecided: the search was given up"
    else:
        text = refusal_text(state, claim, cause)
    return Explanation(
        feasible=isinstance(outcome, Place),
        reason=text,
        requests=tuple(reports),
        devices=tuple(reasons),
        nearest=() if isinstance(outcome, Place) else _nearest(state, claim, reports),
        decided=outcome is not None,
    )


def _nearest(state: State, claim: Claim, reports: list[RequestReport]) -> tuple[str, ...]:
    counts = [report.count for report in reports]
    found: list[str] = []
    for i, report in enumerate(reports):
        if 0 < report.feasible_count < report.count:
            found.append(_typed(claim, [*counts[:i], report.feasible_count, *counts[i + 1 :]]))
    if claim.constraints:
        loose = msgspec.structs.replace(claim, constraints=())
        if isinstance(allocate(state, loose), Place):
            found.append(f"{_typed(loose, counts)}, without what they must share")
    return tuple(found) or _fewer(state, claim)


def _fewer(state: State, claim: Claim) -> tuple[str, ...]:
    """No request alone is too large: take of each in turn as many as are possible beside those before it."""
    kept: list[Request] = []
    for request in claim.requests:
        names = {other.name for other in (*kept, request)}
        constraints = tuple(found for found in claim.constraints if names.issuperset(found.requests))
        trial = msgspec.structs.replace(claim, requests=(*kept, request), constraints=constraints)
        count = _feasible_count(state, trial, len(kept), _free(state, request))
        if count:
            kept.append(msgspec.structs.replace(request, count=count))
    whole = msgspec.structs.replace(claim, requests=tuple(kept))
    return (_typed(whole, [request.count for request in kept]),) if kept else ()


def _typed(claim: Claim, counts: list[int]) -> str:
    words = [f"{request.kind.value}:{count}" for request, count in zip(claim.requests, counts, strict=True)]
    words += [f"--same {constraint.same.value}" for constraint in claim.constraints if not constraint.requests]
    return " ".join(words)


def why_not(state: State, request: Request, device: Device) -> str | None:
    """Return what keeps a device from a request, or None."""
    if device.kind is not request.kind:
        return f"it is a {device.kind.value}, not a {request.kind.value}"
    unfit = why_unfit(device, ancestors(device, state.devices))
    if unfit is not None:
        return unfit
    if request.where:
        selector = selector_of(request.where)
        answer = selector.answer(device)
        if answer is False:
            return f"{request.where} is false"
        if answer is None:
            lacking = ", ".join(selector.unknown_names(device)) or "a value of the right type"
            return f"{request.where} is unknown: the device has no {lacking}"
    return _why_held(state, device)


def _why_held(state: State, device: Device) -> str | None:
    holder = _holder(state, device.id)
    if holder is not None:
        return holder
    node = state.node(device.location.node)
    position = node.place.get(device.id) if node is not None else None
    if node is None or position is None or node.free >> position & 1:
        return None
    for other, relative in enumerate(node.devices):
        if node.fate[position] >> other & 1 and other != position:
            holder = _holder(state, relative.id)
            if holder is not None:
                return f"it shares its fate with {relative.name}, which is {holder}"
    return "it is not free"


def _holder(state: State, device_id: str) -> str | None:
    fenced = state.fenced.get(device_id)
    if fenced is not None:
        return f"fenced since lease {fenced.lease} ended (fence {fenced.fence}): {fenced.why}"
    lease_id = state.holders.get(device_id)
    if lease_id is None:
        return None
    lease = state.leases[lease_id]
    return f"held by lease {lease.id} of {lease.tenant} ({lease.state.value})"


def refusal_text(state: State, claim: Claim, cause: Shortfall | NoPlace) -> str:
    """Return the proof of a refusal in words; worked out once for each shape of claim while nothing changes."""
    view = view_of(state, (claim.requests, claim.constraints))
    if view.told is None or view.told[:2] != (view.seen, cause):
        text = _shortfall(state, claim, cause) if isinstance(cause, Shortfall) else _no_place(state, claim, cause)
        view.told = (view.seen, cause, text)
    return view.told[2]


def _shortfall(state: State, claim: Claim, cause: Shortfall) -> str:
    names = request_names(claim.requests)
    which = " and ".join(_described(claim.requests[i], names[i]) for i in cause.requests)
    if cause.available >= cause.needed:
        return f"{which} cannot be met: devices that share their fate cannot be given together"
    several = len(cause.requests) > 1
    devices = "device is" if cause.available == 1 else "devices are"
    text = f"{which} need{'' if several else 's'} {cause.needed}, but {cause.available} {devices} free for "
    text += "them together" if several else "it"
    kinds = {claim.requests[i].kind for i in cause.requests}
    if not any(device.kind in kinds for device in state.devices.values()):
        return f"{text} (there is none in the inventory)"
    tally = _tally(state, claim.requests[cause.requests[0]])
    return f"{text} ({'; '.join(f'{count} {why}' for why, count in tally.most_common(6))})" if tally else text


def _no_place(state: State, claim: Claim, cause: NoPlace) -> str:
    names = request_names(claim.requests)
    constraint = claim.constraints[cause.constraint]
    concerned = constraint.requests or names
    place = _PLACES[constraint.same]
    if not cause.tried:
        return (
            f"no {place} is known for any free device that fits {', '.join(concerned)}, so same {place} cannot be shown"
        )
    view = view_of(state, (claim.requests, claim.constraints))
    best = _most_together(state, view, cause.constraint)
    wanted = sum(view.counts[i] for i in view.concerned[cause.constraint])
    if best >= wanted:
        return (
            f"no single {place} has what {', '.join(concerned)} need{'s' * (len(concerned) == 1)}: the fullest of "
            f"{cause.tried} offers {best} devices, but not so many of each, or they share their fate"
        )
    return (
        f"no single {place} has what {', '.join(concerned)} need{'s' * (len(concerned) == 1)}: "
        f"{wanted} devices together, the fullest of {cause.tried} offers {best}"
    )


def _described(request: Request, name: str) -> str:
    kind = "" if name == request.kind.value else f" ({request.kind.value})"
    return f"{name}{kind}{f' where {request.where}' if request.where else ''}"


def _tally(state: State, request: Request) -> Counter[str]:
    tally: Counter[str] = Counter()
    for device in state.devices.values():
        if device.kind is request.kind:
            reason = why_not(state, request, device)
            if reason is None:
                continue
            if reason.startswith("held by"):
                reason = "held"
            elif reason.startswith("fenced"):
                reason = "fenced"
            elif reason.startswith(request.where) and request.where:
                reason = "not selected"
            tally[reason] += 1
    return tally


def _most_together(state: State, view: View, constraint: int) -> int:
    wide = Wide(state.nodes, view)
    union = 0
    for i in view.concerned[constraint]:
        union |= wide.masks[i]
    return max(((place & union).bit_count() for place in wide.places(view.constraints[constraint].same)), default=0)


def _blocking(state: State, claim: Claim, cause: Shortfall | NoPlace | None) -> tuple[int, ...]:
    if cause is None:
        return ()
    if isinstance(cause, Shortfall):
        return cause.requests
    shape: Shape = (claim.requests, claim.constraints)
    return view_of(state, shape).concerned[cause.constraint]


def _matching(state: State, request: Request) -> int:
    state.settle()
    return sum(node.matching(request).bit_count() for node in state.nodes)


def _free(state: State, request: Request) -> int:
    state.settle()
    return sum((node.matching(request) & node.free).bit_count() for node in state.nodes)


def _feasible_count(state: State, claim: Claim, index: int, free: int) -> int:
    """Return the largest count that would be granted, by bisection: fewer devices are never harder to find."""
    low, high = 0, min(claim.requests[index].count, free)
    while low < high:
        middle = (low + high + 1) // 2
        requests = list(claim.requests)
        requests[index] = msgspec.structs.replace(requests[index], count=middle)
        trial = msgspec.structs.replace(claim, requests=tuple(requests))
        if isinstance(allocate(state, trial), Place):
            low = middle
        else:
            high = middle - 1
    return low
