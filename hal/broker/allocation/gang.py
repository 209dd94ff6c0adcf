"""Replicas over nodes, all or nothing: how many fit on each node, and which places and nodes they are given.

Identical members in as few places as can be is exact: take the places that hold most, and for the rest the one that
fits best. How many replicas fit on a node is worked out once for each situation, and how many fit in a place is kept up
to date from the nodes that changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hal.broker.allocation.choice import Choice, GangShort, Outcome, Place, Refusal
from hal.broker.allocation.facts import Key
from hal.broker.allocation.look import Look
from hal.broker.allocation.places import Node
from hal.broker.allocation.scope import Scope
from hal.broker.allocation.scoring import Score
from hal.broker.allocation.states import Situation
from hal.model.claim import Claim, Gang, Gather, Locality

if TYPE_CHECKING:
    from hal.broker.allocation.view import View
    from hal.broker.state import State

LOOSE = Gang()
"""What a claim of several replicas gets that says nothing of its gang; machines without a rack may be used, then."""
MOST_MIXED = 256
"""On how many nodes a cheaper mix of alternatives is looked for where all replicas can take the same."""
ENOUGH = 1024
"""More replicas than these are never counted on one node."""


class Rooms:
    """How many replicas of one reading fit on each node and in each place of one level."""

    def __init__(self, look: Look, over: Locality, loose: bool) -> None:
        self.look = look
        self.over = over
        self.loose = loose
        self.seen = -1
        self.totals: dict[Key, int] = {}
        self.members: dict[Key, dict[int, None]] = {}
        self.unsure: dict[int, None] = {}
        self._fits: list[int] = []
        self._place: list[Key | None] = []
        self._versions: list[int] = []
        self._known: dict[int, tuple[Situation, int]] = {}
        self._hungry: dict[int, None] = {}

    def refresh(self, state: State) -> None:
        """Look at the nodes that changed since the last time."""
        touched = state.touched
        reached = state.forgotten_touches + len(touched)
        if self.seen == reached and not self._hungry:
            return
        more = len(state.nodes) - len(self._fits)
        if more:
            self._fits.extend([0] * more)
            self._place.extend([None] * more)
            self._versions.extend([-1] * more)
        start = self.seen - state.forgotten_touches
        changed = (
            range(len(state.nodes))
            if self.seen < 0 or start < 0
            else {**self._hungry, **dict.fromkeys(touched[start:])}
        )
        self.seen = reached
        where = self.look.table.where
        for index in changed:
            node = state.nodes[index]
            if self._versions[index] != node.version:
                self._versions[index] = node.version
                self._settle_in(index, place_of(state, index, self.over, self.loose))
            situation = where[index]
            fits = self.fits(situation) if situation is not None else 0
            if self.look.starved:
                self._hungry[index] = None
            else:
                self._hungry.pop(index, None)
            before = self._fits[index]
            if fits != before:
                self._fits[index] = fits
                place = self._place[index]
                if place is not None:
                    self.totals[place] += fits - before
            if situation is not None and not self.certain(situation):
                self.unsure[index] = None
            else:
                self.unsure.pop(index, None)

    def _settle_in(self, index: int, place: Key | None) -> None:
        before = self._place[index]
        if before == place:
            return
        if before is not None:
            self.totals[before] -= self._fits[index]
            del self.members[before][index]
        self._place[index] = place
        if place is not None:
            self.totals[place] = self.totals.get(place, 0) + self._fits[index]
            self.members.setdefault(place, {})[index] = None

    def place(self, index: int) -> Key | None:
        """Return the place of a node."""
        return self._place[index]

    def fits(self, situation: Situation) -> int:
        """Return how many replicas fit on a node in this situation."""
        known = self._known.get(situation.number)
        if known is not None and known[0] is situation:
            return known[1]
        if len(self._known) > 65536:
            self._known.clear()
        if self.look.starved and self.look.purse.left <= 0:
            return 0  # for now: who is hungry is looked at again
        found = len(self.look.packed(situation, ENOUGH)[0])
        if not self.look.starved:
            self._known[situation.number] = (situation, found)
        return found

    def certain(self, situation: Situation) -> bool:
        """True if more certainly do not fit."""
        if self.look.starved:
            return False
        return not self.look.is_unknown(situation) and self.look.packed(situation, ENOUGH)[1]

    def on(self, index: int) -> int:
        """Return how many replicas fit on a node as it is."""
        return self._fits[index]


def place_of(state: State, index: int, over: Locality, loose: bool) -> Key | None:
    """Return the name of the place of one level that a node lies in, None if that is not known.

    A node with several link domains lies in that of its first device. With ``loose`` an unknown place is the node's
    own.
    """
    node = state.nodes[index]
    found = _place_of(node, over)
    return ("", node.name) if found is None and loose else found


def domain_of(node: Node, over: Locality) -> str | None:
    """Return what the place of one level is called that a node lies in, None if that is not known."""
    found = _place_of(node, over)
    return None if found is None else str(found[-1])


def _place_of(node: Node, over: Locality) -> Key | None:
    if over is Locality.NODE:
        return (node.name,)
    if over is Locality.RACK:
        return (node.rack,) if node.rack is not None else None
    groups = node.groups(over)
    return min(groups, key=lambda key: groups[key] & -groups[key]) if groups else None


class Field:
    """What there is to choose from: how many replicas fit in each place, and on each node of a place."""

    def __init__(self, state: State, rooms: Rooms, scope: Scope) -> None:
        self.state = state
        self.rooms = rooms
        self.look = rooms.look
        self.changed = scope.changed(self.look)
        self.only = None if scope.only is None else set(scope.only)
        self.certain = (
            not rooms.unsure and not rooms.look.starved and all(rooms.certain(s) for s in self.changed.values())
        )
        if self.only is not None:
            self.totals: Mapping[Key, int] = self._totals_of(self.only)
        elif self.changed:
            totals = dict(rooms.totals)
            for index, situation in self.changed.items():
                place = rooms.place(index)
                if place is not None:
                    totals[place] += rooms.fits(situation) - rooms.on(index)
            self.totals = totals
        else:
            self.totals = rooms.totals

    def _totals_of(self, only: set[int]) -> dict[Key, int]:
        totals: dict[Key, int] = {}
        for index in sorted(only):
            place = self.rooms.place(index)
            if place is not None:
                totals[place] = totals.get(place, 0) + self.on(index)
        return totals

    def on(self, index: int) -> int:
        """Return how many replicas fit on a node."""
        situation = self.changed.get(index)
        return self.rooms.on(index) if situation is None else self.rooms.fits(situation)

    def appeal(self, index: int) -> Score:
        """Return how little it is liked to put a replica on a node."""
        solved = self.look.solve(self.situation(index))
        return solved.score if solved is not None else ()

    def situation(self, index: int) -> Situation:
        """Return the situation of a node."""
        found = self.changed.get(index) or self.look.table.where[index]
        assert found is not None
        return found

    def nodes_of(self, place: Key) -> list[int]:
        """Return the nodes of a place."""
        members = self.rooms.members.get(place, {})
        return [index for index in members if self.only is None or index in self.only]


def spread_over(gang: Gang, totals: Mapping[Key, int], wanted: int) -> dict[Key, int] | None:
    """Return how many replicas each place gets, in the order in which they are numbered, or None."""
    most = gang.most if gang.most is not None else (1 if gang.how is Gather.SPREAD else wanted)
    holds = [(min(total, most), total, str(place), place) for place, total in totals.items() if total > 0]
    if gang.how is Gather.ONE:
        fitting = [(total, name, place) for has, total, name, place in holds if has >= wanted]
        return {min(fitting, key=lambda found: found[:2])[2]: wanted} if fitting else None
    if sum(hold[0] for hold in holds) < wanted:
        return None
    if gang.how is Gather.SPREAD:
        return _evenly(holds, wanted)
    holds.sort(key=lambda hold: (-hold[0], hold[1], hold[2]))
    found: dict[Key, int] = {}
    for number, (has, _, _, place) in enumerate(holds):
        if has >= wanted:
            # The last place: of all that would do the one that fits best.
            last = min((hold for hold in holds[number:] if hold[0] >= wanted), key=lambda hold: hold[:3])
            found[last[3]] = wanted
            return found
        found[place] = has
        wanted -= has
    return found


def _evenly(holds: list[tuple[int, int, str, Key]], wanted: int) -> dict[Key, int]:
    """One to each place, the fullest places first, then one more to each."""
    holds.sort(key=lambda hold: hold[1:3])
    found: dict[Key, int] = {}
    while wanted:
        for has, _, _, place in holds:
            if wanted and found.get(place, 0) < has:
                found[place] = found.get(place, 0) + 1
                wanted -= 1
    return found


def most_of(gang: Gang, totals: Mapping[Key, int]) -> int:
    """Return how many replicas fit at most."""
    limit = gang.most if gang.most is not None else (1 if gang.how is Gather.SPREAD else None)
    capped = [total if limit is None else min(total, limit) for total in totals.values()]
    return max(capped, default=0) if gang.how is Gather.ONE else sum(capped)


def place_gang(state: State, claim: Claim, view: View, scope: Scope, replicas: int | None) -> Outcome:
    """Choose the nodes and devices of all replicas, as many as there is room for if the claim is elastic."""
    least = claim.replicas if replicas is None else replicas
    most = (claim.max_replicas or least) if replicas is None else replicas
    gang = claim.gang or LOOSE
    best: tuple[int, float, Place] | None = None
    refusal: Refusal | None = None
    unknown = False
    for tried, known in enumerate(view.readings()):
        if tried >= 64:
            unknown = True
            break
        look = view.look(state, known)
        field = Field(state, rooms_of(state, look, gang, claim.gang is None), scope)
        fits = most_of(gang, field.totals)
        wanted = min(fits, most)
        unknown = unknown or (wanted < most and not field.certain)
        if wanted >= least and (best is None or wanted > best[0]):
            chosen = spread_over(gang, field.totals, wanted)
            assert chosen is not None
            choices = _choices(field, chosen)
            cost = known.cost * wanted
            best = (wanted, cost, Place(choices, view.names, known.plain.requests, cost, wanted))
            if wanted == most and not known.cost:
                return best[2]
        elif refusal is None or len(known.plain.rules) < len(refusal.constraints):
            cause = GangShort(
                least, fits, sum(field.totals.values()), sum(t > 0 for t in field.totals.values()), gang.how, gang.over
            )
            rules = tuple(rule for _, rule in known.plain.rules)
            refusal = Refusal(cause, known.plain.requests, rules, tried + 1)
    if view.several and (best is None or best[0] < most or len(state.nodes) <= MOST_MIXED):
        from hal.broker.allocation.mixed import place_mixed

        place, sure = place_mixed(state, claim, view, scope, least, most)
        if place is not None and (best is None or (-place.replicas, place.cost) < (-best[0], best[1])):
            return place
        unknown = not sure
    if best is not None:
        return best[2]
    return None if unknown else refusal


def rooms_of(state: State, look: Look, gang: Gang, loose: bool) -> Rooms:
    """Return how many replicas fit where, up to date."""
    key = (gang.over, loose)
    rooms = look.rooms.get(key)
    if not isinstance(rooms, Rooms):
        rooms = look.rooms[key] = Rooms(look, gang.over, loose)
    rooms.refresh(state)
    return rooms


def _choices(field: Field, chosen: Mapping[Key, int]) -> tuple[Choice, ...]:
    found: list[Choice] = []
    nodes = field.state.nodes
    for place, wanted in chosen.items():
        for index, count in on_nodes(field, place, wanted):
            packed, _ = field.look.packed(field.situation(index), ENOUGH)
            node = nodes[index]
            for solved in packed[:count]:
                found.append(
                    Choice(node, solved.masks, solved.order, len(found), solved.partitions, field.look.in_part)
                )
    return tuple(found)


def on_nodes(field: Field, place: Key, wanted: int) -> list[tuple[int, int]]:
    """Return how many replicas each node of a place gets: few nodes, and of those that would do the fullest."""
    seats = [(field.on(index), index) for index in field.nodes_of(place)]
    seats = [seat for seat in seats if seat[0]]
    seats.sort(key=lambda seat: (-seat[0], seat[1]))
    found: list[tuple[int, int]] = []
    at = 0
    while wanted:
        has, index = seats[at]
        if has >= wanted:
            fewest = min(seat[0] for seat in seats[at:] if seat[0] >= wanted)
            fitting = [(field.appeal(seat[1]), seat[1]) for seat in seats[at:] if seat[0] == fewest]
            found.append((min(fitting)[1], wanted))
            return found
        found.append((index, has))
        wanted -= has
        at += 1
    return found
