"""Claims close to one that is refused: fewer devices or replicas, or without one of the things in conflict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from hal.broker.allocation.explain_conflict import Core, Test
from hal.broker.allocation.explain_sight import sight_of
from hal.broker.allocation.explain_trial import most_replicas, reach
from hal.broker.allocation.explain_words import gang_words, rule_words
from hal.model.claim import Claim, Request, request_names
from hal.model.words import counted

if TYPE_CHECKING:
    from hal.broker.state import State


class Nearby(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A claim that would be granted now, by what is different: counts by request, replicas, what is left out.

    ``without`` are numbers of constraints; ``loose`` that the replicas lie as they can.
    """

    text: str
    counts: dict[str, int] = {}
    replicas: int = 1
    without: tuple[int, ...] = ()
    loose: bool = False

    def applied(self, claim: Claim) -> Claim:
        """Return the claim that is meant."""
        names = request_names(claim.requests)
        kept = tuple(
            with_count(msgspec.structs.replace(request, name=name), self.counts[name])
            if name in self.counts
            else msgspec.structs.replace(request, name=name)
            for request, name in zip(claim.requests, names, strict=True)
            if self.counts.get(name) != 0
        )
        left = {request.name for request in kept}
        bound = []
        for number, constraint in enumerate(claim.constraints):
            about = tuple(name for name in constraint.requests or names if name in left)
            if number not in self.without and about and not (constraint.pairwise and len(about) < 2):
                bound.append(msgspec.structs.replace(constraint, requests=about))
        return msgspec.structs.replace(
            claim,
            requests=kept,
            constraints=tuple(bound),
            replicas=self.replicas,
            max_replicas=None,
            gang=None if self.loose else claim.gang,
        )


def with_count(request: Request, count: int) -> Request:
    """Return the request for fewer devices; its alternatives as far as they ask for more."""
    others = tuple(
        msgspec.structs.replace(other, count=count) if other.count != "all" and other.count > count else other
        for other in request.or_else
    )
    fewer = request.count == "all" or request.count > count
    return msgspec.structs.replace(request, count=count if fewer else request.count, or_else=others)


def most_of(state: State, claim: Claim, core: Core, index: int, possible: Test) -> int:
    """Return the largest count of one request with which all would be granted, 0 if there is none."""
    count = claim.requests[index].count
    if count == "all" or index not in core.requests:
        return 0
    if any(rule.pairwise and _about(claim, number, index) for number, rule in enumerate(claim.constraints)):
        return 0
    return _most(min(count - 1, reach(state, claim, index)), lambda fewer: possible(_counted(claim, {index: fewer})))


def _about(claim: Claim, number: int, index: int) -> bool:
    named = claim.constraints[number].requests
    return not named or request_names(claim.requests)[index] in named


def _counted(claim: Claim, counts: dict[int, int]) -> Claim:
    requests = list(claim.requests)
    for index, count in counts.items():
        requests[index] = with_count(requests[index], count)
    return msgspec.structs.replace(claim, requests=tuple(requests))


def _most(high: int, possible: Callable[[int], bool | None]) -> int:
    """Bisect, from above first: what is refused is often refused by little."""
    low, step = 0, 1
    while low < high:
        middle = max(low + 1, high - step + 1) if step < 4 else (low + high + 1) // 2
        if possible(middle):
            low = middle
        else:
            high = middle - 1
        step *= 2
    return low


def nearest(state: State, claim: Claim, core: Core, most: Sequence[int], possible: Test) -> tuple[Nearby, ...]:
    """Return claims near this one that would be granted, those that lose least of it first."""
    return tuple(_nearest(state, claim, core, most, possible))


def _nearest(state: State, claim: Claim, core: Core, most: Sequence[int], possible: Test) -> Iterator[Nearby]:
    names = request_names(claim.requests)
    found = False

    def near(text: str, **fields: object) -> Nearby | None:
        made = Nearby(text=text, **{"replicas": claim.replicas, **fields})  # type: ignore[arg-type]
        return made if possible(made.applied(claim)) else None

    if claim.replicas > 1:
        fewer = _most(
            most_replicas(state, claim, claim.replicas - 1),
            lambda n: possible(msgspec.structs.replace(claim, replicas=n, max_replicas=None)),
        )
        if fewer:
            found = True
            yield Nearby(text=typed(claim, {}, replicas=fewer), replicas=fewer)
    for index in core.requests:
        if most[index]:
            found = True
            counts = {names[index]: most[index]}
            yield Nearby(text=typed(claim, {index: most[index]}), counts=counts, replicas=claim.replicas)
    paired = _pairs(claim, possible)
    if paired:
        found = True
        counts = dict.fromkeys([names[i] for i in paired[1]], paired[0])
        yield Nearby(text=typed(claim, dict.fromkeys(paired[1], paired[0])), counts=counts, replicas=claim.replicas)
    for number in core.constraints:
        rule = claim.constraints[number]
        other = near(f"{typed(claim, {}, (number,))}, without {rule_words(rule)}", without=(number,))
        if other is not None:
            found = True
            yield other
    if core.gang:
        other = near(f"{typed(claim, {})}, not as {gang_words(claim)}", loose=True)
        if other is not None:
            found = True
            yield other
    if not found:
        least = _fewer(state, claim, possible)
        if least is not None:
            yield least


def _pairs(claim: Claim, possible: Test) -> tuple[int, list[int]] | None:
    """Fewer of everything that is paired."""
    for number, rule in enumerate(claim.constraints):
        concerned = [i for i in range(len(claim.requests)) if rule.pairwise and _about(claim, number, i)]
        counts = [claim.requests[i].count for i in concerned]
        if not concerned or counts[0] == "all":
            continue

        def fits(count: int, who: tuple[int, ...] = tuple(concerned)) -> bool | None:
            return possible(_counted(claim, dict.fromkeys(who, count)))

        fewer = _most(int(counts[0]) - 1, fits)
        if fewer:
            return fewer, concerned
    return None


def _fewer(state: State, claim: Claim, possible: Test) -> Nearby | None:
    """Nothing alone is too large: take of each in turn as many as are possible beside those before it."""
    names = request_names(claim.requests)
    counts: dict[str, int] = dict.fromkeys(names, 0)
    for index, request in enumerate(claim.requests):
        if request.count == "all":
            continue
        name = names[index]
        choices = (request, *request.or_else)
        high = min(request.count, max(sight_of(state, choice).free for choice in choices))

        def fits(count: int, name: str = name) -> bool | None:
            return possible(Nearby(text="", counts={**counts, name: count}).applied(claim))

        counts[name] = _most(high, fits)
    if not any(counts.values()):
        return None
    made = Nearby(text="", counts=counts)
    less = made.applied(claim)
    return msgspec.structs.replace(made, text=typed(less, {})) if possible(less) else None


def typed(claim: Claim, counts: dict[int, int], without: tuple[int, ...] = (), replicas: int | None = None) -> str:
    """Return a claim as one types it: kinds and counts, what all of them share, how many replicas."""
    words = [f"{request.kind.value}:{counts.get(i, request.count)}" for i, request in enumerate(claim.requests)]
    words += [
        f"--same {constraint.same}"
        for number, constraint in enumerate(claim.constraints)
        if constraint.same
        and not constraint.pairwise
        and number not in without
        and set(constraint.requests) in (set(), set(request_names(claim.requests)))
    ]
    many = claim.replicas if replicas is None else replicas
    if claim.replicas > 1:
        words[-1] += f", {counted(many, 'replica')}"
    return " ".join(words)
