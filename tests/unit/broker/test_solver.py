"""What the solver answers where the answer is known, and which of several it chooses."""

from __future__ import annotations

import pytest

from hal.broker.allocation.problem import Assignment, Bond, Budget, Conflict, OutOfBudget, Problem, Rule
from hal.broker.allocation.solver import feasible, solve

GPUS, NICS = 0xFF, 0xFF00
SWITCHES = (0x0303, 0x0C0C, 0x3030, 0xC0C0)
"""Four switches of a server of eight GPUs (the low bits) and eight NICs: two of each."""
NUMA = (0x0F0F, 0xF0F0)


def problem(masks, counts, *rules, fate=()):
    return Problem(tuple(masks), tuple(counts), rules, tuple(fate))


def same(groups, *requests):
    return Rule(Bond.SAME, tuple(groups), requests)


def distinct(groups, *requests):
    return Rule(Bond.DISTINCT, tuple(groups), requests)


def pairs(groups, *requests):
    return Rule(Bond.PAIRS, tuple(groups), requests)


def highest(mask, count):
    taken = 0
    for bit in reversed(range(mask.bit_length())):
        if mask >> bit & 1 and taken.bit_count() < count:
            taken |= 1 << bit
    return taken


def mig(gpus=8, parts=7):
    """The fate of GPUs with their partitions, and the masks of both."""
    fate, wholes, pieces = [], 0, 0
    for gpu in range(gpus):
        first = gpu * (parts + 1)
        family = (1 << parts + 1) - 1 << first
        wholes |= 1 << first
        pieces |= family & ~(1 << first)
        fate += [family, *(1 << first | 1 << first + part for part in range(1, parts + 1))]
    return fate, wholes, pieces


# --- the known blow-ups, each with its proof


@pytest.mark.parametrize(("wanted", "there"), [(16, 15), (22, 21), (200, 199)])
def test_one_device_too_few_is_said_in_numbers(wanted, there):
    assert solve(problem([(1 << there) - 1], [wanted])) == Conflict((0,), (), wanted, there)


@pytest.mark.parametrize("wanted", [10, 11, 40])
def test_one_single_request_too_many_is_said_in_numbers(wanted):
    answer = solve(problem([(1 << wanted - 1) - 1] * wanted, [1] * wanted))
    assert answer == Conflict(tuple(range(wanted)), (), wanted, wanted - 1)


def test_nine_devices_in_groups_of_eight_cannot_be():
    groups = [0xFF << 8 * n for n in range(16)]
    assert solve(problem([(1 << 128) - 1], [9], same(groups, 0))) == Conflict((0,), (0,), 9, 8)


def test_eight_groups_of_a_gpu_and_a_nic_fit_a_host_of_eight_and_nine_do_not():
    def asked(many):
        return problem([GPUS, NICS] * many, [1] * 2 * many, *[same(SWITCHES, 2 * n, 2 * n + 1) for n in range(many)])

    answer = solve(asked(8))
    assert isinstance(answer, Assignment)
    assert all((answer.masks[2 * n] | answer.masks[2 * n + 1]) & ~answer.groups[n] == 0 for n in range(8))
    assert sum(answer.masks) == GPUS | NICS
    assert solve(asked(9)) == Conflict(tuple(range(0, 18, 2)), (), 9, 8)


def test_eight_groups_of_which_one_nic_lies_elsewhere_are_refused_by_the_rules_together():
    nics = NICS & ~0x100 | 1 << 20
    rules = [same(SWITCHES, 2 * n, 2 * n + 1) for n in range(8)]
    answer = solve(problem([GPUS, nics] * 8, [1] * 16, *rules))
    assert isinstance(answer, Conflict)
    assert answer.rules == tuple(range(8))


def test_three_devices_of_distinct_numa_nodes_are_found_where_first_come_is_wrong():
    nodes = (0b0101, 0b0010, 0b1000)  # the devices lie on the NUMA nodes 1, 2, 1, 3
    assert solve(problem([0b1111], [3], distinct(nodes, 0))) == Assignment((0b1011,), (0,))
    apart = solve(problem([0b1111] * 3, [1] * 3, distinct(nodes, 0, 1, 2)))
    assert sorted(apart.masks) == [0b0001, 0b0010, 0b1000]
    assert solve(problem([0b1111], [4], distinct(nodes, 0))) == Conflict((0,), (0,), 4, 3)


@pytest.mark.parametrize("parts", [28, 29])
def test_whole_gpus_and_their_partitions_are_told_apart_without_trying_each(parts):
    fate, wholes, pieces = mig()
    budget = Budget(60)
    answer = solve(problem([wholes, pieces], [4, parts], fate=fate), budget=budget, minimal=False)
    assert isinstance(answer, Assignment if parts == 28 else Conflict)
    if parts == 29:
        assert solve(problem([wholes, pieces], [4, parts], fate=fate)) == Conflict((0, 1), fate=True)


def test_trees_that_all_differ_are_added_up():
    fate, wholes, pieces = [], 0, 0
    for gpu in range(16):
        first, parts = len(fate), gpu % 8 + 1
        wholes |= 1 << first
        pieces |= (1 << parts) - 1 << first + 1
        fate += [(2 << parts) - 1 << first, *(1 << first | 1 << first + n for n in range(1, parts + 1))]
    assert feasible(problem([wholes, pieces], [8, 52], fate=fate))
    assert not feasible(problem([wholes, pieces], [8, 53], fate=fate))


# --- the choice


