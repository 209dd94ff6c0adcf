"""What each thing that a claim can say does to the choice, on small data centers."""

from __future__ import annotations

import pytest

from hal.broker.allocation.choice import NoNode, Place, Refusal, given
from hal.broker.allocation.problem import Conflict
from hal.broker.allocation.scoring import POLICIES
from hal.broker.allocation.view import allocate, allocate_if, shape_of
from hal.model.claim import FRACTION, Claim, Constraint, Request, Share
from hal.model.health import Severity
from hal.model.kind import Kind
from tests.unit.broker.floor import Floor
from tests.unit.broker.world import claim, condition, device, request, server

TABLE = ("1g.10gb:1:0,1,2,3,4,5,6", "2g.20gb:2:0,2,4", "3g.40gb:4:0,4", "7g.80gb:8:0")


def mig(id, node="n0", **fields):
    return device(id, node=node, mig_mode="enabled", partition_placements=TABLE, **fields)


def one(**fields):
    return Claim(id="c", requests=(Request(kind=Kind.GPU, **fields),))


def sharing(milli, **fields):
    return one(share=Share.SHARED, capacity={FRACTION: milli}, **fields)


def ids(found):
    assert isinstance(found, Place), found
    return [d.id for d in given(found)]


def test_all_takes_every_device_of_a_node_that_has_each_of_them_free():
    floor = Floor([*server("a", 2), *server("b", 4)])
    floor.grant(claim("first", where='node == "b"'))
    assert ids(allocate(floor, one(count="all"))) == ["a/gpu0", "a/gpu1"]
    assert isinstance(allocate(floor, one(count="all", where='node == "b"')), Refusal)
    assert allocate(floor, one(count="all", where='node == "z"')).cause == Conflict((0,), needed=1, available=0)


def test_all_is_not_met_while_one_of_the_devices_is_unwell():
    floor = Floor([device("n0/a"), device("n0/b", conditions=(condition("n0/b"),))])
    assert isinstance(allocate(floor, one(count="all")), Refusal)
    assert len(ids(allocate(floor, one(count="all", tolerate=("Broken",))))) == 2


def test_who_tolerates_a_condition_gets_a_device_that_others_do_not():
    floor = Floor([device("n0/a", conditions=(condition("n0/a", Severity.DEGRADED),))])
    assert isinstance(allocate(floor, one()), Refusal)
    assert ids(allocate(floor, one(tolerate=("Broken",)))) == ["n0/a"]
    assert isinstance(allocate(floor, one(tolerate=("Other",))), Refusal)


def test_a_share_goes_to_the_fullest_device_that_has_room_for_it():
    floor = Floor([device("n0/a"), device("n0/b")])
    for number, (milli, expected) in enumerate([(600, "n0/a"), (300, "n0/a"), (200, "n0/b"), (100, "n0/a")]):
        (found,) = given(allocate(floor, sharing(milli)))
        assert (found.id, found.uses) == (expected, {FRACTION: milli})
        floor.take(f"c{number}", (found,))
    assert isinstance(allocate(floor, one(where='node == "n0"')), Refusal), "shared is not free for who wants it alone"
    floor.give("c2")
    assert ids(allocate(floor, one(where='node == "n0"'))) == ["n0/b"]


def test_two_requests_of_one_claim_share_no_device():
    wanted = Claim(id="c", requests=(sharing(100).requests[0], sharing(200).requests[0]))
    floor = Floor([device("n0/a")])
    assert isinstance(allocate(floor, wanted), Refusal)
    assert sorted(ids(allocate(Floor([device("n0/a"), device("n0/b")]), wanted))) == ["n0/a", "n0/b"]


def test_a_part_is_made_where_most_is_left_to_others():
    floor = Floor([mig("n0/a"), mig("n0/b"), device("n0/c")])
    parts = []
    for number, profile in enumerate(["3g.40gb", "1g.10gb", "1g.10gb", "2g.20gb"]):
        (found,) = given(allocate(floor, one(profile=profile)))
        assert found.slot == f"{found.id}#{found.partition}"
        parts.append((found.id, found.partition.partition("@")[0]))
        floor.take(f"c{number}", (found,))
    assert {where for where, _ in parts} == {"n0/a"}, "the second GPU stays whole"
    assert ids(allocate(floor, one(where='node == "n0"'))) in (["n0/b"], ["n0/c"])
    floor.take("w", given(allocate(floor, one(profile="7g.80gb"))))
    assert isinstance(allocate(floor, one(profile="3g.40gb")), Refusal)
    floor.give("w")
    for number in range(4):
        floor.give(f"c{number}")
    assert {node.free for node in floor.nodes} == {0b111}


def test_parts_that_exist_already_are_in_the_way_of_new_ones():
    child = device("n0/m", parent="n0/a", mig_profile="3g.40gb", mig_start=4)
    floor = Floor([mig("n0/a"), child])
    (found,) = given(allocate(floor, one(profile="3g.40gb")))
    assert found.partition == "3g.40gb@0"
    assert isinstance(allocate(floor, one(profile="7g.80gb")), Refusal)


