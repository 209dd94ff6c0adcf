from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.broker.allocation.matching import Assignment, Budget, NoPlace, OutOfBudget, Shortfall, match, solve
from tests.budget import examples

DEVICES = 6
MASKS = st.integers(0, (1 << DEVICES) - 1)


def bits(mask):
    return [1 << i for i in range(DEVICES) if mask >> i & 1]


def every_choice(masks, counts):
    options = [list(combinations(bits(mask), count)) for mask, count in zip(masks, counts, strict=True)]
    for choice in product(*options):
        flat = [bit for group in choice for bit in group]
        if len(set(flat)) == len(flat):
            yield tuple(sum(group) for group in choice)


def kept(choice, constraints, fate):
    for places, requests in constraints:
        union = 0
        for i in requests:
            union |= choice[i]
        if not any(union & ~place == 0 for place in places):
            return False
    used = [bit for mask in choice for bit in bits(mask)]
    return not fate or not any(fate[bit.bit_length() - 1] & ~bit & sum(used) for bit in used)


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_solve_agrees_with_trying_everything(data):
    number = data.draw(st.integers(1, 3))
    masks = data.draw(st.lists(MASKS, min_size=number, max_size=number))
    counts = data.draw(st.lists(st.integers(1, 2), min_size=number, max_size=number))
    constraint = st.tuples(st.lists(MASKS, max_size=4), st.lists(st.integers(0, number - 1), min_size=1, unique=True))
    constraints = data.draw(st.lists(constraint, max_size=2))
    parents = data.draw(st.one_of(st.none(), st.lists(st.integers(-1, DEVICES - 1), min_size=6, max_size=6)))
    fate = family(parents) if parents else ()
    expected = [choice for choice in every_choice(masks, counts) if kept(choice, constraints, fate)]
    found = solve(masks, counts, constraints, fate=fate)
    if isinstance(found, Assignment):
        assert found.masks in expected
    else:
        assert not expected
    if isinstance(found, Shortfall) and not fate:
        together = 0
        for i in found.requests:
            together |= masks[i]
        assert together.bit_count() == found.available < found.needed == sum(counts[i] for i in found.requests)


def family(parents):
    """Ancestors and descendants of each device; a parent has a lower number, so that there is no circle."""
    fate = [1 << i for i in range(DEVICES)]
    for i in range(DEVICES):
        above = parents[i]
        while 0 <= above < i:
            fate[i] |= 1 << above
            fate[above] |= 1 << i
            i_next = above
            above = parents[above] if parents[above] < i_next else -1
    return fate


def test_overlapping_selectors_are_matched_not_taken_greedily():
    assert match([0b011, 0b001], [1, 1]) == [0b010, 0b001]


@pytest.mark.parametrize(("asked", "there"), [(16, 15), (22, 21)])
def test_one_device_too_few_is_proven_by_counting(asked, there):
    assert match([(1 << there) - 1], [asked]) == Shortfall((0,), asked, there)


def test_eleven_single_requests_on_ten_devices_are_refused_at_once():
    budget = Budget(1)
    found = solve([(1 << 10) - 1] * 11, [1] * 11, budget=budget)
    assert found == Shortfall(tuple(range(11)), 11, 10)


def test_nine_in_a_group_where_groups_hold_eight_have_no_place():
    groups = [0xFF << (8 * i) for i in range(16)]
    assert solve([(1 << 128) - 1], [9], [(groups, [0])]) == NoPlace(0, 16)


def test_the_fullest_fitting_place_is_used():
    found = solve([0b1111_0111], [3], [([0b0000_1111, 0b1111_0000], [0])])
    assert found == Assignment((0b0111,), (0b1111,))


def test_a_search_without_budget_says_that_it_does_not_know():
    with pytest.raises(OutOfBudget):
        solve([0b1], [1], [([0b1], [0])], budget=Budget(0))
