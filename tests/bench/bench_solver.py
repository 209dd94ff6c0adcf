"""The choice among devices: the known blow-ups of other allocators, and small problems as a node gives them.

The peer is what those allocators do: try devices in order and go back, without counting. It is stopped after a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from hal.broker.allocation.problem import Assignment, Bond, Problem, Rule
from hal.broker.allocation.solver import solve
from tests.bench.rows import Row, best

PATIENCE_SECONDS = 1.0
GPUS, NICS = 0xFF, 0xFF00
SWITCHES = (0x0303, 0x0C0C, 0x3030, 0xC0C0)
NUMA = (0x0F0F, 0xF0F0)


def _mig(gpus: int = 8, parts: int = 7) -> tuple[tuple[int, ...], int, int]:
    fate: list[int] = []
    wholes = pieces = 0
    for gpu in range(gpus):
        first = gpu * (parts + 1)
        family = (1 << parts + 1) - 1 << first
        wholes |= 1 << first
        pieces |= family & ~(1 << first)
        fate += [family, *(1 << first | 1 << first + part for part in range(1, parts + 1))]
    return tuple(fate), wholes, pieces


def _separate(groups: int) -> Problem:
    rules = tuple(Rule(Bond.SAME, SWITCHES, (2 * n, 2 * n + 1)) for n in range(groups))
    return Problem((GPUS, NICS) * groups, (1,) * 2 * groups, rules)


ONE_NUMA_NODE, PAIRED = Rule(Bond.SAME, NUMA, (0, 1)), Rule(Bond.PAIRS, SWITCHES, (0, 1))
FATE, WHOLES, PIECES = _mig()
CASES: tuple[tuple[str, Problem, bool, float], ...] = (
    ("16 of 15 devices", Problem(((1 << 15) - 1,), (16,)), False, 1000),
    ("22 of 21 devices", Problem(((1 << 21) - 1,), (22,)), False, 1000),
    ("10 single requests on 9 devices", Problem(((1 << 9) - 1,) * 10, (1,) * 10), False, 1000),
    ("11 single requests on 10 devices", Problem(((1 << 10) - 1,) * 11, (1,) * 11), False, 1000),
    (
        "9 in one group, groups of 8, 128 devices",
        Problem(((1 << 128) - 1,), (9,), (Rule(Bond.SAME, tuple(0xFF << 8 * n for n in range(16)), (0,)),)),
        False,
        1000,
    ),
    ("8 separate groups on a host of 8 GPUs", _separate(8), True, 1000),
    ("9 separate groups on a host of 8 GPUs", _separate(9), False, 1000),
    (
        "3 of distinct NUMA nodes of {1,2,1,3}",
        Problem((0b1111,), (3,), (Rule(Bond.DISTINCT, (0b0101, 0b0010, 0b1000), (0,)),)),
        True,
        1000,
    ),
    (
        "4 of distinct NUMA nodes of {1,2,1,3}",
        Problem((0b1111,), (4,), (Rule(Bond.DISTINCT, (0b0101, 0b0010, 0b1000), (0,)),)),
        False,
        1000,
    ),
    ("4 GPUs and 28 MIG parts of 8 GPUs with 7 each", Problem((WHOLES, PIECES), (4, 28), (), FATE), True, 5000),
    ("4 GPUs and 29 MIG parts of 8 GPUs with 7 each", Problem((WHOLES, PIECES), (4, 29), (), FATE), False, 5000),
    ("small: 1 GPU of 8", Problem((GPUS,), (1,)), True, 60),
    ("small: 4 + 4 on one NUMA node, of 8 + 8", Problem((GPUS, NICS), (4, 4), (ONE_NUMA_NODE,)), True, 60),
    ("small: 4 pairs on switches, of 8 + 8", Problem((GPUS, NICS), (4, 4), (PAIRED,)), True, 60),
    (
        "small: 4 pairs on one NUMA node, of 8 + 8",
        Problem((GPUS, NICS), (4, 4), (ONE_NUMA_NODE, PAIRED)),
        True,
        150,
    ),
)  # fmt: skip


def run() -> Iterator[Row]:
    for name, problem, granted, limit in CASES:
        answer = solve(problem)
        if isinstance(answer, Assignment) is not granted:
            raise AssertionError(f"{name}: {answer}")
        took = min(best(lambda: solve(problem), repeat=1, number=10) for _ in range(25)) * 1e6  # noqa: B023
        start = time.perf_counter()
        plain = _plainly(problem)
        peer = (time.perf_counter() - start) * 1e6
        if plain is not None and plain is not granted:
            raise AssertionError(f"{name}: the peer says {plain}")
        yield Row(
            name=f"solver, {name}",
            measured=f"{took:,.0f} us, {'granted' if granted else 'refused with a minimal proof'}",
            peer=f"backtracking {peer:,.0f} us"
            if plain is not None
            else f"backtracking > {PATIENCE_SECONDS * 1e6:,.0f} us",
            ratio=took / peer,
            goal=f"at most {limit:,.0f} us",
            met=took <= limit,
            includes="one problem in bits to its answer, the best of 25 rounds of 10; no nodes, no journal",
        )


def _plainly(problem: Problem) -> bool | None:
    """Try devices in order and go back when a rule is broken; None if the patience ends first."""
    wanted = [i for i, count in enumerate(problem.counts) for _ in range(count)]
    ends = time.perf_counter() + PATIENCE_SECONDS
    chosen: list[tuple[int, int]] = []

    def allowed() -> bool:
        for rule in problem.rules:
            rows = [[bit for other, bit in chosen if other == i] for i in rule.requests]
            mine = [bit for row in rows for bit in row]
            if rule.bond is Bond.SAME and mine and not any(all(bit & g for bit in mine) for g in rule.groups):
                return False
            if rule.bond is Bond.DISTINCT:
                if not all(any(bit & g for g in rule.groups) for bit in mine):
                    return False
                if any(sum(1 for bit in mine if bit & g) > 1 for g in rule.groups):
                    return False
            if rule.bond is Bond.PAIRS:
                for row in zip(*rows, strict=False):
                    if not any(all(bit & g for bit in row) for g in rule.groups):
                        return False
        return True

    def go(at: int, used: int) -> bool:
        if at == len(wanted):
            return True
        if time.perf_counter() > ends:
            raise TimeoutError
        free = problem.masks[wanted[at]] & ~used
        while free:
            bit = free & -free
            free ^= bit
            shared = problem.fate[bit.bit_length() - 1] if problem.fate else bit
            if shared & used:
                continue
            chosen.append((wanted[at], bit))
            if allowed() and go(at + 1, used | bit):
                return True
            chosen.pop()
        return False

    try:
        return go(0, 0)
    except TimeoutError:
        return None