def test_the_order_of_the_caller_decides_where_the_rules_leave_a_choice():
    assert solve(problem([GPUS], [2])).masks == (0b11,)
    assert solve(problem([GPUS], [2]), highest).masks == (0b11000000,)
    assert solve(problem([GPUS, NICS], [1, 1], same(SWITCHES, 0, 1)), highest).groups == (0xC0C0,)
    assert solve(problem([GPUS, NICS], [2, 2], pairs(SWITCHES, 0, 1)), highest).masks == (0xC0, 0xC000)
    assert solve(problem([GPUS], [2], distinct(SWITCHES, 0)), highest).masks == (0b10100000,)


def test_of_the_places_that_have_enough_the_fullest_is_taken():
    free = GPUS & ~0b10000  # the second NUMA node has three left, the first four
    assert solve(problem([free], [3], same(NUMA, 0))).groups == (0xF0F0,)
    assert solve(problem([free], [4], same(NUMA, 0))).groups == (0x0F0F,)


def test_the_nearest_place_that_has_enough_is_taken():
    groups = (*SWITCHES, *NUMA, GPUS | NICS)
    for count, group in ((2, 0x0303), (3, 0x0F0F), (5, GPUS | NICS)):
        assert solve(problem([GPUS, NICS], [count, 1], same(groups, 0, 1))).groups == (group,)


def test_pairs_use_up_groups_that_fit_exactly():
    gpus = GPUS & ~0b1  # one switch has one GPU left, the others two
    assert solve(problem([gpus, NICS], [1, 1], pairs(SWITCHES, 0, 1))).masks[0] == 0b10
    assert solve(problem([gpus, NICS], [2, 2], pairs(SWITCHES, 0, 1))).masks[0] == 0b1100
    assert solve(problem([gpus, NICS], [3, 3], pairs(SWITCHES, 0, 1))).masks[0] == 0b1110
    assert solve(problem([gpus, NICS], [4, 4], pairs(SWITCHES, 0, 1))).masks[0] == 0b111100


def test_pairs_are_as_near_as_can_be():
    nics = 0b0111 << 8  # one switch has two NICs, its neighbour one
    answer = solve(problem([0b1111, nics], [3, 3], pairs((*SWITCHES, *NUMA), 0, 1)))
    assert sum(any(sum(row) & ~switch == 0 for switch in SWITCHES) for row in answer.pairs[0]) == 3
    answer = solve(problem([GPUS, 0b0111 << 8], [3, 3], pairs((*NUMA, *SWITCHES), 0, 1)))
    assert all(any(sum(row) & ~switch == 0 for switch in SWITCHES) for row in answer.pairs[0])
    # One switch has two GPUs and a NIC, its neighbour a GPU and two NICs: the third pair is across.
    answer = solve(problem([0b0111, 0b1101 << 8], [3, 3], pairs((*NUMA, *SWITCHES), 0, 1)))
    assert sum(any(sum(row) & ~switch == 0 for switch in SWITCHES) for row in answer.pairs[0]) == 2


def test_the_same_problem_has_the_same_answer():
    fate, wholes, pieces = mig(3)
    asked = problem([wholes, pieces, wholes | pieces], [1, 5, 2], fate=fate)
    assert solve(asked) == solve(asked)


# --- proofs


def test_a_refusal_names_only_what_is_in_the_way():
    masks = [GPUS, NICS, 1 << 20, GPUS]
    answer = solve(problem(masks, [2, 9, 1, 1], same(SWITCHES, 0, 1), same(NUMA, 3), distinct(NUMA, 0)))
    assert answer == Conflict((1,), (), 9, 8)
    answer = solve(problem(masks, [2, 3, 1, 1], same(SWITCHES, 0), distinct(NUMA, 0)))
    assert answer == Conflict((0,), (0, 1))
    answer = solve(problem(masks, [2, 3, 1, 1], same(SWITCHES, 0, 1), same(NUMA, 3)))
    assert answer == Conflict((1,), (0,), 3, 2)


def test_pairs_that_fall_short_are_counted():
    nics = NICS & ~0x0300
    assert solve(problem([GPUS, nics], [6, 6], pairs(SWITCHES, 0, 1))).masks == (0xFC, nics)
    assert solve(problem([0x3F, nics], [6, 6], pairs(SWITCHES, 0, 1))) == Conflict((0, 1), (0,), 6, 4)


def test_a_refusal_may_be_had_without_being_the_smallest():
    answer = solve(problem([GPUS, NICS], [1, 3], same(SWITCHES, 0, 1), same(NUMA, 0)), minimal=False)
    assert isinstance(answer, Conflict)
    assert set(answer.requests) == {0, 1}


# --- what is asked wrongly, or is too much


def test_nothing_asked_is_given():
    assert solve(problem([], [])) == Assignment(())
    assert solve(problem([GPUS], [0], same((), 0), pairs((), 0))) == Assignment((0,), (0, 0), ((),))


def test_pairs_of_different_counts_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="different counts"):
        solve(problem([GPUS, NICS], [2, 3], pairs(SWITCHES, 0, 1)))


def test_a_large_hard_problem_ends_without_an_answer_and_never_with_a_wrong_no():
    groups = [0b1001 << n | 1 << (n * 7) % 40 for n in range(40)]
    mask = (1 << 40) - 1
    rules = (pairs(groups, 0, 1), pairs(groups[::-1], 1, 2))
    assert isinstance(solve(problem([mask] * 3, [2] * 3, *rules)), Assignment)
    with pytest.raises(OutOfBudget):
        solve(problem([mask] * 3, [9] * 3, *rules), budget=Budget(3))
