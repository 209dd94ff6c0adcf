"""Gangs whose members differ: each replica may take other alternatives, and give up other wishes.

For each node the least cost of one, two, three... replicas is worked out, whatever each of them takes; then the
replicas are shared out over nodes and places at the least cost, by dynamic programming. Where there are too many nodes
for that, who is cheapest to add comes next: that finds room wherever there is some, but perhaps not at the least cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hal.broker.allocation.choice import Choice, Place
from hal.broker.allocation.facts import Key
from hal.broker.allocation.gang import LOOSE, place_of
from hal.broker.allocation.look import STEPS, Look, Solved
from hal.broker.allocation.plain import in_order
from hal.broker.allocation.problem import Assignment, Bond, Budget, OutOfBudget, Problem, Rule
from hal.broker.allocation.scope import Scope
from hal.broker.allocation.solver import solve
from hal.broker.allocation.states import Situation
from hal.model.claim import Claim, Gather

if TYPE_CHECKING:
    from hal.broker.allocation.view import View
    from hal.broker.state import State

MOST_READINGS = 64
MOST_SETS = 512
"""How many sets of readings are tried on one node."""
MOST_WORK = 2_000_000
INFINITE = float("inf")


@dataclass(slots=True)
class Curve:
    """The least cost of each number of replicas from 0 on, and how they are met: (reading, devices) for each.

    ``sure`` is False if there may be more, or cheaper ones.
    """

    costs: list[float] = field(default_factory=lambda: [0.0])
    ways: list[tuple[tuple[int, Solved], ...]] = field(default_factory=lambda: [()])
    sure: bool = True


@dataclass(slots=True)
class Menu:
    """The readings of a claim that replicas may take."""

    costs: list[float]
    looks: list[Look]
    changed: list[dict[int, Situation]]
    most: int
    known: dict[tuple[object, ...], Curve] = field(default_factory=dict)

    def curve(self, index: int) -> Curve:
        """Return what a node has to offer."""
        situations: list[Situation] = []
        for look, changed in zip(self.looks, self.changed, strict=True):
            found = changed.get(index) or look.table.where[index]
            if found is None:
                return Curve()
            situations.append(found)
        key = tuple(look.memory(found) for look, found in zip(self.looks, situations, strict=True))
        curve = self.known.get(key)
        if curve is None:
            curve = self.known[key] = self._work_out(situations)
        return curve

    def _work_out(self, situations: Sequence[Situation]) -> Curve:
        """Grow sets of readings that fit together, each from one that is smaller by its last member."""
        curve = Curve()
        single: dict[int, Solved] = {}
        for number, (look, situation) in enumerate(zip(self.looks, situations, strict=True)):
            solved = look.solve(situation)
            if solved is not None:
                single[number] = solved
            elif look.is_unknown(situation):
                curve.sure = False
        layer: dict[tuple[int, ...], tuple[tuple[int, Solved], ...]] = {(n,): ((n, s),) for n, s in single.items()}
        tried = 0
        while layer:
            best = min(layer, key=lambda members: (sum(self.costs[n] for n in members), members))
            curve.costs.append(sum(self.costs[n] for n in best))
            curve.ways.append(layer[best])
            if len(best) >= self.most:
                break
            larger: dict[tuple[int, ...], tuple[tuple[int, Solved], ...]] = {}
            for members in sorted(layer, key=lambda members: (sum(self.costs[n] for n in members), members)):
                for number in single:
                    if number < members[-1]:
                        continue
                    if tried >= MOST_SETS:
                        curve.sure = False
                        break
                    tried += 1
                    try:
                        way = self._together(situations, (*members, number))
                    except OutOfBudget:
                        curve.sure = False
                        continue
                    if way is not None:
                        larger[(*members, number)] = way
            layer = larger
        return curve

    def _together(
        self, situations: Sequence[Situation], members: tuple[int, ...]
    ) -> tuple[tuple[int, Solved], ...] | None:
        """Solve several replicas on one node as one problem."""
        masks: list[int] = []
        counts: list[int] = []
        rules: list[Rule] = []
        starts: list[int] = []
        for number in members:
            facts = self.looks[number].facts(situations[number])
            starts.append(len(masks))
            masks += facts.available(situations[number])
            counts += facts.counts
            rules += [Rule(r.bond, r.groups, tuple([i + starts[-1] for i in r.requests])) for r in facts.rules]
        fate = situations[members[0]].hardware.layout.fate
        budget = Budget(STEPS, self.looks[0].purse)
        answer = solve(Problem(tuple(masks), tuple(counts), tuple(rules), fate), budget=budget, minimal=False)
        if not isinstance(answer, Assignment):
            return None
        found: list[tuple[int, Solved]] = []
        pair = 0
        for number, start in zip(members, starts, strict=True):
            look = self.looks[number]
            plain = look.plain
            pairs = sum(bond is Bond.PAIRS for bond in plain.bonds)
            own = answer.masks[start : start + len(plain.requests)]
            order = in_order(plain, Assignment(own, (), answer.pairs[pair : pair + pairs]))
            pair += pairs
            found.append((number, look.solution(situations[number], own, order)))
        return tuple(found)


def place_mixed(
    state: State, claim: Claim, view: View, scope: Scope, least: int, most: int
) -> tuple[Place | None, bool]:
    """Return the most replicas at the least cost, whatever each takes, and whether no more and no cheaper can be."""
    menu = Menu([], [], [], most)
    sure = True
    for number, known in enumerate(view.readings()):
        if number >= MOST_READINGS:
            sure = False
            break
        look = view.look(state, known)
        menu.costs.append(known.cost)
        menu.looks.append(look)
        menu.changed.append(scope.changed(look))
    gang = claim.gang or LOOSE
    free = claim.gang is None
    places: dict[Key, list[tuple[int, Curve]]] = {}
    for index in range(len(state.nodes)) if scope.only is None else scope.only:
        place = () if free else place_of(state, index, gang.over, False)
        curve = menu.curve(index)
        sure = sure and curve.sure
        if place is not None and len(curve.costs) > 1:
            places.setdefault(place, []).append((index, curve))
    limit = gang.most if gang.most is not None else (1 if gang.how is Gather.SPREAD and not free else most)
    inside = {place: share_out(curves, min(limit, most)) for place, curves in places.items()}
    chosen = _over_places(inside, least, most, gang.how is Gather.ONE and not free)
    if chosen is None:
        return None, sure
    choices: list[Choice] = []
    requests = []
    cost = 0.0
    for place, count in chosen.items():
        for index, number in inside[place].take(count):
            curve = dict(places[place])[index]
            cost += curve.costs[number]
            for reading, solved in curve.ways[number]:
                look = menu.looks[reading]
                choices.append(look.choice(state, index, solved, len(choices)))
                requests.append(look.plain.requests)
    same = all(each == requests[0] for each in requests)
    mixed = () if same else tuple(requests)
    return Place(tuple(choices), view.names, requests[0], cost, len(choices), mixed), sure


@dataclass(slots=True)
class Shares:
    """The least cost of each number of replicas over several nodes, and how many each node has then."""

    costs: list[float]
    nodes: list[int]
    steps: list[list[int]]

    def take(self, count: int) -> list[tuple[int, int]]:
        """Return (node, replicas) for a number of replicas."""
        found: list[tuple[int, int]] = []
        for index, step in zip(reversed(self.nodes), reversed(self.steps), strict=True):
            if step[count]:
                found.append((index, step[count]))
            count -= step[count]
        return found[::-1]


def share_out(curves: Sequence[tuple[int, Curve]], most: int) -> Shares:
    """Share replicas out over nodes at the least cost, for each number of them."""
    if len(curves) * most * most > MOST_WORK:
        return _greedily(curves, most)
    costs = [0.0]
    steps: list[list[int]] = []
    for _, curve in curves:
        reach = min(most, len(costs) + len(curve.costs) - 2)
        fresh = [INFINITE] * (reach + 1)
        step = [0] * (reach + 1)
        for before, cost in enumerate(costs):
            for own, more in enumerate(curve.costs):
                if before + own <= reach and cost + more < fresh[before + own]:
                    fresh[before + own] = cost + more
                    step[before + own] = own
        costs = fresh
        steps.append(step)
    return Shares(costs, [index for index, _ in curves], steps)


def _greedily(curves: Sequence[tuple[int, Curve]], most: int) -> Shares:
    """Add one replica after the other where it costs least; the steps are those of the largest number."""
    added = sorted(
        (curve.costs[number] - curve.costs[number - 1], number, position)
        for position, (_, curve) in enumerate(curves)
        for number in range(1, len(curve.costs))
    )
    have = [0] * len(curves)
    order: list[int] = []
    rest = added
    while rest and len(order) < most:
        later = []
        for more, number, position in rest:
            if len(order) < most and have[position] == number - 1:
                have[position] = number
                order.append(position)
            else:
                later.append((more, number, position))
        if len(later) == len(rest):
            break
        rest = later
    costs = [0.0]
    tally = [0] * len(curves)
    for position in order:
        curve = curves[position][1]
        tally[position] += 1
        costs.append(costs[-1] + curve.costs[tally[position]] - curve.costs[tally[position] - 1])
    return _Ordered(costs, [index for index, _ in curves], [], order)


@dataclass(slots=True)
class _Ordered(Shares):
    order: list[int]

    def take(self, count: int) -> list[tuple[int, int]]:
        found: dict[int, int] = {}
        for position in self.order[:count]:
            found[position] = found.get(position, 0) + 1
        return [(self.nodes[position], number) for position, number in sorted(found.items())]


def _over_places(inside: Mapping[Key, Shares], least: int, most: int, one: bool) -> dict[Key, int] | None:
    """Choose how many replicas each place has: as many as can be, at the least cost, in the fewest places."""
    if one:
        options = [
            (-count, cost, str(place), place)
            for place, shares in inside.items()
            for count, cost in enumerate(shares.costs)
            if least <= count <= most and cost < INFINITE
        ]
        if not options:
            return None
        best = min(options, key=lambda option: option[:3])
        return {best[3]: -best[0]}
    totals: list[tuple[float, int]] = [(0.0, 0)]
    steps: list[tuple[Key, list[int]]] = []
    for place, shares in sorted(inside.items(), key=lambda found: -len(found[1].costs)):
        reach = min(most, len(totals) + len(shares.costs) - 2)
        fresh = [(INFINITE, 0)] * (reach + 1)
        step = [0] * (reach + 1)
        for before, (cost, used) in enumerate(totals):
            for own, more in enumerate(shares.costs[: reach + 1 - before]):
                option = (cost + more, used + (own > 0))
                if option < fresh[before + own]:
                    fresh[before + own] = option
                    step[before + own] = own
        totals = fresh
        steps.append((place, step))
    count = max((n for n, (cost, _) in enumerate(totals) if cost < INFINITE), default=0)
    if count < least:
        return None
    found: dict[Key, int] = {}
    for place, step in reversed(steps):
        if step[count]:
            found[place] = step[count]
        count -= step[count]
    return dict(reversed(found.items()))
