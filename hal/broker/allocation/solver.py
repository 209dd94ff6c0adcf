"""Which devices, or a proof that there are none: exact, in polynomial time where the problem allows it.

The requests fall apart into parts that share neither devices nor rules. A part without rules is a matching; one with a
single rule is mostly a matching or a sum, too (:mod:`hal.broker.allocation.solver_rules`); everything else is searched
(:mod:`hal.broker.allocation.solver_search`). A refusal is cut down to what nobody can do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hal.broker.allocation.matching import Shortfall, lowest, match
from hal.broker.allocation.problem import (
    Assignment,
    Bond,
    Budget,
    Conflict,
    Order,
    OutOfBudget,
    Problem,
    Purse,
    Rule,
)
from hal.broker.allocation.solver_bundles import search
from hal.broker.allocation.solver_rules import families, one_rule, union_of

SMALL = 16
"""Where no request has more devices than this to choose from, the search has all of :data:`PATIENCE`."""

PATIENCE = 100_000
"""Steps of search for a problem that is small in this sense: at random, with 16 and 16 devices that all differ under
three rules of different sorts, at most 4,000 were needed."""


@dataclass(slots=True)
class Part:
    """Requests that share devices or rules, with the numbers that the problem gave to its rules."""

    requests: list[int]
    rules: list[int]
    fated: bool = False


@dataclass(slots=True)
class Found:
    """The answer as it is put together: devices by request, tuples by rule."""

    masks: list[int]
    tuples: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)


def solve(
    problem: Problem, pick: Order = lowest, budget: Budget | None = None, *, minimal: bool = True
) -> Assignment | Conflict:
    """Choose the devices, those that ``pick`` prefers as far as the rules allow; or prove that it cannot be done.

    With ``minimal`` a conflict names only what is needed for it: without any one of its requests or rules (or without
    shared fate, where it says so) the others could be met. Otherwise it is a proof, but may name more. ``needed`` and
    ``available`` are numbers where they are the proof: of devices without a rule; with one rule of ``SAME`` the most
    that one group has of them; of ``DISTINCT`` the groups; of ``PAIRS`` the tuples.

    The tuples of a rule of ``PAIRS`` use every device of its requests once, so their counts must be equal
    (:exc:`ValueError`). Raises :class:`OutOfBudget` where the problem is hard and large; no conflict then is known.
    """
    whole = [i for i, count in enumerate(problem.counts) if count]
    for rule in problem.rules:
        if rule.bond is Bond.PAIRS and len({problem.counts[i] for i in rule.requests}) > 1:
            raise ValueError("a rule of pairs over requests of different counts")
    if len(problem.rules) == 1 and not problem.fate and len(whole) == len(problem.masks):
        # By far the most common problem: one rule over everything.
        rule = problem.rules[0]
        if len(rule.requests) == len(whole):
            simple = one_rule(rule.bond, rule.groups, rule.requests, problem.masks, problem.counts, pick)
            if isinstance(simple, tuple):
                return _assignment(problem, Found(simple[0], {} if simple[1] is None else {0: simple[1]}))
            if simple is not None and not minimal:
                return _refusal(whole, 0, rule, problem.counts, simple)
    answer = _solve(problem, whole, list(range(len(problem.rules))), bool(problem.fate), pick, budget)
    if isinstance(answer, Conflict):
        return _smallest(problem, answer, budget.purse if budget else None) if minimal else answer
    return _assignment(problem, answer)


def feasible(problem: Problem, budget: Budget | None = None) -> bool:
    """Tell whether there is an assignment; raises :class:`OutOfBudget`."""
    return isinstance(solve(problem, budget=budget, minimal=False), Assignment)


def _assignment(problem: Problem, found: Found) -> Assignment:
    if not problem.rules:
        return Assignment(tuple(found.masks))
    groups: list[int] = []
    tuples: list[tuple[tuple[int, ...], ...]] = []
    for number, rule in enumerate(problem.rules):
        chosen = 0
        if rule.bond is Bond.SAME:
            taken = union_of([found.masks[i] for i in rule.requests])
            if taken:
                union = union_of([problem.masks[i] for i in rule.requests])
                holding = [group for group in rule.groups if taken & ~group == 0]
                chosen = holding[0] if len(holding) == 1 else min(holding, key=lambda g: (g & union).bit_count())
        elif rule.bond is Bond.PAIRS:
            tuples.append(tuple(found.tuples.get(number, ())))
        groups.append(chosen)
    return Assignment(tuple(found.masks), tuple(groups), tuple(tuples))


def _solve(
    problem: Problem, requests: list[int], rules: list[int], fated: bool, pick: Order, budget: Budget | None
) -> Found | Conflict:
    """Solve some of the requests under some of the rules."""
    found = Found([0] * len(problem.masks))
    if not rules and not fated:
        # One matching answers for all parts at once.
        answer = _plain(problem, requests, found, pick)
        return answer or found
    whole = not fated and any(len(problem.rules[number].requests) == len(requests) for number in rules)
    for part in [Part(requests, rules)] if whole else _parts(problem, requests, rules, fated):
        conflict = _solve_part(problem, part, found, pick, budget)
        if conflict is not None:
            return conflict
    return found


def _plain(problem: Problem, requests: Sequence[int], found: Found, pick: Order) -> Conflict | None:
    matched = match([problem.masks[i] for i in requests], [problem.counts[i] for i in requests], pick)
    if isinstance(matched, Shortfall):
        short = tuple([requests[i] for i in matched.requests])
        return Conflict(short, needed=matched.needed, available=matched.available)
    for i, mask in zip(requests, matched, strict=True):
        found.masks[i] = mask
    return None


def _solve_part(problem: Problem, part: Part, found: Found, pick: Order, budget: Budget | None) -> Conflict | None:
    requests = part.requests
    if not part.rules and not part.fated:
        return _plain(problem, requests, found, pick)
    masks = [problem.masks[i] for i in requests]
    counts = [problem.counts[i] for i in requests]
    place = {i: n for n, i in enumerate(requests)}
    local = {
        number: tuple([place[i] for i in problem.rules[number].requests if i in place and problem.counts[i]])
        for number in part.rules
    }
    if len(part.rules) == 1 and not part.fated:
        number = part.rules[0]
        rule = problem.rules[number]
        answer = one_rule(rule.bond, rule.groups, local[number], masks, counts, pick)
        if isinstance(answer, int):
            return _refusal(requests, number, rule, [counts[n] for n in local[number]], answer)
        if answer is not None:
            chosen, tuples = answer
            for i, mask in zip(requests, chosen, strict=True):
                found.masks[i] = mask
            if tuples is not None:
                found.tuples[number] = tuples
            return None
    shortage = _plain(problem, requests, found, pick)
    if shortage is not None:
        return shortage
    small = max([mask.bit_count() for mask in masks]) <= SMALL
    budget = budget or Budget()
    budget.begin(union_of(masks).bit_count(), PATIENCE if small else 0)
    bound = [(problem.rules[number].bond, problem.rules[number].groups, local[number]) for number in part.rules]
    fate = problem.fate if part.fated else ()
    searched = search(masks, counts, bound, fate, pick, budget)
    if searched is None:
        return Conflict(tuple(requests), tuple(part.rules), fate=part.fated)
    for i, mask in zip(requests, searched[0], strict=True):
        found.masks[i] = mask
    for at, rows in searched[1].items():
        found.tuples[part.rules[at]] = rows
    return None


def _refusal(requests: Sequence[int], number: int, rule: Rule, counts: Sequence[int], available: int) -> Conflict:
    """Return the proof that one rule leaves too little."""
    wanted = counts[0] if rule.bond is Bond.PAIRS else sum(counts)
    return Conflict(tuple(requests), (number,), *((wanted, available) if available < wanted else (0, 0)))


def _parts(problem: Problem, requests: list[int], rules: list[int], fated: bool) -> list[Part]:
    """Part the requests by what they share: devices, rules, devices of one fate."""
    parts: list[tuple[int, Part]] = []
    family = families(problem.fate, union_of([problem.masks[i] for i in requests])) if fated else {}
    rest = set(requests)
    bonds = [
        (number, [i for i in problem.rules[number].requests if i in rest and problem.counts[i]]) for number in rules
    ]
    for number, concerned in [*bonds, *((-1, [i]) for i in requests)]:
        if not concerned:
            continue
        joined = Part(list(concerned), [number] if number >= 0 else [])
        reach = union_of([problem.masks[i] for i in concerned])
        if family:
            reach |= union_of([others for bit, others in family.items() if bit & reach])
        others: list[tuple[int, Part]] = []
        for mask, part in parts:
            if mask & reach or any(i in part.requests for i in concerned):
                reach |= mask
                joined.requests += [i for i in part.requests if i not in joined.requests]
                joined.rules += part.rules
            else:
                others.append((mask, part))
        parts = [*others, (reach, joined)]
    for reach, part in parts:
        part.requests.sort()
        part.rules.sort()
        part.fated = any(bit & reach for bit in family)
    return [part for _, part in sorted(parts, key=lambda pair: pair[1].requests)]


def _smallest(problem: Problem, conflict: Conflict, purse: Purse | None) -> Conflict:
    """Leave out of a conflict, one by one, what it does without: fate, then rules, then requests.

    A test that runs out of its own budget leaves its member in: the conflict stays true, though it may not be minimal.
    """
    requests, rules, fated = list(conflict.requests), list(conflict.rules), conflict.fate
    known = conflict

    def fails(requests: list[int], rules: list[int], fated: bool) -> Conflict | None:
        try:
            answer = _solve(problem, requests, rules, fated, lowest, Budget(purse=purse))
        except OutOfBudget:
            return None
        return answer if isinstance(answer, Conflict) else None

    if fated and (shorter := fails(requests, rules, False)) is not None:
        known = shorter
        requests, rules, fated = list(shorter.requests), list(shorter.rules), False
    kept_rules: list[int] = []
    for rule in tuple(rules):
        if rule not in rules:
            continue
        looks = _rule_looks(problem, requests, rules)
        # What is asked like something that cannot be left out cannot be left out either.
        if any(looks[rule] == looks[other] for other in kept_rules):
            kept_rules.append(rule)
            continue
        shorter = fails(requests, [number for number in rules if number != rule], fated)
        if shorter is None:
            kept_rules.append(rule)
        else:
            known = shorter
            requests, rules, fated = list(shorter.requests), list(shorter.rules), shorter.fate
    kept: list[int] = []
    for request in tuple(requests):
        if request not in requests or len(requests) == 1:
            continue
        of = _rule_looks(problem, requests, rules)
        look = _look(problem, request, rules, of)
        if any(_look(problem, other, rules, of) == look for other in kept):
            kept.append(request)
            continue
        shorter = fails([i for i in requests if i != request], rules, fated)
        if shorter is None:
            kept.append(request)
        else:
            known = shorter
            requests, rules, fated = list(shorter.requests), list(shorter.rules), shorter.fate
    return Conflict(tuple(requests), tuple(rules), known.needed, known.available, fated)


def _rule_looks(problem: Problem, requests: list[int], rules: list[int]) -> dict[int, object]:
    """Return what rules have in common that can be exchanged, requests and all; its own number where there is none."""
    members = {number: [i for i in problem.rules[number].requests if i in requests] for number in rules}
    looks: dict[int, object] = {}
    for number, mine in members.items():
        if any(not set(mine).isdisjoint(theirs) for other, theirs in members.items() if other != number):
            looks[number] = number
        else:
            rule = problem.rules[number]
            asked = sorted([(problem.masks[i], problem.counts[i]) for i in mine])
            looks[number] = (rule.bond, rule.groups, tuple(asked))
    return looks


def _look(problem: Problem, request: int, rules: list[int], looks: dict[int, object]) -> object:
    bound = [looks[number] for number in rules if request in problem.rules[number].requests]
    return problem.masks[request], problem.counts[request], bound
