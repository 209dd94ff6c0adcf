from __future__ import annotations

import pytest

from hal.broker import command as c
from hal.broker.allocation.explain import explain
from hal.errors import ClaimError, LeaseEnded, LeaseNotFound, SelectorError, StaleFence
from hal.model.claim import Constraint, Locality
from hal.model.health import Presence, Severity, Status
from hal.model.kind import Kind
from hal.model.lease import LeaseState
from tests.unit.broker.world import (
    changed,
    claim,
    condition,
    device,
    give_back,
    grant,
    ids,
    request,
    run,
    server,
    state_of,
)


def refused(state, wanted, now=1000.0):
    answer = run(state, c.ClaimDevices(claim=wanted), now)
    assert isinstance(answer, c.Refused), answer
    return answer.reason


def test_a_claim_is_granted_once_however_often_it_is_asked():
    state = state_of(server("n0"))
    first = grant(state, claim("a", count=2))
    assert grant(state, claim("a", count=2)) == first
    assert len(state.holders) == 2


def test_an_id_used_for_something_else_is_an_error():
    state = state_of(server("n0"))
    grant(state, claim("a"))
    with pytest.raises(ClaimError, match="different claim"):
        run(state, c.ClaimDevices(claim=claim("a", count=2)))


def test_an_id_whose_lease_is_over_is_not_granted_again():
    state = state_of(server("n0"))
    give_back(state, grant(state, claim("a")))
    assert "is over" in refused(state, claim("a"))
    assert not state.holders


def test_fences_only_grow_and_start_above_those_of_a_lost_journal():
    state = state_of(server("n0"), now=1000.0)
    fences = []
    for number in range(5):
        lease = grant(state, claim(f"c{number}"))
        fences.append(lease.fence)
        give_back(state, lease)
    assert fences == sorted(set(fences))
    assert state_of(server("n0"), now=1001.0).fence > fences[-1]


def test_an_expired_lease_is_suspect_and_keeps_its_devices():
    state = state_of([device("g0")])
    lease = grant(state, claim("a", ttl_seconds=10), now=1000)
    answer = run(state, c.Expire(), now=1010)
    assert [suspect.id for suspect in answer.leases] == ["a"]
    assert state.leases["a"].state is LeaseState.SUSPECT
    assert "held" in refused(state, claim("b"), now=1e9)
    with pytest.raises(LeaseEnded):
        run(state, c.Renew(lease="a"), now=1011)
    run(state, c.ProveReleased(lease="a", fence=lease.fence, freed=("g0",)), now=1012)
    assert ids(grant(state, claim("b"), now=1013)) == ("g0",)


def test_a_renewed_lease_lives_on():
    state = state_of([device("g0")])
    grant(state, claim("a", ttl_seconds=10), now=1000)
    run(state, c.Renew(lease="a"), now=1009)
    assert not run(state, c.Expire(), now=1015).leases
    assert run(state, c.Expire(), now=1020).leases


def test_a_lease_cannot_be_renewed_after_its_time_even_before_anybody_noticed():
    state = state_of([device("g0")])
    grant(state, claim("a", ttl_seconds=10), now=1000)
    with pytest.raises(LeaseEnded):
        run(state, c.Renew(lease="a"), now=1010)


def test_a_lease_that_nobody_ended_cannot_be_proven_away():
    state = state_of([device("g0")])
    lease = grant(state, claim("a"))
    with pytest.raises(ClaimError, match="nobody has ended it"):
        run(state, c.ProveReleased(lease="a", fence=lease.fence, freed=("g0",)))
    run(state, c.ProveReleased(lease="a", fence=lease.fence, freed=("g0",), operator=True, proof="order of root"))
    assert state.ended["a"].why_ended == "order of root"


def test_a_proof_about_an_older_holder_proves_nothing():
    state = state_of([device("g0")])
    lease = grant(state, claim("a"))
    run(state, c.Release(lease="a"))
    with pytest.raises(StaleFence):
        run(state, c.ProveReleased(lease="a", fence=lease.fence - 1, freed=("g0",)))


