"""The smallest part of a claim that cannot be met: leave out what one can until nothing more can be left out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec

from hal.model.claim import Claim, Constraint, request_names

Test = Callable[[Claim], bool | None]
"""Could this be granted now? None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Core:
    """Parts of a claim, by number, that cannot be met together; without any one of them the others can.

    ``gang`` is how the replicas lie; ``replicas`` that there are several. ``sure`` is False if the search for a smaller
    one was given up: then it is a conflict, but something may be left out of it.
    """

    requests: tuple[int, ...]
    constraints: tuple[int, ...] = ()
    gang: bool = False
    replicas: bool = False
    sure: bool = True


def restrict(
    claim: Claim, requests: Collection[int], constraints: Collection[int], *, gang: bool, replicas: bool
) -> Claim:
    """Return a claim for these requests under these constraints alone, each as far as it is about them."""
    names = request_names(claim.requests)
    kept = tuple(
        msgspec.structs.replace(request, name=names[i]) for i, request in enumerate(claim.requests) if i in requests
    )
    left = {request.name for request in kept}
    bound: list[Constraint] = []
    for i, constraint in enumerate(claim.constraints):
        about = tuple(name for name in names if name in left and name in (constraint.requests or names))
        if i in constraints and about and not (constraint.pairwise and len(about) < 2):
            bound.append(msgspec.structs.replace(constraint, requests=about))
    return msgspec.structs.replace(
        claim,
        requests=kept,
        constraints=tuple(bound),
        gang=claim.gang if gang else None,
        replicas=claim.replicas if replicas else 1,
        max_replicas=None,
    )


def smallest(claim: Claim, possible: Test) -> Core:
    """Return the core of a claim that cannot be granted. ``possible`` is asked at most once for each of its parts."""
    requests = list(range(len(claim.requests)))
    constraints = [i for i, constraint in enumerate(claim.constraints) if constraint.weight is None]
    several, gang, sure = claim.replicas > 1, claim.gang is not None, True

    def fails(wanted: list[int], bound: list[int], lies: bool, many: bool) -> bool:
        nonlocal sure
        answer = possible(restrict(claim, wanted, bound, gang=lies, replicas=many))
        sure = sure and answer is not None
        return answer is False

    if (constraints or several or gang) and fails(requests, [], False, False):
        constraints, several, gang = [], False, False
    if gang and fails(requests, constraints, False, several):
        gang = False
    if several and not gang and fails(requests, constraints, False, False):
        several = False
    for number in tuple(constraints):
        rest = [other for other in constraints if other != number]
        if fails(requests, rest, gang, several):
            constraints = rest
    for number in tuple(requests):
        rest = [other for other in requests if other != number]
        if rest and fails(rest, constraints, gang, several):
            requests = rest
    names = request_names(claim.requests)
    left = {names[i] for i in requests}
    constraints = [
        i for i in constraints if not claim.constraints[i].requests or left & {*claim.constraints[i].requests}
    ]
    return Core(tuple(requests), tuple(constraints), gang, several, sure)
