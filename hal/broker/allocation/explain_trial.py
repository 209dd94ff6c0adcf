"""Could a claim be granted? Told by counting where that is proof, by a few nodes where they will do, or by allocating.

An explanation asks this of a dozen claims that differ a little; most answers need no search.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from hal.broker.allocation.choice import Place, Refusal
from hal.broker.allocation.explain_sight import sight_of
from hal.broker.allocation.view import allocate, allocate_if
from hal.model.claim import Claim, Constraint, Locality, Request, request_names

if TYPE_CHECKING:
    from hal.broker.state import State

MANY = 64
"""Of more nodes than these, the few with the most free devices are tried before all of them."""
MOST_FEW = 32
_ON_ONE_NODE = (Locality.NODE.value, Locality.NUMA.value, Locality.PCI_SWITCH.value)


def is_possible(state: State, trial: Claim) -> bool | None:
    """Return whether a claim could be granted now; None if the search for it was given up."""
    if is_counted_out(state, trial):
        return False
    hard = [rule for rule in trial.constraints if rule.weight is None]
    if trial.replicas == 1 and trial.gang is None:
        if not hard and _is_plenty(state, trial.requests):
            return True
        if len(state.nodes) > MANY and not _covered(trial, hard):
            names = [state.nodes[index].name for index in _few(state, trial.requests)]
            if isinstance(allocate_if(state, trial, nodes=names), Place):
                return True
    outcome = allocate(state, trial)
    return None if outcome is None else isinstance(outcome, Place)


def _few(state: State, requests: tuple[Request, ...]) -> list[int]:
    """Return the numbers of the nodes that have most free, about twice as many as would do."""
    found: set[int] = set()
    for request in requests:
        for choice in (request, *request.or_else):
            sight = sight_of(state, choice)
            wanted = 1 if choice.count == "all" else 2 * choice.count
            found.update(sight.fullest(min(MOST_FEW, wanted // max(1, sight.most_on_a_node) + 1)))
    return sorted(found)


def is_counted_out(state: State, trial: Claim) -> bool:
    """Return whether it is proof of no to count the free devices of each request, on one node where they must be.

    Or, where several nodes may be used, to look at the requests alone that one constraint puts on one node.
    """
    if not _is_whole(trial) or any(
        not any(most >= (1 if choice.count == "all" else choice.count) for choice, most in options)
        for options in _reach(state, trial)
    ):
        return True
    if trial.replicas > 1 or trial.gang is not None:
        return False
    hard = [rule for rule in trial.constraints if rule.weight is None]
    return not _covered(trial, hard) and any(isinstance(allocate(state, part), Refusal) for part in _parts(trial, hard))


def _parts(trial: Claim, hard: list[Constraint]) -> Iterator[Claim]:
    """Yield what each constraint puts on one node: its requests, and nothing else but that constraint."""
    names = request_names(trial.requests)
    for rule in hard:
        if rule.same in _ON_ONE_NODE and not rule.pairwise:
            mine = tuple(r for r, name in zip(trial.requests, names, strict=True) if name in rule.requests)
            if mine:
                yield msgspec.structs.replace(
                    trial,
                    requests=tuple(msgspec.structs.replace(r, name="") for r in mine),
                    constraints=(Constraint(same=rule.same),),
                )


def reach(state: State, trial: Claim, index: int) -> int:
    """Return a number of devices that one request cannot exceed, whatever else is asked."""
    return max(most for _, most in _reach(state, trial)[index])


def _reach(state: State, trial: Claim) -> list[list[tuple[Request, int]]]:
    hard = [rule for rule in trial.constraints if rule.weight is None]
    gang = trial.replicas > 1 or trial.gang is not None
    together = _together(trial, hard)
    return [
        [
            (choice, sight.most_on_a_node if gang or i in together else sight.free)
            for choice in (request, *request.or_else)
            for sight in (sight_of(state, choice),)
        ]
        for i, request in enumerate(trial.requests)
    ]


def _together(trial: Claim, hard: list[Constraint]) -> set[int]:
    """Return the numbers of the requests whose devices must lie on one node, each for itself at least."""
    names = request_names(trial.requests)
    about = [rule.requests or names for rule in hard if rule.same in _ON_ONE_NODE and not rule.pairwise]
    return {i for i, name in enumerate(names) if any(name in some for some in about)}


def _is_plenty(state: State, requests: tuple[Request, ...]) -> bool:
    """True if each request finds enough, whatever the others of its kind take, and nobody shares a fate."""
    sights = [sight_of(state, request) for request in requests]
    if any(request.count == "all" for request in requests) or any(sight.fated for sight in sights):
        return False
    wanted: dict[str, int] = {}
    for request in requests:
        wanted[request.kind] = wanted.get(request.kind, 0) + int(request.count)
    return all(sight.free >= wanted[r.kind] for r, sight in zip(requests, sights, strict=True))


def _covered(trial: Claim, hard: list[Constraint]) -> bool:
    """True if one constraint by itself puts all devices on one node."""
    names = set(request_names(trial.requests))
    return any(
        rule.same in _ON_ONE_NODE and not rule.pairwise and (not rule.requests or names <= set(rule.requests))
        for rule in hard
    )


def _is_whole(trial: Claim) -> bool:
    """False if something is to be paired and there are not equally many of each."""
    names = request_names(trial.requests)
    for rule in trial.constraints:
        if rule.pairwise:
            about = [r for r, name in zip(trial.requests, names, strict=True) if name in (rule.requests or names)]
            if len({choice.count for request in about for choice in (request, *request.or_else)}) > 1:
                return False
    return True
