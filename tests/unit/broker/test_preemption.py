from __future__ import annotations

import pytest

from hal.broker import command as c
from hal.errors import ClaimError, StaleFence
from hal.model.claim import Preempt
from hal.model.lease import LeaseState
from hal.model.tenant import Tenant
from tests.unit.broker.world import (
    claim,
    device,
    give_back,
    grant,
    ids,
    leave,
    prepared,
    pump,
    queued,
    refused,
    run,
    state_of,
)


def gpus(count: int, node: str = "n0"):
    return [device(f"{node}/g{i}", node=node) for i in range(count)]


def urgent(id: str, count: int = 1, priority: int = 10, **fields):
    return claim(id, count=count, priority=priority, preempt=Preempt.LOWER, **fields)


def shrunk(state, lease_id: str, *replicas: int) -> c.ProveShrunk:
    lease = state.leases[lease_id]
    fence = max(lease.fence_of(given) for given in lease.devices if given.replica in replicas)
    return c.ProveShrunk(lease=lease_id, replicas=replicas, fence=fence)


def told(state) -> set[str]:
    return {lease.id for lease in state.leases.values() if lease.state is LeaseState.DRAINING}


def test_a_holder_of_lower_priority_is_told_to_leave_within_its_own_grace():
    state = state_of(gpus(1))
    grant(state, claim("low", grace_seconds=10.0, ttl_seconds=1e6), 1000)
    queued(state, urgent("high"), 1005)
    assert pump(state, 1005) == []
    lease = state.leases["low"]
    assert (lease.state, lease.leave_by) == (LeaseState.DRAINING, 1015)
    assert "high" in lease.notice
    run(state, c.Expire(), 1014)
    assert state.leases["low"].state is LeaseState.DRAINING
    run(state, c.Expire(), 1015)
    assert state.leases["low"].state is LeaseState.RELEASING
    assert pump(state, 1016) == []  # nothing is given on before it is proven to be let go
    run(state, c.ProveReleased(lease="low", fence=lease.fence), 1017)
    assert pump(state, 1017) == ["high"]


def test_a_holder_that_leaves_at_once_is_not_waited_for():
    state = state_of(gpus(1))
    grant(state, claim("low"))
    queued(state, urgent("high"))
    pump(state)
    assert leave(state, "low") == ["high"]


@pytest.mark.parametrize("priority", [10, 11])
def test_who_is_not_lower_stays(priority):
    state = state_of(gpus(1))
    grant(state, claim("holder", priority=priority))
    queued(state, urgent("high", wait=True))
    pump(state)
    assert told(state) == set()


def test_a_claim_that_does_not_preempt_pushes_nobody_out():
    state = state_of(gpus(1))
    grant(state, claim("low"))
    queued(state, claim("high", priority=10, wait=True))
    pump(state)
    assert told(state) == set()


def test_only_those_in_the_way_go_and_of_them_the_least():
    state = state_of(gpus(4))
    for name, priority in (("a", 3), ("b", 1), ("c", 2), ("d", 5)):
        grant(state, claim(name, priority=priority))
    queued(state, urgent("high", 2))
    pump(state)
    assert told(state) == {"b", "c"}


def test_of_equals_the_one_that_loses_least_work_goes():
    state = state_of(gpus(2))
    grant(state, claim("old", ttl_seconds=1e6), 1000)
    grant(state, claim("young", ttl_seconds=1e6), 1900)
    queued(state, urgent("high"), 2000)
    pump(state, 2000)
    assert told(state) == {"young"}


