"""Where the replicas of a gang lie."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given as tried_with
from hypothesis import settings
from hypothesis import strategies as st

from hal.broker.allocation.choice import GangShort, Place, Refusal, given
from hal.broker.allocation.gang import spread_over
from hal.broker.allocation.view import allocate, allocate_if
from hal.model.claim import Claim, Constraint, Gang, Gather, Locality, Request
from hal.model.kind import Kind
from tests.budget import examples
from tests.unit.broker.floor import Floor
from tests.unit.broker.world import claim, device, server


def gang(replicas, count=1, how=Gather.FEWEST, over=Locality.RACK, most=None, **fields):
    requests = (Request(kind=Kind.GPU, count=count),)
    return Claim(id="g", requests=requests, replicas=replicas, gang=Gang(how=how, over=over, most=most), **fields)


def racks(**nodes):
    """r0=2: two nodes of four GPUs in rack r0."""
    return Floor([d for rack, n in nodes.items() for i in range(n) for d in server(f"{rack}n{i}", 4, rack)])


def where(found, attribute="rack"):
    assert isinstance(found, Place), found
    return [getattr(choice.node, attribute) for choice in found.choices]


def test_a_gang_takes_the_fewest_racks_and_the_one_that_fits_best_for_the_rest():
    assert set(where(allocate(racks(r0=1, r1=3, r2=2), gang(2, 4)))) == {"r2"}
    found = where(allocate(racks(r0=1, r1=3, r2=2), gang(4, 4)))
    assert sorted(found) == ["r0", "r1", "r1", "r1"]


def test_replicas_are_numbered_and_each_lies_on_one_node():
    devices = given(allocate(racks(r0=3), gang(3, 4)))
    assert [d.replica for d in devices] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(len({d.node for d in devices if d.replica == number}) == 1 for number in range(3))


def test_one_place_must_hold_all():
    assert set(where(allocate(racks(r0=1, r1=2), gang(2, 4, Gather.ONE)))) == {"r1"}
    refused = allocate(racks(r0=1, r1=2), gang(3, 4, Gather.ONE))
    assert refused.cause == GangShort(3, 2, 3, 2, Gather.ONE, Locality.RACK)


def test_spread_puts_one_in_each_failure_domain_or_as_many_as_it_says():
    floor = racks(r0=2, r1=2, r2=1)
    assert sorted(where(allocate(floor, gang(3, 1, Gather.SPREAD)))) == ["r0", "r1", "r2"]
    assert isinstance(allocate(floor, gang(4, 1, Gather.SPREAD)), Refusal)
    assert sorted(where(allocate(floor, gang(4, 4, Gather.SPREAD, most=2)))) in (
        ["r0", "r0", "r1", "r2"], ["r0", "r1", "r1", "r2"],
    )  # fmt: skip


def test_at_most_so_many_in_a_place_also_when_they_are_gathered():
    assert sorted(where(allocate(racks(r0=4, r1=4), gang(4, 4, most=2)))) == ["r0", "r0", "r1", "r1"]


def test_a_machine_whose_rack_nobody_knows_is_in_no_rack():
    floor = Floor([*server("a", 4, None), *server("b", 4, "r0")])
    assert where(allocate(floor, gang(2, 2))) == ["r0", "r0"]
    assert isinstance(allocate(floor, gang(2, 4)), Refusal)
    loose = Claim(id="g", requests=(Request(kind=Kind.GPU, count=4),), replicas=2)
    assert sorted(where(allocate(floor, loose), "name")) == ["a", "b"]


def test_a_gang_over_link_domains():
    floor = Floor([device(f"{n}/g{i}", node=n, link_domain=n[0]) for n in ("x1", "x2", "y1") for i in range(2)])
    found = where(allocate(floor, gang(2, 2, Gather.ONE, Locality.LINK_DOMAIN)), "name")
    assert sorted(found) == ["x1", "x2"]


def test_an_elastic_gang_takes_what_there_is():
    floor = racks(r0=2)
    assert allocate(floor, gang(1, 4, max_replicas=5)).replicas == 2
    assert isinstance(allocate(floor, gang(3, 4, max_replicas=5)), Refusal)
    assert allocate(floor, gang(1, 4, max_replicas=5), replicas=1).replicas == 1


def test_replicas_that_stand_in_each_others_way_are_solved_together():
    """One after the other, the first would take the only device that the second could use."""
    devices = [device("n0/a", size=1), device("n0/b", size=2), device("n0/c", size=1), device("n0/d", size=2)]
    requests = (Request(kind=Kind.GPU, name="any"), Request(kind=Kind.GPU, where="size == 2", name="big"))
    wanted = Claim(id="g", requests=requests, replicas=2)
    assert len(given(allocate(Floor(devices), wanted))) == 4


def test_members_may_take_different_alternatives_at_the_least_cost():
    other = Request(kind=Kind.GPU, where="size == 2", cost=1.0)
    wanted = Claim(id="g", requests=(Request(kind=Kind.GPU, where="size == 1", or_else=(other,)),), replicas=3)
    floor = Floor([device("n0/a", size=1), device("n0/b", size=2), device("n1/c", node="n1", size=1),
                   device("n1/d", node="n1", size=2)])  # fmt: skip
    found = allocate(floor, wanted)
    assert (found.cost, len(given(found))) == (1.0, 3)
    assert sorted(each[0].where for each in found.mixed) == ["size == 1", "size == 1", "size == 2"]


def test_a_constraint_holds_within_each_replica():
    wanted = gang(4, 2, over=Locality.NODE)
    wanted = Claim(id="g", requests=wanted.requests, replicas=4, constraints=(Constraint(same="numa"),))
    devices = given(allocate(Floor([*server("a", 4), *server("b", 4)]), wanted))
    half = {d.id: int(d.name[-1]) // 2 for d in devices}
    assert all(len({half[d.id] for d in devices if d.replica == number}) == 1 for number in range(4))


def test_what_if_for_a_gang():
    floor = racks(r0=2, r1=1)
    held = floor.grant(claim("x", count=4, where="rack == 'r0'"))
    wanted = gang(2, 4, Gather.ONE)
    assert isinstance(allocate(floor, wanted), Refusal)
    assert where(allocate_if(floor, wanted, freed=held)) == ["r0", "r0"]
    assert where(allocate_if(floor, wanted, empty=True)) == ["r0", "r0"]
    assert isinstance(allocate_if(floor, wanted, freed=held, nodes={"r0n0", "r1n0"}), Refusal)
    assert isinstance(allocate(floor, wanted), Refusal)


def test_what_changed_since_is_counted():
    floor = racks(r0=2, r1=2)
    assert set(where(allocate(floor, gang(2, 4)))) == {"r0"}
    floor.grant(claim("x", where="rack == 'r0'"))
    assert set(where(allocate(floor, gang(2, 4)))) == {"r1"}
    floor.give("x")
    assert set(where(allocate(floor, gang(2, 4)))) == {"r0"}


@settings(max_examples=examples(200), deadline=None)
@tried_with(
    st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 12), st.sampled_from(Gather),
    st.none() | st.integers(1, 4),
)  # fmt: skip
def test_places_are_the_fewest_there_can_be(holds, wanted, how, most):
    totals = {(f"r{n}",): held for n, held in enumerate(holds)}
    found = spread_over(Gang(how=how, most=most), totals, wanted)
    limit = most if most is not None else (1 if how is Gather.SPREAD else wanted)
    capped = [min(held, limit) for held in holds]
    enough = [n for n in range(1, len(holds) + 1) if any(sum(c) >= wanted for c in combinations(capped, n))]
    if how is Gather.ONE:
        assert (found is None) == (1 not in enough)
    else:
        assert (found is None) == (not enough)
    if found is not None:
        assert sum(found.values()) == wanted
        assert all(0 < count <= min(totals[place], limit) for place, count in found.items())
        if how is not Gather.SPREAD:
            assert len(found) == enough[0]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_gang_of_claims_with_all(replicas):
    wanted = gang(replicas, "all", over=Locality.NODE)
    floor = racks(r0=2)
    floor.grant(claim("x", where="node == 'r0n0'"))
    found = allocate(floor, wanted)
    assert isinstance(found, Place) is (replicas == 1)
