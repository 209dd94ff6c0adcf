"""Could a claim be granted? Told by counting where that is proof, by a few nodes where they will do, or by allocating.

An explanation asks this of a dozen claims that differ a little; most answers need no search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal.broker.allocation.choice import Place
from hal.broker.allocation.explain_sight import Sight, sight_of
from hal.broker.allocation.view import allocate, allocate_if
from hal.model.claim import Claim, Constraint, Locality, Request, request_names

if TYPE_CHECKING:
    from hal.broker.state import State

FEW = 16
"""How many nodes with the most free devices are tried before all of them."""
_ON_ONE_NODE = (Locality.NODE.value, Locality.NUMA.value, Locality.PCI_SWITCH.value)


def is_possible(state: State, trial: Claim) -> bool | None:
    """Return whether a claim could be granted now; None if the search for it was given up."""
    if not _is_whole(trial):
        return False
    choices = [[(choice, sight_of(state, choice)) for choice in (r, *r.or_else)] for r in trial.requests]
    hard = [rule for rule in trial.constraints if rule.weight is None]
    on_one_node = trial.replicas > 1 or trial.gang is not None or _covered(trial, hard)
    for options in choices:
        if not any(_enough(choice, sight, trial.replicas, on_one_node) for choice, sight in options):
            return False
    if not hard and trial.replicas == 1 and trial.gang is None and _is_plenty(choices):
        return True
    if not on_one_node and len(state.nodes) > 4 * FEW:
        few = {index for options in choices for _, sight in options for index in sight.fullest(FEW)}
        names = [state.nodes[index].name for index in sorted(few)]
        if isinstance(allocate_if(state, trial, nodes=names), Place):
            return True
    outcome = allocate(state, trial)
    return None if outcome is None else isinstance(outcome, Place)


def _enough(choice: Request, sight: Sight, replicas: int, on_one_node: bool) -> bool:
    """False if there are too few free devices for this alone. (Some of the replicas may take another alternative.)"""
    least = 1 if choice.count == "all" else choice.count
    return sight.free >= least and (not on_one_node or sight.most_on_a_node >= least)


def _is_plenty(choices: list[list[tuple[Request, Sight]]]) -> bool:
    """True if each request finds enough, whatever the others of its kind take, and nobody shares a fate."""
    first = [options[0] for options in choices]
    if any(choice.count == "all" or sight.fated for choice, sight in first):
        return False
    wanted: dict[str, int] = {}
    for choice, _ in first:
        wanted[choice.kind] = wanted.get(choice.kind, 0) + int(choice.count)
    return all(sight.free >= wanted[choice.kind] for choice, sight in first)


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