def test_a_proof_must_speak_of_every_device():
    state = state_of([device("g0"), device("g1")])
    lease = grant(state, claim("a", count=2))
    run(state, c.Release(lease="a"))
    for freed in (("g0",), ("g0", "g1", "g2"), ("g0", "g0")):
        with pytest.raises(ClaimError):
            run(state, c.ProveReleased(lease="a", fence=lease.fence, freed=freed))


def test_a_device_without_proof_stays_fenced_until_there_is_one():
    state = state_of([device("g0"), device("g1")])
    lease = grant(state, claim("a", count=2))
    run(state, c.Release(lease="a"))
    run(state, c.ProveReleased(lease="a", fence=lease.fence, freed=("g0",), fenced={"g1": "it hangs"}))
    assert ids(grant(state, claim("b"))) == ("g0",)
    assert "fenced" in refused(state, claim("c"))
    with pytest.raises(StaleFence):
        run(state, c.ProveFreed(device="g1", fence=lease.fence + 1))
    run(state, c.ProveFreed(device="g1", fence=lease.fence))
    assert ids(grant(state, claim("c"))) == ("g1",)


def test_a_returned_claim_may_be_granted_again_under_its_id():
    state = state_of([device("g0"), device("g1")])
    lease = grant(state, claim("a"))
    run(state, c.Release(lease="a"))
    run(state, c.ProveReleased(lease="a", fence=lease.fence, fenced={"g0": "?"}, returned=True))
    again = grant(state, claim("a"))
    assert ids(again) == ("g1",)
    assert again.fence > lease.fence


def test_a_new_boot_id_is_proof_for_all_but_what_has_a_boot_of_its_own():
    state = state_of([device("g0"), device("d0", Kind.DPU)])
    grant(state, claim("a"))
    grant(state, claim("b", Kind.DPU))
    run(state, c.Begin(boot_id="boot-2"))
    assert not state.leases
    assert ids(grant(state, claim("c"))) == ("g0",)
    assert "own cores" in refused_devices(state, claim("d", Kind.DPU))["d0"]


def test_another_tenants_lease_is_not_found():
    state = state_of([device("g0")])
    grant(state, claim("a", tenant="alice"))
    for command in (c.Release(lease="a", tenant="bob"), c.Renew(lease="a", tenant="bob"), c.Release(lease="zzz")):
        with pytest.raises(LeaseNotFound):
            run(state, command)


@pytest.mark.parametrize(
    ("sick", "words"),
    [
        ({"conditions": (condition("g0"),)}, "it broke"),
        ({"conditions": (condition("g0", Severity.INFO, Status.UNKNOWN),)}, "it broke"),
        ({"presence": Presence.GHOST}, "does not answer"),
        ({"presence": Presence.MISSING}, "missing"),
        ({"allocatable": False}, "not allocatable"),
        ({"parent": "p0"}, "not in the inventory"),
    ],
)
def test_a_device_that_is_not_well_is_not_handed_out(sick, words):
    state = state_of([changed(device("g0"), **sick)])
    assert words in refused(state, claim("a"))


def test_a_warning_does_not_keep_a_device_back():
    state = state_of([device("g0", conditions=(condition("g0", Severity.WARN),))])
    grant(state, claim("a"))


def test_a_device_whose_condition_expired_is_handed_out_again():
    state = state_of([device("g0", conditions=(condition("g0", expires_at=1100.0),))])
    refused(state, claim("a"))
    run(state, c.Expire(), now=1100.0)
    grant(state, claim("a"), now=1101.0)


def test_what_the_agent_saw_outlives_an_observation():
    seen = condition("g0", source="hal-agent", expires_at=1100.0)
    state = state_of([device("g0", conditions=(seen,))])
    run(state, c.Observe(devices=(device("g0"),), complete=True), now=1050.0)
    refused(state, claim("a"), now=1050.0)
    run(state, c.Observe(devices=(device("g0"),), complete=True), now=1101.0)
    grant(state, claim("a"), now=1101.0)


