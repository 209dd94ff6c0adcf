from __future__ import annotations

import pytest

from hal.broker import command as c
from hal.broker.decisions.queue import PATIENCE_SECONDS
from hal.errors import ClaimError
from hal.model.kind import Kind
from hal.model.lease import LeaseState
from tests.unit.broker.world import (
    claim,
    device,
    give_back,
    grant,
    ids,
    leave,
    pump,
    queued,
    refused,
    run,
    server,
    state_of,
)


def gpus(count: int, node: str = "n0"):
    return [device(f"{node}/g{i}", node=node) for i in range(count)]


def test_a_claim_that_finds_no_room_waits_and_is_granted_when_there_is():
    state = state_of(gpus(2))
    grant(state, claim("a", count=2))
    answer = queued(state, claim("b", count=2, wait=True))
    assert answer.position == 1
    assert pump(state) == []
    assert leave(state, "a") == ["b"]
    assert state.leases["b"].fence > 0
    assert not state.waiting


def test_a_claim_that_does_not_wait_is_refused_and_forgotten():
    state = state_of(gpus(1))
    grant(state, claim("a"))
    refused(state, claim("b"))
    assert not state.waiting
    assert leave(state, "a") == []


def test_asked_again_a_waiting_claim_says_where_it_stands():
    state = state_of(gpus(1))
    grant(state, claim("a"))
    queued(state, claim("b", wait=True), 1000)
    queued(state, claim("c", wait=True), 1001)
    assert queued(state, claim("c", wait=True), 1002).position == 2
    assert queued(state, claim("b", wait=True), 1002).position == 1
    with pytest.raises(ClaimError, match="different claim"):
        queued(state, claim("b", count=2, wait=True))


def test_who_came_first_is_served_first_and_a_higher_priority_before():
    state = state_of(gpus(1))
    grant(state, claim("a"))
    for number, (name, priority) in enumerate([("b", 0), ("c", 0), ("d", 5)]):
        queued(state, claim(name, wait=True, priority=priority), 1000 + number)
    assert leave(state, "a", 1010) == ["d"]
    assert leave(state, "d", 1011) == ["b"]
    assert leave(state, "b", 1012) == ["c"]


def test_tenants_take_turns_by_what_they_have_not_by_how_much_they_ask():
    state = state_of(gpus(4))
    grant(state, claim("full", count=4, tenant="z"))
    for number in range(4):
        queued(state, claim(f"a{number}", wait=True, tenant="a"), 1000 + number)
    for number in range(4):
        queued(state, claim(f"b{number}", wait=True, tenant="b"), 1010 + number)
    granted = leave(state, "full", 1020)
    assert sorted(name[0] for name in granted) == ["a", "a", "b", "b"]


def test_a_claim_that_could_never_be_granted_does_not_wait():
    state = state_of(gpus(2))
    grant(state, claim("a", count=1))
    assert "even if every fit device were free" in refused(state, claim("b", count=3, wait=True))


def test_a_waiting_claim_can_be_taken_back_and_never_comes():
    state = state_of(gpus(1))
    grant(state, claim("a"))
    queued(state, claim("b", wait=True, tenant="t"))
    run(state, c.Release(lease="b", tenant="t"))
    assert leave(state, "a") == []
    assert "left the queue" in refused(state, claim("b", wait=True, tenant="t"))


def test_nobody_else_can_take_a_claim_out_of_the_queue():
    state = state_of(gpus(1))
    grant(state, claim("a"))
    queued(state, claim("b", wait=True, tenant="t"))
    with pytest.raises(Exception, match="no such lease"):
        run(state, c.Release(lease="b", tenant="other"))
    assert "b" in state.waiting


def test_who_has_waited_as_long_as_they_wanted_leaves():
    state = state_of(gpus(1))
    grant(state, claim("a", ttl_seconds=500))
    queued(state, claim("b", wait=True, wait_seconds=60), 1000)
    run(state, c.Expire(), 1059)
    assert "b" in state.waiting
    run(state, c.Expire(), 1060)
    assert "b" not in state.waiting
    assert "waited 60 seconds" in refused(state, claim("b", wait=True, wait_seconds=60), 1061)


def test_a_large_claim_is_not_starved_by_small_ones():
    state = state_of(gpus(4))
    for number in range(4):
        grant(state, claim(f"small{number}", ttl_seconds=1e6), 1000)
    queued(state, claim("large", count=4, wait=True, ttl_seconds=1e6), 1000)
    now, number = 1000.0, 4
    for _ in range(40):
        now += 30
        oldest = next(lease for lease in state.leases.values() if lease.id.startswith("small"))
        give_back(state, oldest, now)
        granted = pump(state, now)
        if "large" in granted:
            break
        run(state, c.ClaimDevices(claim=claim(f"small{number}", ttl_seconds=1e6)), now)  # somebody always asks
        number += 1
    assert "large" in state.leases
    assert now - 1000 <= PATIENCE_SECONDS + 30 * 6


