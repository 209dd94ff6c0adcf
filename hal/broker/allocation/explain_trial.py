"""Could a claim be granted? Told by counting where that is proof, by a few nodes where they will do, or by allocating.

An explanation asks this of a dozen claims that differ a little; most answers need no search.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import msgspec

from hal.broker.allocation.choice import Place
from hal.broker.allocation.explain_sight import sight_of
from hal.broker.allocation.explain_witness import is_witnessed, remember
from hal.broker.allocation.view import MOST_READINGS, allocate, allocate_if, shape_of, view_of
from hal.model.claim import Claim, Constraint, Gather, Locality, Request, request_names

if TYPE_CHECKING:
    from hal.broker.state import State

MANY = 64
"""Of more nodes than these, the few with the most free devices are tried before all of them."""
MOST_FEW = 32
_ON_ONE_NODE = (Locality.NODE.value, Locality.NUMA.value, Locality.PCI_SWITCH.value)


def is_possible(state: State, trial: Claim) -> bool | None:
    """Return whether a claim could be granted now; None if the search for it was given up."""
    single = trial.replicas == 1 and trial.gang is None
    if single and not trial.constraints and _is_plenty(state, trial.requests):
        return True
    if is_witnessed(state, trial):
        return True
    if is_counted_out(state, trial):
        return False
    if single and trial.max_replicas is None:
        if _is_covered(trial):
            answer = _fits_one_node(state, trial)
            if answer is not None:
                return answer
        elif len(state.nodes) > MANY:
            names = [state.nodes[index].name for index in _few(state, trial.requests)]
            found = allocate_if(state, trial, nodes=names)
            if isinstance(found, Place):
                remember(state, trial, found)
                return True
    outcome = allocate(state, trial)
    if isinstance(outcome, Place):
        remember(state, trial, outcome)
        return True
    return None if outcome is None else False


def _fits_one_node(state: State, trial: Claim) -> bool | None:
    """Return whether some node can meet a claim that must lie on one; None if nobody knows."""
    state.purse.begin()
    view = view_of(state, shape_of(trial))
    unknown = False
    for tried, known in enumerate(view.readings()):
        if tried >= MOST_READINGS:
            return None
        look = view.look(state, known)
        if look.best() is not None:
            return True
        unknown = unknown or look.any_unknown()
    return None if unknown else False


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
        return trial.replicas > 1 and trial.replicas > most_replicas(state, trial, trial.replicas)
    return not _is_covered(trial) and any(_fits_one_node(state, part) is False for part in _parts(trial))


def _parts(trial: Claim) -> Iterator[Claim]:
    """Yield what each constraint puts on one node: its requests, and nothing else but that constraint."""
    names = _names(trial)
    for rule in trial.constraints:
        if _binds_one_node(rule):
            mine = tuple(r for r, name in zip(trial.requests, names, strict=True) if name in rule.requests)
            if mine:
                yield msgspec.structs.replace(
                    trial,
                    requests=tuple(msgspec.structs.replace(r, name="") for r in mine),
                    constraints=(Constraint(same=rule.same),),
                )


def reach(state: State, trial: Claim, index: int) -> int:
    """Return a number of devices that one request cannot exceed, whatever else is asked."""
    most = max(most for _, most in _reach(state, trial)[index])
    request = trial.requests[index]
    if trial.replicas > 1 and not request.or_else:
        found = _in_one_rack(state, trial, request)
        if found is not None:
            return min(most, found // trial.replicas)
    return most


def most_replicas(state: State, trial: Claim, most: int) -> int:
    """Return a number of replicas, at most ``most``, that are not exceeded: a rack must hold the devices of all."""
    for request in trial.requests:
        found = None if request.or_else else _in_one_rack(state, trial, request)
        if found is not None:
            most = min(most, found // (1 if request.count == "all" else request.count))
    return most


def _in_one_rack(state: State, trial: Claim, request: Request) -> int | None:
    """Return how many free devices one rack has at most, if all replicas are to lie in one and share no device."""
    gang = trial.gang
    if gang is None or gang.how is not Gather.ONE or gang.over is not Locality.RACK:
        return None
    sight = sight_of(state, request)
    return None if sight.plain.loose else sight.most_in_a_rack(state)


def _reach(state: State, trial: Claim) -> list[list[tuple[Request, int]]]:
    gang = trial.replicas > 1 or trial.gang is not None
    together = () if gang else _together(trial)
    return [
        [
            (choice, sight.most_on_a_node if gang or i in together else sight.free)
            for choice in (request, *request.or_else)
            for sight in (sight_of(state, choice),)
        ]
        for i, request in enumerate(trial.requests)
    ]


def _binds_one_node(rule: Constraint) -> bool:
    """True if all devices that a constraint is about must lie on one node, whatever else."""
    return rule.weight is None and not rule.pairwise and rule.same in _ON_ONE_NODE


def _names(trial: Claim) -> tuple[str, ...]:
    """Return what the requests are called; in most trials each has its name already."""
    names = tuple([request.name for request in trial.requests])
    return names if all(names) else request_names(trial.requests)


def _together(trial: Claim) -> Collection[int]:
    """Return the numbers of the requests whose devices must lie on one node, each for itself at least."""
    about = [rule.requests for rule in trial.constraints if _binds_one_node(rule)]
    if not about:
        return ()
    if () in about:
        return range(len(trial.requests))
    names = _names(trial)
    return [i for i, name in enumerate(names) if any(name in some for some in about)]


def _is_plenty(state: State, requests: tuple[Request, ...]) -> bool:
    """True if each request finds enough, whatever the others of its kind take, and nobody shares a fate."""
    sights = [sight_of(state, request) for request in requests]
    if any(request.count == "all" for request in requests) or any(sight.fated for sight in sights):
        return False
    wanted: dict[str, int] = {}
    for request in requests:
        wanted[request.kind] = wanted.get(request.kind, 0) + int(request.count)
    return all(sight.free >= wanted[r.kind] for r, sight in zip(requests, sights, strict=True))


def _is_covered(trial: Claim) -> bool:
    """True if one constraint by itself puts all devices on one node."""
    for rule in trial.constraints:
        if _binds_one_node(rule) and (not rule.requests or {*_names(trial)} <= {*rule.requests}):
            return True
    return False


def _is_whole(trial: Claim) -> bool:
    """False if something is to be paired and there are not equally many of each."""
    for rule in trial.constraints:
        if rule.pairwise:
            names = _names(trial)
            about = [r for r, name in zip(trial.requests, names, strict=True) if name in (rule.requests or names)]
            if len({choice.count for request in about for choice in (request, *request.or_else)}) > 1:
                return False
    return True