def test_an_alternative_is_taken_when_the_first_choice_is_gone_and_says_its_cost():
    other = Request(kind=Kind.GPU, where="size == 2", cost=3.0)
    wanted = Claim(id="c", requests=(Request(kind=Kind.GPU, where="size == 1", or_else=(other,)),))
    floor = Floor([device("n0/a", size=1), device("n0/b", size=2)])
    first = floor.grant(wanted)
    assert [d.id for d in first] == ["n0/a"]
    found = allocate(floor, wanted)
    assert (ids(found), found.cost, found.requests[0].where) == (["n0/b"], 3.0, "size == 2")
    floor.take("more", given(found))
    refused = allocate(floor, wanted)
    assert isinstance(refused, Refusal)
    assert refused.tried == 2


def test_a_wish_is_given_up_at_its_weight_and_only_if_it_must_be():
    wish = Constraint(same="numa", weight=2.0)
    wanted = Claim(id="c", requests=(Request(kind=Kind.GPU, count=2),), constraints=(wish,))
    floor = Floor([device("n0/a", numa=0), device("n0/b", numa=1), device("n0/c", numa=1)])
    assert (ids(allocate(floor, wanted)), allocate(floor, wanted).cost) == (["n0/b", "n0/c"], 0.0)
    floor.grant(claim("x", where="id == 'n0/c'"))
    assert (ids(allocate(floor, wanted)), allocate(floor, wanted).cost) == (["n0/a", "n0/b"], 2.0)


def test_pairs_come_in_step():
    switches = ("0000:10:00.0", "0000:20:00.0")
    ports = [device(f"n0/{s}", Kind.SWITCH, allocatable=False) for s in switches]
    crossed = [
        device("n0/g0", switch=switches[0]), device("n0/g1", switch=switches[1]),
        device("n0/m0", Kind.RNIC, switch=switches[1]), device("n0/m1", Kind.RNIC, switch=switches[0]),
    ]  # fmt: skip
    wanted = claim(
        "c", requests=(request("gpu", 2), request("rnic", 2)),
        constraints=(Constraint(same="pci-switch", pairwise=True),),
    )  # fmt: skip
    assert ids(allocate(Floor([*ports, *crossed]), wanted)) == ["n0/g0", "n0/g1", "n0/m1", "n0/m0"]


def test_pairs_across_nodes_come_in_step_too():
    devices = [device(f"{n}/g", node=n, rail=rail) for n, rail in (("a", 1), ("b", 2))]
    devices += [device(f"{n}/m", Kind.RNIC, n, rail=rail) for n, rail in (("a", 2), ("b", 1))]
    wanted = claim(
        "c", requests=(request("gpu", 2), request("rnic", 2)), constraints=(Constraint(same="rail", pairwise=True),)
    )
    found = ids(allocate(Floor(devices), wanted))
    rail = {d.id: d.value("rail") for d in devices}
    assert [rail[x] for x in found[:2]] == [rail[x] for x in found[2:]]


@pytest.mark.parametrize(("numas", "feasible"), [((1, 2, 1, 3), True), ((1, 2, 1, 2), False)])
def test_distinct_numa_nodes(numas, feasible):
    floor = Floor([device(f"n0/d{i}", numa=numa) for i, numa in enumerate(numas)])
    wanted = Claim(id="c", requests=(Request(kind=Kind.GPU, count=3),), constraints=(Constraint(distinct="numa"),))
    found = allocate(floor, wanted)
    assert isinstance(found, Place) is feasible
    if feasible:
        assert len({numas[int(x[-1])] for x in ids(found)}) == 3


def test_a_link_domain_is_what_an_attribute_says_or_what_links_join():
    from hal.model.device import Link
    from tests.unit.broker.world import changed

    def linked(name, peer):
        return changed(device(f"n0/{name}"), links=(Link(type="nvlink", peer=f"n0/{peer}"),))

    floor = Floor([linked("a", "b"), device("n0/b"), linked("c", "d"), device("n0/d"), device("n0/e")])
    wanted = claim("c", count=2, constraints=(Constraint(same="link-domain"),))
    assert ids(allocate(floor, wanted)) in (["n0/a", "n0/b"], ["n0/c", "n0/d"])
    assert isinstance(allocate(floor, claim("c", count=3, constraints=(Constraint(same="link-domain"),))), Refusal)
    rack = Floor([device(f"{n}/g", node=n, link_domain="nvl72") for n in "abc"])
    assert len(ids(allocate(rack, claim("c", count=3, constraints=(Constraint(same="link-domain"),))))) == 3


def test_cordoned_devices_and_their_relatives_are_not_given():
    floor = Floor([device("n0/p"), device("n0/c", parent="n0/p"), device("n0/q")])
    floor.cordon("n0/p")
    assert ids(allocate(floor, one())) == ["n0/q"]
    floor.cordon("node:n0")
    assert isinstance(allocate(floor, one()), Refusal)