def test_what_is_kept_is_lent_to_those_who_end_before_it_is_needed():
    state = state_of(gpus(2))
    grant(state, claim("a", duration_seconds=1000.0, ttl_seconds=1e6), 1000)
    queued(state, claim("both", count=2, wait=True), 1000)
    pump(state, 1000 + PATIENCE_SECONDS)
    entry = state.waiting["both"]
    assert len(entry.kept) == 2
    assert entry.starts_at == 2000
    now = 1000 + PATIENCE_SECONDS
    assert "kept" in refused(state, claim("open-ended"), now)
    assert "kept" in refused(state, claim("too-long", duration_seconds=2000.0), now)
    short = grant(state, claim("short", duration_seconds=500.0), now)
    assert len(short.devices) == 1
    leave(state, "short", 1600)
    assert leave(state, "a", 1700) == ["both"]


def test_kept_devices_that_break_are_given_up_and_others_are_found():
    state = state_of([*gpus(2), *gpus(2, "n1")])
    grant(state, claim("a", count=2, same="node", duration_seconds=1000.0, ttl_seconds=1e6), 1000)
    grant(state, claim("b", count=2, same="node", duration_seconds=2000.0, ttl_seconds=1e6), 1000)
    queued(state, claim("c", count=2, same="node", wait=True), 1000)
    pump(state, 1000 + PATIENCE_SECONDS)
    kept = {given.id for given in state.waiting["c"].kept}
    assert kept == set(ids(state.leases["a"]))
    run(state, c.SetCordon(target=sorted(kept)[0]), 1070)
    pump(state, 1070)
    assert {given.id for given in state.waiting["c"].kept} == set(ids(state.leases["b"]))
    assert leave(state, "a", 1100) == []
    assert leave(state, "b", 1200) == ["c"]


def test_a_lease_with_a_duration_ends_by_itself_however_often_it_is_renewed():
    state = state_of(gpus(1))
    lease = grant(state, claim("a", duration_seconds=100.0, ttl_seconds=60), 1000)
    assert (lease.ends_at, lease.expires_at) == (1100, 1060)
    run(state, c.Renew(lease="a"), 1050)
    assert state.leases["a"].expires_at == 1100
    run(state, c.Expire(), 1100)
    assert state.leases["a"].state is LeaseState.RELEASING
    assert "time is over" in state.leases["a"].why_ended


def test_a_reservation_keeps_devices_and_starts_on_time():
    state = state_of(gpus(2))
    grant(state, claim("a", duration_seconds=100.0, ttl_seconds=1e6), 1000)
    answer = queued(state, claim("later", count=2, start_at=1200.0, duration_seconds=50.0), 1000)
    assert answer.starts_at == 1200
    assert "kept" in refused(state, claim("b"), 1010)
    grant(state, claim("c", duration_seconds=150.0), 1010)
    leave(state, "c", 1150)
    leave(state, "a", 1100)
    assert pump(state, 1199) == []
    run(state, c.Expire(), 1200)
    assert pump(state, 1200) == ["later"]
    assert state.leases["later"].ends_at == 1250


def test_two_reservations_share_devices_one_after_the_other_and_not_at_once():
    state = state_of(gpus(1))
    queued(state, claim("first", start_at=1100.0, duration_seconds=100.0), 1000)
    queued(state, claim("second", start_at=1200.0, duration_seconds=100.0), 1000)
    assert "free from then on" in refused(state, claim("between", start_at=1150.0, duration_seconds=100.0), 1000)
    run(state, c.Expire(), 1100)
    assert pump(state, 1100) == ["first"]
    run(state, c.Expire(), 1200)
    assert leave(state, "first", 1200) == ["second"]


def test_a_reservation_counts_only_on_what_is_known_to_end():
    state = state_of(gpus(1))
    grant(state, claim("a", ttl_seconds=10), 1000)
    assert "free from then on" in refused(state, claim("later", start_at=5000.0), 1000)


def test_waiting_claims_come_back_from_a_snapshot_as_they_were():
    state = state_of(server("n0", 4))
    grant(state, claim("a", count=4, duration_seconds=300.0), 1000)
    queued(state, claim("b", count=2, wait=True), 1000)
    queued(state, claim("c", Kind.RNIC, 2, start_at=3000.0), 1000)
    pump(state, 1000 + PATIENCE_SECONDS)
    again = type(state).restore(state.snapshot())
    assert again.snapshot() == state.snapshot()
    assert pump(again, 1100) == pump(state, 1100)
    for world in (state, again):
        give_back(world, world.leases["a"], 1200)
    assert pump(again, 1200) == pump(state, 1200) == ["b"]