def test_one_machine_is_cleared_not_two_halves():
    state = state_of([*gpus(2), *gpus(2, "n1")])
    for number in range(4):
        grant(state, claim(f"one{number}", priority=number // 2))
    queued(state, urgent("high", 2, same="node"))
    pump(state)
    leaving = [state.leases[name].devices[0].node for name in told(state)]
    assert len(leaving) == 2
    assert len(set(leaving)) == 1


def test_devices_that_were_cleared_go_to_nobody_else():
    state = state_of(gpus(1))
    grant(state, claim("low"))
    queued(state, urgent("high"), 1000)
    pump(state, 1000)
    give_back(state, state.leases["low"], 1001)
    assert "kept" in refused(state, claim("other"), 1001)
    assert pump(state, 1001) == ["high"]


def test_spare_replicas_of_an_elastic_lease_go_before_anybody_is_evicted_and_come_back():
    state = state_of([x for n in range(4) for x in gpus(1, f"n{n}")])
    elastic = grant(state, claim("elastic", replicas=1, max_replicas=3), 1000)
    assert elastic.replicas == 3
    prepared(state, "elastic", 1000)
    grant(state, claim("low"), 1000)
    queued(state, claim("next", wait=True), 1001)
    pump(state, 1001)
    lease = state.leases["elastic"]
    assert lease.leaving == (2,)
    assert told(state) == set()
    run(state, shrunk(state, "elastic", 2), 1002)
    assert pump(state, 1002) == ["next"]
    assert state.leases["elastic"].replicas == 2
    leave(state, "next", 1003)
    assert state.leases["elastic"].replicas == 3
    fences = {given.replica: state.leases["elastic"].fence_of(given) for given in state.leases["elastic"].devices}
    assert fences[2] > fences[0]


def test_a_proof_about_replicas_that_left_before_proves_nothing_about_those_that_came_since():
    state = state_of([x for n in range(2) for x in gpus(1, f"n{n}")])
    grant(state, claim("elastic", replicas=1, max_replicas=2))
    prepared(state, "elastic")
    run(state, c.Resize(lease="elastic", replicas=1))
    proof = shrunk(state, "elastic", 1)
    run(state, proof)
    run(state, c.Resize(lease="elastic", replicas=2))
    prepared(state, "elastic")
    run(state, c.Resize(lease="elastic", replicas=1))
    with pytest.raises(StaleFence):
        run(state, proof)
    assert state.leases["elastic"].replicas == 2


def test_an_elastic_lease_keeps_what_it_was_promised_from_equals():
    state = state_of([x for n in range(2) for x in gpus(1, f"n{n}")])
    grant(state, claim("elastic", replicas=2, max_replicas=2))
    queued(state, claim("next", wait=True))
    pump(state)
    assert state.leases["elastic"].leaving == ()


def test_an_elastic_lease_is_resized_by_its_holder():
    state = state_of([x for n in range(3) for x in gpus(1, f"n{n}")])
    grant(state, claim("elastic", replicas=1, max_replicas=3))
    prepared(state, "elastic")
    run(state, c.Resize(lease="elastic", replicas=1))
    assert state.leases["elastic"].leaving == (1, 2)
    run(state, shrunk(state, "elastic", 1, 2))
    assert pump(state) == []
    assert state.leases["elastic"].replicas == 1  # it does not grow again against its holder's will
    grant(state, claim("other"))
    answer = run(state, c.Resize(lease="elastic", replicas=3))
    assert isinstance(answer, c.Refused)
    assert state.leases["elastic"].replicas == 1
    run(state, c.Resize(lease="elastic", replicas=2))
    assert state.leases["elastic"].replicas == 2
    with pytest.raises(ClaimError, match="1 to 3"):
        run(state, c.Resize(lease="elastic", replicas=4))


def test_a_tenant_below_its_guarantee_takes_back_from_borrowers():
    state = state_of(gpus(4))
    run(state, c.SetTenant(tenant=Tenant(path="a", guarantee={"gpu": 2})))
    run(state, c.SetTenant(tenant=Tenant(path="b", guarantee={"gpu": 2})))
    for number in range(4):
        grant(state, claim(f"b{number}", tenant="b"), 1000 + number)
    queued(state, claim("mine", count=2, tenant="a", wait=True), 1010)
    pump(state, 1010)
    assert told(state) == {"b2", "b3"}
    queued(state, claim("more", tenant="a", wait=True), 1011)
    pump(state, 1011)
    assert told(state) == {"b2", "b3"}  # the third would be borrowed itself


def test_a_quota_is_never_exceeded_and_waiting_is_not_a_way_around_it():
    state = state_of(gpus(4))
    run(state, c.SetTenant(tenant=Tenant(path="org", quota={"gpu": 2})))
    grant(state, claim("a", count=2, tenant="org/x"))
    assert "quota of 2 gpu" in refused(state, claim("b", tenant="org/y"))
    queued(state, claim("c", tenant="org/y", wait=True))
    assert pump(state) == []
    assert "never be granted" in refused(state, claim("d", count=3, tenant="org/y", wait=True))
    assert leave(state, "a") == ["c"]


def test_limits_on_the_number_of_claims():
    state = state_of(gpus(4))
    run(state, c.SetTenant(tenant=Tenant(path="t", most_claims=1, most_waiting=1)))
    grant(state, claim("a", tenant="t"))
    assert "limit" in refused(state, claim("b", tenant="t"))
    queued(state, claim("c", tenant="t", wait=True))
    assert "limit" in refused(state, claim("d", tenant="t", wait=True))
    assert leave(state, "a") == ["c"]


def test_a_drained_machine_gets_no_claims_and_its_holders_are_told():
    state = state_of([*gpus(1), *gpus(1, "n1")])
    first = grant(state, claim("a", grace_seconds=5.0))
    node = first.devices[0].node
    answer = run(state, c.SetCordon(target=f"node:{node}", why="firmware", by="ada", drain=True))
    assert [lease.id for lease in answer.leases] == ["a"]
    assert state.leases["a"].leave_by == 1005
    assert "ada" in state.leases["a"].notice
    assert grant(state, claim("b")).devices[0].node != node
    leave(state, "a")
    assert "cordoned" in refused(state, claim("c"))
    run(state, c.LiftCordon(target=f"node:{node}", by="ada"))
    assert ids(grant(state, claim("c")))


def test_a_cordoned_device_keeps_its_lease():
    state = state_of(gpus(1))
    lease = grant(state, claim("a"))
    run(state, c.SetCordon(target="n0/g0", by="ada"))
    assert state.leases["a"].state is LeaseState.BOUND
    run(state, c.Renew(lease="a"))
    leave(state, "a")
    refused(state, claim("b"))
    assert lease.fence