def test_what_is_kept_is_free_for_nobody_but_who_says_that_it_is_kept_for_them():
    floor = Floor([device("n0/a")])
    floor.keep("waiting", given(allocate(floor, one())))
    assert isinstance(allocate(floor, one()), Refusal)
    assert ids(allocate_if(floor, one(), unkept={"n0/a"})) == ["n0/a"]


def test_what_if_looks_at_other_times_and_places_and_changes_nothing():
    floor = Floor([*server("a", 2), *server("b", 2)])
    held = floor.grant(claim("x", count=2))
    both = claim("y", count=2, where="node == 'a'")
    assert isinstance(allocate(floor, both), Refusal)
    before = [(node.free, node.open, node.partial, node.held) for node in floor.nodes]
    assert ids(allocate_if(floor, both, freed=held)) == ["a/gpu0", "a/gpu1"]
    assert ids(allocate_if(floor, both, empty=True)) == ["a/gpu0", "a/gpu1"]
    assert isinstance(allocate_if(floor, both, freed=held, barred={"a/gpu0"}), Refusal)
    assert isinstance(allocate_if(floor, both, freed=held, nodes={"b"}), Refusal)
    assert ids(allocate_if(floor, claim("z", count=2), nodes={"b"})) == ["b/gpu0", "b/gpu1"]
    assert [(node.free, node.open, node.partial, node.held) for node in floor.nodes] == before
    assert isinstance(allocate(floor, both), Refusal)


def test_what_if_a_share_or_a_part_were_given_back():
    floor = Floor([mig("n0/a"), device("n0/b")])
    part = floor.grant(one(profile="7g.80gb"))
    share = floor.take("s", given(allocate(floor, sharing(800))))
    assert {d.id for d in (*part, *share)} == {"n0/a", "n0/b"}
    assert isinstance(allocate(floor, sharing(300)), Refusal)
    assert ids(allocate_if(floor, sharing(300), freed=share)) == ["n0/b"]
    assert ids(allocate_if(floor, one(), freed=part)) == ["n0/a"]
    assert isinstance(allocate(floor, one()), Refusal)


def test_a_claim_that_must_lie_on_one_node_is_told_so():
    floor = Floor([*server("a", 2), *server("b", 2)])
    assert len(ids(allocate(floor, claim("c", count=4)))) == 4
    refused = allocate(floor, claim("c", count=4, same="node"))
    assert refused.cause == NoNode(0, 2)


@pytest.mark.parametrize(("name", "node"), [("pack", "a"), ("best-fit", "b"), ("spread", "c"), ("first-fit", "a")])
def test_policies_choose_between_nodes(name, node):
    floor = Floor([*server("a", 4), *server("b", 4), *server("c", 4)])
    floor.policy = POLICIES[name]
    for where, count in (("a", 1), ("b", 2)):
        requests = (Request(kind=Kind.GPU, count=count, where=f"node == '{where}'"),)
        floor.grant(Claim(id=where, requests=requests))
    assert ids(allocate(floor, claim("c")))[0].startswith(node)


def test_whole_machines_stay_whole():
    floor = Floor([*server("a", 8), *server("b", 8)])
    floor.grant(claim("x", count=2))
    for number in range(6):
        floor.grant(claim(f"c{number}"))
    assert {node.free.bit_count() for node in floor.nodes} == {8, 16}


def test_claims_of_one_shape_share_a_view():
    floor = Floor(server("a", 4))
    floor.grant(claim("x"))
    floor.grant(claim("y", tenant="other", ttl_seconds=5.0))
    assert shape_of(claim("x")) == shape_of(claim("y", tenant="other"))
    assert sum(name == shape_of(claim("x")) for name in floor.views) == 1


def test_devices_are_taken_with_fences_and_replicas_as_they_were_asked_for():
    floor = Floor(server("a", 4))
    found = allocate(floor, claim("x", count=2))
    assert [d.fence for d in given(found, 7)] == [7, 7]
    assert [d.replica for d in given(found, 0, first=3)] == [3, 3]
    assert given(found) is given(allocate(floor, claim("x", count=2)))


def test_a_cordoned_device_that_is_not_given_away_itself_bars_its_parent_and_not_its_siblings():
    port = device("n0/port", Kind.RNIC, parent="n0/card", allocatable=False)
    floor = Floor([device("n0/card", Kind.DPU), port, device("n0/other", parent="n0/card")])
    floor.cordon("n0/port")
    assert isinstance(allocate(floor, Claim(id="c", requests=(Request(kind=Kind.DPU),))), Refusal)
    assert ids(allocate(floor, one())) == ["n0/other"]


def test_replicas_get_no_parts_of_devices_that_are_related():
    below = device("n0/b", parent="n0/a", mig_mode="enabled", partition_placements=TABLE)
    made = device("n0/c", parent="n0/b", mig_profile="1g.10gb", mig_start=6)
    floor = Floor([mig("n0/a"), below, made])
    wanted = Claim(id="c", requests=(Request(kind=Kind.GPU, profile="1g.10gb"),), replicas=2)
    assert isinstance(allocate(floor, wanted), Refusal)