def test_a_sick_parent_keeps_its_children_back():
    bad = device("d0", Kind.DPU, allocatable=False, conditions=(condition("d0"),))
    state = state_of([bad, device("n0", Kind.RNIC, parent="d0")])
    assert "parent d0 is unfit" in refused(state, claim("a", Kind.RNIC))


def test_parent_and_child_share_their_fate():
    state = state_of(
        [device("d0", Kind.DPU), device("n0", Kind.RNIC, parent="d0"), device("n1", Kind.RNIC, parent="d0")]
    )
    card = grant(state, claim("a", Kind.DPU))
    assert "shares its fate with d0" in refused_devices(state, claim("b", Kind.RNIC))["n0"]
    give_back(state, card)
    nic = grant(state, claim("b", Kind.RNIC))
    refused(state, claim("c", Kind.DPU))
    grant(state, claim("d", Kind.RNIC))
    give_back(state, nic)
    refused(state, claim("c", Kind.DPU))


def refused_devices(state, wanted):
    return {reason.device: reason.reason for reason in explain(state, wanted).devices}


def test_one_claim_never_gets_a_card_and_its_own_part():
    state = state_of([device("d0", Kind.DPU), device("n0", Kind.RNIC, parent="d0")])
    wanted = claim("a", requests=(request("dpu"), request("rnic")))
    assert "share their fate" in refused(state, wanted)


def test_a_place_with_enough_devices_of_the_wrong_sorts_is_not_said_to_have_too_few():
    state = state_of([device("d0", Kind.DPU), device("n0", Kind.RNIC, parent="d0"), device("d1", Kind.DPU, "n1")])
    wanted = claim("a", requests=(request("dpu"), request("rnic")), same="node")
    assert "share their fate" in refused(state, wanted)


def test_a_held_parent_that_stops_being_allocatable_still_holds_its_children():
    gpu = device("g0")
    state = state_of([gpu])
    grant(state, claim("a"))
    part = device("m0", parent="g0")
    run(state, c.Observe(devices=(changed(gpu, allocatable=False), part), complete=True))
    refused(state, claim("b"))


def test_a_device_that_vanishes_while_held_is_missing_and_not_forgotten():
    state = state_of([device("g0")])
    lease = grant(state, claim("a"))
    run(state, c.Observe(devices=(), complete=True))
    assert state.devices["g0"].presence is Presence.MISSING
    give_back(state, lease)
    run(state, c.Observe(devices=(), complete=True))
    assert "g0" not in state.devices


def test_a_driver_that_does_not_answer_says_nothing_about_its_devices():
    state = state_of([device("g0"), device("x0", driver="other")])
    run(state, c.Observe(devices=(), complete=True, silent=frozenset({"fake"})))
    assert set(state.devices) == {"g0"}


def test_an_observation_that_says_nothing_new_writes_nothing():
    seen = condition("g0", last_seen_at=1.0)
    state = state_of([device("g0", conditions=(seen,)), device("g1")])
    before = state.revision
    later = condition("g0", last_seen_at=2.0)
    run(state, c.Observe(devices=(device("g0", conditions=(later,)), device("g1")), complete=True))
    assert state.revision == before


def test_one_gpu_of_a_numa_node_cannot_stand_in_for_two():
    state = state_of([device("g0", numa=0), device("g1", numa=1), device("g2", numa=None)])
    assert "no single NUMA node" in refused(state, claim("a", count=2, same="numa"))
    grant(state, claim("b", count=2, same="node"))


def test_same_switch_needs_a_shared_switch_port():
    devices = server("n0", pairs=2)
    wanted = claim("a", requests=(request("gpu"), request("rnic")), same="pci-switch")
    gpu, nic = ids(grant(state_of(devices), wanted))
    assert gpu[-1] == nic[-1]
    without = [d for d in devices if d.kind is not Kind.SWITCH]
    assert "cannot be shown" in refused(state_of(without), wanted)


