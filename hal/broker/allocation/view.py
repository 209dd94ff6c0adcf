"""The entrance: choose the devices of a claim, or say why there are none.

A shape of claim is its requests and constraints; claims of one shape have one :class:`View`, which is memory and
changes nothing but speed. The readings of a shape (alternatives, wishes) are tried in ascending order of cost, on one
node first and then on several; the replicas of a gang by :mod:`hal.broker.allocation.gang`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hal.broker.allocation.choice import Cause, Choice, GangShort, NoNode, Outcome, Place, Refusal, given
from hal.broker.allocation.gang import domain_of, place_gang
from hal.broker.allocation.look import Look
from hal.broker.allocation.plain import Plain
from hal.broker.allocation.problem import Conflict, OutOfBudget
from hal.broker.allocation.scope import EVERYTHING, Scope, populations
from hal.broker.allocation.scoring import PACK, Policy
from hal.broker.allocation.states import TABLES, table_of
from hal.broker.allocation.tally import tally_of
from hal.broker.allocation.variants import readings
from hal.broker.allocation.wide import Universe, solve_counted, solve_wide
from hal.model.claim import Claim, Constraint, Request, request_names
from hal.model.lease import AllocatedDevice

if TYPE_CHECKING:
    from hal.broker.state import State

__all__ = [
    "Choice", "GangShort", "NoNode", "Outcome", "Place", "Refusal", "Shape", "Universe", "View", "allocate",
    "allocate_if", "domain_of", "given", "known_view", "shape_of", "view_of",
]  # fmt: skip

Shape = tuple[tuple[Request, ...], tuple[Constraint, ...]]
MOST_VIEWS = 128
MOST_READINGS = 64
"""How many readings of a claim are tried; more are only looked at if a proof against an earlier one rules them out."""
MOST_LOOKED_AT = 4096


@dataclass(slots=True)
class Known:
    """One reading: what it costs, what was chosen in each dimension, and how the nodes look under it."""

    cost: float
    chosen: tuple[int, ...]
    plain: Plain
    look: Look | None = None


class View:
    """One shape of claim over all nodes: its readings, as far as they were needed, cheapest first."""

    def __init__(self, shape: Shape, policy: Policy, empty: bool = False) -> None:
        self.requests, self.constraints = shape
        self.empty = empty
        self.names = request_names(self.requests)
        self.policy = policy
        self.told: tuple[Any, ...] | None = None
        self.several = any(r.or_else for r in self.requests) or any(c.weight is not None for c in self.constraints)
        self.first: Look | None = None
        self.first_cost = 0.0
        self._known: list[Known] = []
        self._more = readings(self.requests, self.constraints, self.names)

    def readings(self) -> Iterator[Known]:
        """Yield the readings, cheapest first."""
        number = 0
        while True:
            while number < len(self._known):
                yield self._known[number]
                number += 1
            found = next(self._more, None)
            if found is None:
                return
            self._known.append(Known(*found))

    def look(self, state: State, known: Known) -> Look:
        """Return how the nodes look under a reading, up to date."""
        look = known.look
        if look is None:
            plain = known.plain
            table = table_of(state, plain.aspects(), plain.loose, self.empty)
            look = known.look = Look(plain, table, self.policy, state.purse)
            if known is self._known[0]:
                self.first = look
                self.first_cost = known.cost
        look.refresh(state)
        return look


def shape_of(claim: Claim) -> Shape:
    """Return what claims have in common that are decided alike."""
    return claim.requests, claim.constraints


def view_of(state: State, shape: Shape, empty: bool = False) -> View:
    """Return the view of a shape, made when it is first asked for; ``empty``: as if nothing were held."""
    views: dict[Any, Any] = state.views
    name: object = (shape, "empty") if empty else shape
    view: View | None = views.get(name)
    policy: Policy = getattr(state, "policy", None) or PACK
    if view is None or view.policy is not policy:
        while len(views) >= MOST_VIEWS:
            oldest = next(name for name in views if name != TABLES)
            del views[oldest]
            state.recent.clear()
        view = views[name] = View(shape, policy, empty)
    return view


def known_view(state: State, claim: Claim) -> View | None:
    """Return the view of a claim for one replica, if one of its shape was asked for before."""
    if claim.gang is not None or claim.replicas.__class__ is not int or claim.replicas != 1:
        return None
    if claim.max_replicas is not None:
        return None
    view: View | None = state.views.get((claim.requests, claim.constraints))
    return view if view is not None and view.policy is (state.policy or PACK) else None


def allocate(state: State, claim: Claim, view: View | None = None, *, replicas: int | None = None) -> Outcome:
    """Choose the devices of a claim, or say why there are none. Changes nothing but the views, which are memory.

    ``replicas`` asks for exactly so many, whatever the claim says. None: the search was given up, nobody knows.
    """
    if state.purse.used:
        state.purse.begin()
    if view is None:
        view = state.recent.get(id(claim.requests))
        if (
            view is None
            or view.requests is not claim.requests
            or view.constraints is not claim.constraints
            or view.policy is not (state.policy or PACK)
        ):
            view = view_of(state, (claim.requests, claim.constraints))
            state.recent[id(view.requests)] = view
    if claim.replicas == 1 and claim.gang is None and claim.max_replicas in (None, 1) and replicas is None:
        look = view.first
        if look is not None:
            look.refresh(state)
            found = look.best()
            if found is not None:
                index, solved = found
                choice = Choice(state.nodes[index], solved.masks, solved.order, 0, solved.partitions, look.in_part)
                return Place((choice,), view.names, look.plain.requests, view.first_cost)
        return _decide(state, view, EVERYTHING)
    return place_gang(state, claim, view, EVERYTHING, replicas)


def allocate_if(
    state: State,
    claim: Claim,
    *,
    freed: Iterable[AllocatedDevice] = (),
    barred: Collection[str] = (),
    unkept: Collection[str] = (),
    nodes: Collection[str] | None = None,
    empty: bool = False,
    replicas: int | None = None,
) -> Outcome:
    """Answer as :func:`allocate` would, if things were otherwise; changes nothing.

    As if the ``freed`` had been given back, each as it was allocated; as if somebody held the ``barred`` devices (ids);
    as if the ``unkept`` ones were not reserved for others; and with no other ``nodes`` than these (names).
    ``empty``: as if nothing were held or kept at all, and then none of the others is looked at but ``nodes``.
    """
    state.purse.begin()
    view = view_of(state, (claim.requests, claim.constraints), empty)
    scope = Scope.of(state, () if empty else freed, () if empty else barred, () if empty else unkept, nodes)
    if claim.replicas == 1 and claim.gang is None and claim.max_replicas in (None, 1) and replicas in (None, 1):
        return _decide(state, view, scope)
    return place_gang(state, claim, view, scope, replicas)


def _decide(state: State, view: View, scope: Scope) -> Outcome:
    """Try the readings of a claim of one replica, the cheapest first."""
    refusal: Refusal | None = None
    ruled_out: list[tuple[tuple[tuple[int, int], ...], frozenset[int]]] = []
    unknown = False
    tried = 0
    for looked_at, known in enumerate(view.readings()):
        plain, chosen = known.plain, known.chosen
        if looked_at >= MOST_LOOKED_AT or tried >= MOST_READINGS:
            return None
        if any(_covers(proof, chosen, plain) for proof in ruled_out):
            continue
        tried += 1
        try:
            answer = _one(state, view.look(state, known), scope)
        except OutOfBudget:
            unknown = True
            continue
        if isinstance(answer, tuple):
            return Place(answer, view.names, plain.requests, known.cost)
        if isinstance(answer, Conflict):
            ruled_out.append((tuple((i, chosen[i]) for i in answer.requests), frozenset(answer.rules)))
        # The proof to tell is the one against what was asked first, with no wish left to give up.
        if refusal is None or (len(plain.rules) < len(refusal.constraints) and not any(chosen[: len(view.names)])):
            refusal = Refusal(answer, plain.requests, tuple(rule for _, rule in plain.rules))
    if unknown or refusal is None:
        return None
    return replace(refusal, tried=tried)


def _covers(proof: tuple[tuple[tuple[int, int], ...], frozenset[int]], chosen: tuple[int, ...], plain: Plain) -> bool:
    """True if what was shown to be impossible is part of this reading, too."""
    requests, rules = proof
    return all(chosen[i] == option for i, option in requests) and rules <= {number for number, _ in plain.rules}


def _one(state: State, look: Look, scope: Scope) -> tuple[Choice, ...] | Cause:
    """Place one replica of one reading: on one node, or on several."""
    found = scope.best(state, look)
    if found is not None:
        return (look.choice(state, *found),)
    if scope is EVERYTHING and look.answered is not None and look.answered[0] == look.table.seen:
        return look.answered[1]
    answer = _wide(state, look, scope)
    if scope is EVERYTHING and not isinstance(answer, tuple):
        look.answered = (look.table.seen, answer)
    return answer


def _wide(state: State, look: Look, scope: Scope) -> tuple[Choice, ...] | Cause:
    """No single node will do: count, then look at several, unless one node is what was asked for."""
    plain = look.plain
    tally = None
    if scope is EVERYTHING:
        tally = tally_of(state, look)
        totals, nodes, unknown = tally.devices, tally.nodes, look.any_unknown()
    else:
        totals, nodes, unknown = _totals(look, scope)
    for i, (request, total) in enumerate(zip(plain.requests, totals, strict=True)):
        wanted = 1 if request.count == "all" else request.count
        if total < wanted:
            return Conflict((i,), needed=wanted, available=total)
    rule = plain.node_rule()
    if rule is not None:
        if unknown:
            raise OutOfBudget
        return NoNode(rule, nodes)
    answer: tuple[Choice, ...] | Cause | None = None
    if tally is not None and tally.counts:
        answer = solve_counted(state, look, tally)
    if answer is None:
        answer = solve_wide(state, look, scope.members(state, look))
    if isinstance(answer, Conflict) and answer.rules:
        return Conflict(
            answer.requests,
            tuple(plain.rules[i][0] for i in answer.rules),
            answer.needed,
            answer.available,
            answer.fate,
        )
    return answer


def _totals(look: Look, scope: Scope) -> tuple[list[int], int, bool]:
    """Return the devices for each request, the nodes, and whether the search was given up on one of them."""
    totals = [0] * len(look.plain.requests)
    unknown = look.starved
    nodes = 0
    for situation, count in populations(look, scope.changed(look), scope.only):
        nodes += count
        unknown = unknown or look.is_unknown(situation)
        for i, mask in enumerate(look.facts(situation).available(situation)):
            totals[i] += count * mask.bit_count()
    return totals, nodes, unknown
