"""Why not: the conflict, what is near it, and the condition that refused each device."""

from __future__ import annotations

import pytest

from hal.broker import command as c
from hal.broker.allocation.explain import explain
from hal.errors import ClaimError
from hal.model.claim import FRACTION, Constraint, Gang, Gather, Locality, Request, Share
from hal.model.kind import Kind
from tests.unit.broker.world import changed, claim, condition, device, grant, request, run, server, state_of

RACK = [d for n in range(4) for d in server(f"n{n}", 4, rack=f"r{n // 2}")]


def reasons(state, wanted, **limits):
    return {row.device: row.reason for row in explain(state, wanted, **limits).devices}


def test_a_claim_that_would_be_granted_is_not_explained_away():
    told = explain(state_of(RACK), claim("c", "gpu", 4, same="node"))
    assert told.feasible
    assert told.conflict is None
    assert told.nearest == told.devices == ()
    assert told.requests[0].feasible_count == 4


def test_a_claim_that_makes_no_sense_is_an_error_and_no_explanation():
    with pytest.raises(ClaimError):
        explain(state_of(RACK), claim("c", "gpu", 0))


def test_the_conflict_is_the_smallest_part_that_cannot_be_met():
    wanted = claim(
        "c",
        requests=(request("gpu", 2, name="g"), request("rnic", 5, name="n"), request("gpu", 1, name="h")),
        constraints=(
            Constraint(same="rack", requests=("g", "h")),
            Constraint(same="node", requests=("n",)),
            Constraint(distinct="node", requests=("g", "h"), weight=1.0),
        ),
    )
    told = explain(state_of(RACK), wanted)
    assert told.conflict.requests == ("n",)
    assert told.conflict.constraints == (1,)
    assert not told.conflict.gang
    assert not told.conflict.replicas
    assert told.conflict.minimal
    assert told.conflict.text == "these cannot be met together: n (rnic) (5) and same node for n"
    assert [report.blocks for report in told.requests] == [False, True, False]


def test_what_is_near_is_fewer_devices_or_one_constraint_less():
    state = state_of(RACK)
    wanted = claim("c", "gpu", 6, constraints=(Constraint(same="node"), Constraint(same="rack")))
    told = explain(state, wanted)
    assert told.requests[0].feasible_count == 4
    assert told.nearest == ("gpu:4 --same node --same rack", "gpu:6 --same rack, without same node")
    for near in told.nearby:
        assert explain(state, near.applied(wanted)).feasible


def test_of_pairs_there_are_fewer_pairs_and_never_an_odd_number():
    state = state_of(server("n0", 4))
    grant(state, claim("a", where='name == "mlx5_1"', kind="rnic"))
    requests = (request("gpu", 4, name="g"), request("rnic", 4, name="n"))
    told = explain(state, claim("c", requests=requests, constraints=(Constraint(same="pci-switch", pairwise=True),)))
    assert told.nearest[0] == "gpu:3 rnic:3"
    assert told.nearby[0].counts == {"g": 3, "n": 3}


def test_of_a_gang_there_are_fewer_replicas_or_another_way_to_lie():
    state = state_of(RACK)
    wanted = claim("c", "gpu", 4, replicas=3, gang=Gang(how=Gather.ONE, over=Locality.RACK))
    told = explain(state, wanted)
    assert told.conflict.gang
    assert "3 replicas in one rack" in told.conflict.text
    assert told.nearby[0].replicas == 2
    assert told.nearest == (
        "gpu:4, 2 replicas",
        "gpu:2, 3 replicas",
        "gpu:4, 3 replicas, not as 3 replicas in one rack",
    )
    many = explain(state, claim("c", "gpu", 4, replicas=5))
    assert many.conflict.replicas
    assert not many.conflict.gang
    assert many.nearby[0].replicas == 4
    assert "5 replicas" in many.reason


def test_each_alternative_is_reported_and_refused_by_itself():
    state = state_of(RACK)
    other = (Request(kind=Kind.RNIC, count=30, cost=1.0), Request(kind=Kind.DPU, cost=2.0))
    told = explain(state, claim("c", requests=(Request(kind=Kind.GPU, count=20, or_else=other),)))
    rows = [(row.alternative, row.count, row.there, row.free) for row in told.requests]
    assert rows == [(0, 20, 16, 16), (1, 30, 16, 16), (2, 1, 0, 0)]
    assert "2 other ways" in told.reason


def test_a_cordon_says_who_and_why():
    state = state_of(RACK)
    run(state, c.SetCordon(target="n0/gpu0", why="firmware", by="ada"))
    run(state, c.SetCordon(target="node:n1", why="", by="bob"))
    told = reasons(state, claim("c", "gpu", 16))
    assert told["n0/gpu0"] == "cordoned by ada: firmware"
    assert told["n1/gpu0"] == "its machine n1 is cordoned by bob: no reason given"
    assert len(told) == 5