def test_a_rack_holds_what_a_node_cannot():
    state = state_of([*server("a", 2, "r0"), *server("b", 2, "r1"), *server("c", 2, "r1")])
    assert {d.node for d in grant(state, claim("x", count=4, same="rack")).devices} == {"b", "c"}
    give_back(state, state.leases["x"])
    assert "no single rack" in refused(state, claim("y", count=5, same="rack"))
    assert "no single node" in refused(state_of(server("a", 2) + server("b", 2)), claim("z", count=3, same="node"))


def test_without_a_constraint_devices_may_come_from_several_nodes_but_one_is_preferred():
    state = state_of([*server("a", 2), *server("b", 4)])
    assert {d.node for d in grant(state, claim("x", count=4)).devices} == {"b"}
    state = state_of([*server("a", 2), *server("b", 4)])
    assert len(grant(state, claim("y", count=6)).devices) == 6


def test_claims_are_packed_into_the_fullest_place_that_fits():
    state = state_of([*server("a"), *server("b")])
    first = grant(state, claim("x"))
    second = grant(state, claim("y"))
    assert first.devices[0].node == second.devices[0].node
    pair = grant(state, claim("z", count=4, same="numa"))
    assert pair.devices[0].node == first.devices[0].node


def test_a_constraint_may_speak_of_some_requests_only():
    state = state_of(server("n0", 4))
    requests = (request("gpu", 2, name="g"), request("rnic", 1, name="n"), request("rnic", 3, name="m"))
    pairs = (Constraint(same=Locality.NUMA, requests=("g", "n")),)
    lease = grant(state, claim("a", requests=requests, constraints=pairs))
    near = [d for d in lease.devices if d.request in ("g", "n")]
    assert len({int(d.name[-1]) // 2 for d in near}) == 1


def test_explain_names_what_refused_each_device():
    state = state_of(
        [
            device("g0", memory_bytes=10),
            device("g1", memory_bytes=99),
            device("g2", memory_bytes=99, conditions=(condition("g2"),)),
            device("g3"),
            device("g4", memory_bytes=99),
        ]
    )
    grant(state, claim("held", where='name == "g1"'))
    told = explain(state, claim("x", count=3, where="memory_bytes > 50"))
    assert not told.feasible
    assert told.requests[0].blocks
    assert told.requests[0].free == told.requests[0].feasible_count == 1
    reasons = {reason.device: reason.reason for reason in told.devices}
    assert "is false" in reasons["g0"]
    assert "held by lease held" in reasons["g1"]
    assert "it broke" in reasons["g2"]
    assert "no memory_bytes" in reasons["g3"]
    assert "g4" not in reasons
    assert not state.leases.keys() - {"held"}, "explaining grants nothing"


def test_explain_gives_the_nearest_feasible_count():
    state = state_of(server("n0", 8))
    told = explain(state, claim("x", count=6, same="numa"))
    assert told.requests[0].feasible_count == 4
    assert "offers 4" in told.reason


def test_a_mistaken_selector_is_an_error_and_not_a_refusal():
    with pytest.raises(SelectorError):
        run(state_of([device("g0")]), c.ClaimDevices(claim=claim("a", where="((")))


@pytest.mark.parametrize(
    "wrong",
    [
        claim("a", count=0),
        claim("a b"),
        claim(""),
        claim("a", tenant=""),
        claim("a", ttl_seconds=0.0),
        claim("a", ttl_seconds=float("nan")),
        claim("a", requests=(request("gpu", name="g"), request("rnic", name="g"))),
        claim("a", constraints=(Constraint(same=Locality.NODE, requests=("nobody",)),)),
    ],
)
def test_a_claim_that_makes_no_sense_is_an_error(wrong):
    with pytest.raises(ClaimError):
        run(state_of([device("g0")]), c.ClaimDevices(claim=wrong))


def test_sixteen_of_fifteen_is_refused_with_the_numbers():
    state = state_of([d for d in server("a", 8) + server("b", 7) if d.kind is not Kind.RNIC])
    assert "needs 16, but 15 devices are free" in refused(state, claim("x", count=16))
