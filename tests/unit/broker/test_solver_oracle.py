"""The solver against trying everything, on random problems of every sort that it knows.

``python -m tests.unit.broker.test_solver_oracle 1000000`` draws that many and reports.
"""

from __future__ import annotations

import random
import sys
from collections import Counter

import pytest

from hal.broker.allocation.problem import Assignment, Bond, Problem, Rule
from hal.broker.allocation.solver import feasible, solve
from tests.budget import PROFILE
from tests.unit.broker.solver_oracle import Oracle

PROBLEMS = 1_000_000 if PROFILE == "nightly" else 20_000
BLOCKS = 10


def some(rng, devices, chance=0.6):
    return sum(1 << p for p in range(devices) if rng.random() < chance)


def partition(rng, devices, parts):
    groups = [0] * parts
    for p in range(devices):
        place = rng.randint(0, parts) if rng.random() < 0.15 else rng.randint(0, parts - 1)
        if place < parts:
            groups[place] |= 1 << p
    return groups


def random_groups(rng, devices, bond):
    groups = partition(rng, devices, rng.randint(1, 4))
    if bond is not Bond.DISTINCT:
        draw = rng.random()
        if draw < 0.35:
            groups += [groups[0] | groups[-1], *([sum(groups)] if draw < 0.1 else [])]
        elif draw < 0.6:
            groups = [some(rng, devices, 0.5) for _ in range(rng.randint(1, 4))]
    rng.shuffle(groups)
    return tuple(groups)


def random_fate(rng, devices):
    parent = [rng.randrange(p) if p and rng.random() < 0.4 else None for p in range(devices)]
    fate = [1 << p for p in range(devices)]
    for p in range(devices):
        above = parent[p]
        while above is not None:
            fate[p] |= 1 << above
            fate[above] |= 1 << p
            above = parent[above]
    return tuple(fate)


def random_twins(rng, most):
    """The same two sorts of devices asked for twice or three times, under rules of the same sort or of others."""
    devices = rng.randint(4, most)
    sorts = partition(rng, devices, 2)
    twins = rng.choice([2, 2, 3])
    bonds = [rng.choice(list(Bond)) for _ in range(2)]
    families = [tuple(partition(rng, devices, rng.randint(2, 3))) for _ in range(2)]
    rules, counts = [], []
    for n in range(twins):
        count = rng.choice([1, 1, 2])
        counts += [count, count]
        rules.append(Rule(rng.choice(bonds), rng.choice(families), (2 * n, 2 * n + 1)[:: rng.choice([1, -1])]))
    fate = random_fate(rng, devices) if rng.random() < 0.2 else ()
    return Problem(tuple(sorts * twins), tuple(counts), tuple(rules), fate)


def random_problem(rng, most=7):
    if rng.random() < 0.1:
        return random_twins(rng, most)
    devices = rng.randint(2, most)
    requests = rng.choice([1, 2, 2, 2, 3, 3, 4])
    by_kind = partition(rng, devices, rng.randint(1, 3))
    pool = [*by_kind, *(some(rng, devices) for _ in range(2))]
    if rng.random() < 0.4:
        pool = by_kind
    masks = tuple(rng.choice(pool) for _ in range(requests))
    counts = [rng.choice([1, 1, 1, 2, 2, 3, 0 if rng.random() < 0.1 else 1]) for _ in range(requests)]
    rules = []
    family = {bond: random_groups(rng, devices, bond) for bond in Bond}
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3])):
        bond = rng.choice(list(Bond))
        concerned = rng.sample(range(requests), rng.randint(1, requests))
        if bond is Bond.PAIRS:
            for i in concerned:
                counts[i] = counts[concerned[0]]
        groups = family[bond] if rng.random() < 0.5 else random_groups(rng, devices, bond)
        rules.append(Rule(bond, groups, tuple(concerned)))
    rules = [r for r in rules if r.bond is not Bond.PAIRS or len({counts[i] for i in r.requests}) == 1]
    fate = random_fate(rng, devices) if rng.random() < 0.3 else ()
    return Problem(masks, tuple(counts), tuple(rules), fate)


def check(seed, most=7):
    """Draw a problem, solve it, and check the answer; return what sort it was."""
    problem = random_problem(random.Random(seed), most)
    oracle = Oracle(problem)
    answer = solve(problem)
    if isinstance(answer, Assignment):
        oracle.check_assignment(answer)
    else:
        oracle.check_conflict(answer)
    return (
        isinstance(answer, Assignment),
        tuple(sorted({rule.bond.value for rule in problem.rules})),
        bool(problem.fate),
    )


@pytest.mark.parametrize("block", range(BLOCKS))
def test_the_solver_agrees_with_trying_everything(block):
    sorts = Counter()
    size = PROBLEMS // BLOCKS
    for seed in range(block * size, (block + 1) * size):
        try:
            sorts[check(seed)] += 1
        except Exception as error:
            error.add_note(f"check({seed})")
            raise
    yes = sum(number for (granted, _, _), number in sorts.items() if granted)
    assert size / 5 < yes < size * 4 / 5, "the problems must be of both sorts"
    assert len(sorts) == 32, "each set of rules, with and without fate, granted and refused"


def test_larger_problems_agree_with_trying_everything():
    for seed in range(PROBLEMS // 100):
        problem = random_problem(random.Random(f"large {seed}"), 10)
        answer = solve(problem)
        oracle = Oracle(problem)
        assert isinstance(answer, Assignment) == oracle.feasible() == feasible(problem), seed
        if isinstance(answer, Assignment):
            oracle.check_assignment(answer)


def main(many):
    sorts = Counter()
    for seed in range(many):
        try:
            sorts[check(seed)] += 1
        except Exception as error:
            error.add_note(f"check({seed})")
            raise
    for sort, number in sorted(sorts.items()):
        sys.stdout.write(f"{number:8} {sort}\n")
    sys.stdout.write(f"{many:8} problems, no difference\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
