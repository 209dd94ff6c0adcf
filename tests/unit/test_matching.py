"""Matching with counts against trying everything."""

from __future__ import annotations

from itertools import combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from hal.broker.allocation.matching import Shortfall, lowest, match
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
            yield [sum(group) for group in choice]


@settings(max_examples=examples(200), deadline=None)
@given(st.data())
def test_a_matching_is_found_or_numbers_prove_that_there_is_none(data):
    number = data.draw(st.integers(1, 3))
    masks = data.draw(st.lists(MASKS, min_size=number, max_size=number))
    counts = data.draw(st.lists(st.integers(1, 3), min_size=number, max_size=number))
    found = match(masks, counts)
    if isinstance(found, Shortfall):
        together = 0
        for i in found.requests:
            together |= masks[i]
        assert together.bit_count() == found.available < found.needed == sum(counts[i] for i in found.requests)
    else:
        assert found in list(every_choice(masks, counts))


def test_overlapping_selectors_are_matched_not_taken_greedily():
    assert match([0b011, 0b001], [1, 1]) == [0b010, 0b001]


def test_many_devices_are_picked_at_once():
    for many in (1, 33, 64, 500, 1000):
        mask = int("1101" * 200, 2)
        taken = lowest(mask, many)
        assert taken.bit_count() == min(many, 600)
        assert taken & ~mask == 0
        assert not mask & ~taken & ((1 << taken.bit_length()) - 1)
    assert lowest(0b1011, 0) == lowest(0, 3) == lowest(0b1011, -1) == 0
