"""The ways to read a claim, cheapest first: which alternative of each request, and which wishes are kept."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import msgspec

from hal.broker.allocation.plain import Plain
from hal.model.claim import Constraint, Request

Reading = tuple[float, tuple[int, ...], Plain]
"""What it costs, what was chosen in each dimension (0: the best), and what that asks for."""


def readings(
    requests: Sequence[Request], constraints: Sequence[Constraint], names: tuple[str, ...]
) -> Iterator[Reading]:
    """Yield every reading, each once, in ascending order of cost.

    The first dimensions of the vector are the requests, the others the constraints with a weight: 1 is not kept.
    """
    options = [_options(request) for request in requests]
    wishes = [number for number, constraint in enumerate(constraints) if constraint.weight is not None]
    costs = [[cost for cost, _ in found] for found in options]
    costs += [[0.0, constraints[number].weight or 0.0] for number in wishes]
    first = (0,) * len(costs)
    heap = [(sum(each[0] for each in costs), first, 0)]
    while heap:
        cost, chosen, start = heapq.heappop(heap)
        given_up = {number for number, yes in zip(wishes, chosen[len(requests) :], strict=True) if yes}
        kept = tuple((n, c) for n, c in enumerate(constraints) if n not in given_up)
        yield (
            cost,
            chosen,
            Plain(
                tuple([found[at][1] for found, at in zip(options, chosen, strict=False)]),
                kept,
                tuple(concerned(constraint, names) for _, constraint in kept),
                names,
            ),
        )
        for dimension in range(start, len(costs)):
            at = chosen[dimension]
            if at + 1 < len(costs[dimension]):
                then = (*chosen[:dimension], at + 1, *chosen[dimension + 1 :])
                more = sum(each[option] for each, option in zip(costs, then, strict=True))
                heapq.heappush(heap, (more, then, dimension))


def _options(request: Request) -> list[tuple[float, Request]]:
    if not request.or_else:
        return [(request.cost, request)]
    own = msgspec.structs.replace(request, or_else=())
    found = [(choice.cost, number, choice) for number, choice in enumerate((own, *request.or_else))]
    return [(cost, choice) for cost, _, choice in sorted(found, key=lambda option: option[:2])]


def concerned(constraint: Constraint, names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of the requests that a constraint is about, in the order of the claim."""
    if not constraint.requests:
        return tuple(range(len(names)))
    return tuple(i for i, name in enumerate(names) if name in constraint.requests)