def test_a_cordon_on_a_card_that_is_not_given_itself_keeps_back_what_is_on_it():
    card = device("n0/dpu0", Kind.DPU, allocatable=False)
    state = state_of([card, device("n0/nic0", Kind.RNIC, parent="n0/dpu0")])
    run(state, c.SetCordon(target="n0/dpu0", why="firmware", by="ada"))
    told = reasons(state, claim("c", "rnic"))
    assert told == {"n0/nic0": "it shares its fate with dpu0, which is cordoned by ada: firmware"}
    run(state, c.LiftCordon(target="n0/dpu0"))
    assert explain(state, claim("c", "rnic")).feasible


def test_what_is_kept_for_a_claim_is_said_to_be():
    state = state_of(server("n0", 2))
    later = claim("later", "gpu", 2, start_at=2000.0, duration_seconds=10.0)
    assert isinstance(run(state, c.ClaimDevices(claim=later)), c.Queued)
    assert set(reasons(state, claim("c", "gpu", 2)).values()) == {"kept for claim later"}


def test_a_share_says_how_much_of_it_is_used():
    state = state_of([device("g0", memory_bytes=80), device("g1")])
    half = Request(kind=Kind.GPU, count=2, share=Share.SHARED, capacity={FRACTION: 600})
    grant(state, claim("a", requests=(half,)))
    told = reasons(state, claim("c", requests=(half,)))
    assert told["g0"] == "600 of its 1000 thousandths are used, 600 are asked"
    assert "shared by lease a of default" in reasons(state, claim("d", "gpu", 2))["g0"]


def test_capacity_and_selectors_say_what_is_lacking():
    big = changed(device("g0"), capacity={"memory_bytes": 40})
    state = state_of([big, device("g1"), device("g2", size=3)])
    asked = Request(kind=Kind.GPU, count=3, capacity={"memory_bytes": 50})
    told = reasons(state, claim("c", requests=(asked,)))
    assert told["g0"] == "it has 40 memory_bytes, 50 are asked"
    assert told["g1"] == "it has no memory_bytes"
    large = Request(kind=Kind.GPU, capacity={"memory_bytes": 80 << 30})
    assert reasons(state, claim("c", requests=(large,)))["g0"] == "it has 40 memory_bytes, 80 GiB are asked"
    assert "(1, exclusive, 80 GiB of memory_bytes)" in explain(state, claim("c", requests=(large,))).conflict.text
    cel = Request(kind=Kind.GPU, count=3, cel=('device.driver == "other"',))
    assert reasons(state, claim("c", requests=(cel,)))["g2"] == 'device.driver == "other" is false'
    assert "the device has no size" in reasons(state, claim("c", "gpu", 3, where="size > 2"))["g0"]


def test_a_relative_that_is_held_is_named():
    dpu = device("n0/dpu0", Kind.DPU)
    state = state_of([dpu, device("n0/nic0", Kind.RNIC, parent="n0/dpu0")])
    grant(state, claim("a", "dpu"))
    told = reasons(state, claim("c", "rnic"))
    assert told == {"n0/nic0": "it shares its fate with dpu0, which is held by lease a of default (bound)"}


def test_who_tolerates_a_condition_is_not_refused_by_it():
    state = state_of([device("g0", conditions=(condition("g0"),))])
    assert "it broke" in reasons(state, claim("c"))["g0"]
    brave = Request(kind=Kind.GPU, tolerate=("Broken",))
    assert explain(state, claim("c", requests=(brave,))).feasible


def test_devices_are_listed_up_to_a_limit_shared_by_the_requests():
    state = state_of(RACK)
    grant(state, claim("a", requests=(request("gpu", 16), request("rnic", 16))))
    told = explain(state, claim("c", requests=(request("gpu", 1), request("rnic", 1))), most_devices=10)
    assert [row.request for row in told.devices] == ["gpu"] * 5 + ["rnic"] * 5
    assert told.unlisted == 22


def test_what_was_worked_out_is_forgotten_when_something_changes():
    state = state_of(server("n0", 2))
    lease = grant(state, claim("a", "gpu", 2))
    wanted = claim("c", "gpu", 2)
    assert explain(state, wanted) == explain(state, wanted)
    assert explain(state, wanted).nearest == ()
    run(state, c.Release(lease=lease.id))
    run(state, c.ProveReleased(lease=lease.id, fence=lease.fence, fenced={"n0/gpu0": "it clings"}))
    told = explain(state, wanted)
    assert told.nearest == ("gpu:1",)
    assert "fenced since lease a ended" in told.devices[0].reason
    run(state, c.ProveFreed(device="n0/gpu0", fence=lease.fence))
    assert explain(state, wanted).feasible


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (claim("c", "gpu", 17), "gpu needs 17, but 16 devices are free for it"),
        (claim("c", "dpu", 1), "there is none in the inventory"),
        (claim("c", "gpu", 3, same="numa"), "no single NUMA node has what gpu needs: 3 devices together"),
        (claim("c", "gpu", 5, same="node"), "5 devices together, the fullest offers 4"),
        (claim("c", "gpu", 5, constraints=(Constraint(distinct="node"),)), "cannot all lie on different nodes: 5"),
        (claim("c", "gpu", 9, same="rack"), "no single rack has what gpu needs: 9 devices together"),
    ],
)
def test_a_refusal_says_its_proof_in_words(wanted, words):
    answer = run(state_of(RACK), c.ClaimDevices(claim=wanted))
    assert isinstance(answer, c.Refused)
    assert words in answer.reason
