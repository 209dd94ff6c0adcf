"""Why not: what cannot be met together, what would be, and which condition refused each device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from hal.broker.allocation.choice import Place, Refusal
from hal.broker.allocation.explain_conflict import Core, smallest
from hal.broker.allocation.explain_nearest import Nearby, most_of, nearest
from hal.broker.allocation.explain_reasons import why_not
from hal.broker.allocation.explain_sight import sight_of
from hal.broker.allocation.explain_trial import is_counted_out, is_possible
from hal.broker.allocation.explain_words import core_words, refusal_words
from hal.broker.allocation.view import allocate, shape_of, view_of
from hal.model.claim import Claim, Count, request_names
from hal.model.claim_check import check_claim

if TYPE_CHECKING:
    from hal.broker.state import State

__all__ = [
    "Conflicting",
    "DeviceReason",
    "Explanation",
    "Nearby",
    "RequestReport",
    "explain",
    "refusal_text",
    "why_not",
]

MOST_DEVICES = 32
"""How many devices are listed with their reason if nothing else is said, and there are more than a few machines."""
MOST_DEVICES_OF_FEW = 1000
FEW_NODES = 64
FOUND = "found"
"""Where what was found of claims is in ``state.views``, for as long as nothing changes."""
MOST_FOUND = 256


class DeviceReason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What keeps one device from one request, or (``alternative`` from 1 on) from that alternative of it."""

    device: str
    name: str
    node: str
    request: str
    reason: str
    alternative: int = 0


class RequestReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, or (``alternative`` from 1 on) one of its alternatives.

    ``there`` devices are of the kind, ``matching`` of them are what was asked for, ``free`` of those could be given
    now. ``feasible_count`` is the largest count with which the whole claim would be granted, all else as it was asked;
    where the requests are paired, or a request is for all, it is 0 if that is not granted. ``blocks``: it is part of
    the conflict.
    """

    request: str
    count: Count
    matching: int
    free: int
    feasible_count: int
    blocks: bool = False
    there: int = 0
    alternative: int = 0


class Conflicting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The smallest part of the claim that cannot be met: without any one of these the others could be.

    ``constraints`` are numbers of the claim's; ``gang``: how the replicas lie is part of it; ``replicas``: that there
    are so many is. ``minimal`` is False if the search for a smaller one was given up.
    """

    text: str
    requests: tuple[str, ...]
    constraints: tuple[int, ...] = ()
    gang: bool = False
    replicas: bool = False
    minimal: bool = True


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Would the claim be granted now, and if not, why. ``decided`` is False if the search budget ran out.

    ``nearest`` are claims close to this one that would be granted, as one types them, and ``nearby`` the same as
    values. ``devices`` are listed up to a limit; ``unlisted`` more were refused. ``cost`` is what granting it would
    cost in alternatives and wishes.
    """

    feasible: bool
    reason: str
    requests: tuple[RequestReport, ...] = ()
    devices: tuple[DeviceReason, ...] = ()
    nearest: tuple[str, ...] = ()
    decided: bool = True
    conflict: Conflicting | None = None
    nearby: tuple[Nearby, ...] = ()
    unlisted: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class _Found:
    """What was worked out of a refused claim: it holds while nothing is claimed, given back, seen or cordoned."""

    generation: int
    core: Core
    most: tuple[int, ...]
    near: tuple[Nearby, ...]


def explain(state: State, claim: Claim, most_devices: int | None = None) -> Explanation:
    """Explain a claim without granting it; ``most_devices`` limits how many refused devices are listed."""
    check_claim(claim)
    state.settle()
    if most_devices is None:
        most_devices = MOST_DEVICES if len(state.nodes) > FEW_NODES else MOST_DEVICES_OF_FEW
    with state.purse:
        return _explained(state, claim, most_devices)


def _explained(state: State, claim: Claim, most_devices: int) -> Explanation:
    # On few machines it is quick to find the better words.
    counted_out = len(state.nodes) > FEW_NODES and is_counted_out(state, claim)
    outcome = None if counted_out else allocate(state, claim)
    if isinstance(outcome, Place):
        counts = tuple(0 if request.count == "all" else request.count for request in claim.requests)
        reports, devices, unlisted = _reports(state, claim, frozenset(), counts, most_devices)
        return Explanation(
            feasible=True,
            reason="it would be granted",
            requests=reports,
            devices=devices,
            unlisted=unlisted,
            cost=outcome.cost,
        )
    if outcome is None and not counted_out:
        reports, devices, unlisted = _reports(state, claim, frozenset(), (0,) * len(claim.requests), most_devices)
        return Explanation(
            feasible=False,
            reason="undecided: the search was given up",
            requests=reports,
            devices=devices,
            unlisted=unlisted,
            decided=False,
        )
    found = _found(state, claim)
    core, names = found.core, request_names(claim.requests)
    alone = len(core.requests) + len(core.constraints) + core.gang + core.replicas == 1
    text = f"{'this cannot be met' if alone else 'these cannot be met together'}: {core_words(claim, core)}"
    reports, devices, unlisted = _reports(state, claim, frozenset(core.requests), found.most, most_devices)
    return Explanation(
        feasible=False,
        reason=text if outcome is None else refusal_text(state, claim, outcome),
        requests=reports,
        devices=devices,
        nearest=tuple(near.text for near in found.near),
        conflict=Conflicting(
            text=text,
            requests=tuple(names[i] for i in core.requests),
            constraints=core.constraints,
            gang=core.gang,
            replicas=core.replicas,
            minimal=core.sure,
        ),
        nearby=found.near,
        unlisted=unlisted,
    )


def refusal_text(state: State, claim: Claim, outcome: Refusal) -> str:
    """Return the proof of a refusal in words; worked out once for each shape of claim while nothing changes."""
    view = view_of(state, shape_of(claim))
    key = (generation_of(state), outcome.cause, outcome.tried)
    if view.told is None or view.told[0] != key:
        view.told = (key, refusal_words(state, claim, outcome))
    text: str = view.told[1]
    return text


def generation_of(state: State) -> int:
    """Return a number that grows whenever something changes that decides who may get what."""
    state.settle()
    return state.forgotten_touches + len(state.touched)


def _found(state: State, claim: Claim) -> _Found:
    """Work out the conflict and the nearest claims, or find them as they were worked out."""
    generation = generation_of(state)
    known: dict[object, _Found] = state.views.setdefault(FOUND, {})
    key = (claim.requests, claim.constraints, claim.replicas, claim.gang)
    found = known.get(key)
    if found is not None and found.generation == generation:
        return found
    while len(known) >= MOST_FOUND:
        del known[next(iter(known))]
    asked: dict[object, bool | None] = {}

    def possible(trial: Claim) -> bool | None:
        parts = (trial.requests, trial.constraints, trial.replicas, trial.gang, trial.max_replicas)
        if parts not in asked:
            asked[parts] = is_possible(state, trial)
        return asked[parts]

    core = smallest(claim, possible)
    most = tuple(most_of(state, claim, core, i, possible) for i in range(len(claim.requests)))
    found = known[key] = _Found(generation, core, most, nearest(state, claim, core, most, possible))
    return found


def _reports(
    state: State, claim: Claim, blocking: frozenset[int], most: tuple[int, ...], limit: int
) -> tuple[tuple[RequestReport, ...], tuple[DeviceReason, ...], int]:
    """Report each request and each alternative, and list the devices that were refused, a fair part for each."""
    reports: list[RequestReport] = []
    reasons: list[DeviceReason] = []
    unlisted = 0
    names = request_names(claim.requests)
    rows = [
        (i, number, choice)
        for i, request in enumerate(claim.requests)
        for number, choice in enumerate((request, *request.or_else))
    ]
    for row, (i, number, choice) in enumerate(rows):
        sight = sight_of(state, choice)
        reports.append(
            RequestReport(
                request=names[i],
                count=choice.count,
                matching=sight.matching,
                free=sight.free,
                feasible_count=most[i] if not number else 0,
                blocks=i in blocking,
                there=sight.there,
                alternative=number,
            )
        )
        share = (limit - len(reasons)) // (len(rows) - row)
        listed = 0
        for device, why in sight.refused(state):
            if listed >= share:
                break
            listed += 1
            reasons.append(
                DeviceReason(
                    device=device.id,
                    name=device.name,
                    node=device.location.node,
                    request=names[i],
                    reason=why,
                    alternative=number,
                )
            )
        unlisted += sight.there - sight.free - listed
    return tuple(reports), tuple(reasons), unlisted
