"""The allocator and its explanations against trying everything, on small random data centers."""

from __future__ import annotations

import random

import pytest

from hal.broker import command as c
from hal.broker.core import decide
from hal.model.claim import FRACTION, Claim, Constraint, Request, Share
from hal.model.kind import Kind
from tests.budget import PROFILE
from tests.unit.broker.oracle import best
from tests.unit.broker.oracle_run import Tally, play
from tests.unit.broker.oracle_values import Hold, World
from tests.unit.broker.oracle_verify import Wrong, verify
from tests.unit.broker.world import claim, device, grant, request, run, server, state_of

BLOCKS = 8
INSTANCES = {"default": 8_000, "nightly": 1_000_000}[PROFILE] // BLOCKS
"""A million in the night: ``python -m tests.unit.broker.oracle_run 1000000 1`` is the same by hand."""


@pytest.mark.parametrize("block", range(BLOCKS))
def test_the_broker_agrees_with_trying_everything(block):
    tally, seed = Tally(), 1_000_000 * block
    while tally.instances < INSTANCES:
        play(seed, tally)
        seed += 1
    assert not tally.mismatches, "\n".join(tally.mismatches[:5])
    assert tally.outcomes["Undecided"] <= tally.instances / 1000, "it gave up too often"
    assert min(tally.outcomes["Granted"], tally.outcomes["Refused"]) > tally.instances // 5, tally.outcomes
    assert tally.explained > tally.instances // 50


def test_the_oracle_counts_what_any_child_can_count():
    four = World(devices=tuple(d for d in server("n0", 4)))
    assert best(four, claim("c", "gpu", 4)) is not None
    assert best(four, claim("c", "gpu", 5)) is None
    assert best(four, claim("c", "gpu", 3, same="numa")) is None
    pairs = (request("gpu", 4, name="g"), request("rnic", 4, name="n"))
    together = (Constraint(same="pci-switch", pairwise=True),)
    assert best(four, claim("c", requests=pairs, constraints=together)) is not None
    one_gone = World(devices=four.devices, holds=(Hold("n0/mlx5_2"),))
    three = tuple(request(kind, 3, name=kind) for kind in ("gpu", "rnic"))
    assert best(one_gone, claim("c", requests=pairs, constraints=together)) is None
    assert best(one_gone, claim("c", requests=three, constraints=together)) is not None
    wish = (Constraint(same="numa", weight=3.0),)
    assert best(four, claim("c", "gpu", 2, constraints=wish)) == (1, 0.0, 1)
    assert best(four, claim("c", "gpu", 3, constraints=wish)) == (1, 3.0, 1)
    assert best(four, claim("c", "gpu", 2, replicas=2)) == (2, 0.0, 1)
    assert best(four, claim("c", "gpu", 1, replicas=2, max_replicas=9)) == (4, 0.0, 1)


def test_the_verifier_finds_what_is_wrong_with_an_allocation():
    devices = tuple(server("n0", 4))
    state = state_of(devices)
    world = World(devices=devices)
    asked = claim("c", "gpu", 2, same="numa")
    given = list(grant(state, asked).devices)
    assert verify(world, asked, given) == 0.0
    others = {d.id: d for d in grant(state, claim("d", "gpu", 2)).devices}
    wrong = {
        "was given": given[:1],
        "twice": [given[0], given[0]],
        "is broken": [given[0], next(iter(others.values()))],
    }
    for word, devices_given in wrong.items():
        with pytest.raises(Wrong, match=word):
            verify(world, asked, devices_given)
    taken = World(devices=devices, holds=(Hold(given[0].id),))
    with pytest.raises(Wrong, match="not free"):
        verify(taken, asked, given)


def test_a_device_of_which_a_part_exists_may_be_shared_as_it_may_be_held_alone():
    part = device("n0/g0p", parent="n0/g0", mig_profile="1g", mig_start=0)
    half = Request(kind=Kind.GPU, where='name == "g0"', share=Share.SHARED, capacity={FRACTION: 500})
    for asked in (half, Request(kind=Kind.GPU, where='name == "g0"')):
        state = state_of([device("n0/g0", mig_mode="enabled", partition_placements=("1g:1:0,1",)), part])
        grant(state, Claim(id="c", requests=(asked,)))


def test_a_share_given_back_after_a_cordon_is_counted_once():
    """A node that is built afresh counts its shares; what came in with the same record was counted again."""
    state = state_of([device("n0/g0"), device("n0/g1")])
    half = Request(kind=Kind.GPU, share=Share.SHARED, capacity={FRACTION: 500})
    for number in range(4):
        run(state, c.SetCordon(target="n0/g1", why="firmware", by="ada"))
        lease = grant(state, Claim(id=f"c{number}", requests=(half,)))
        assert [d.id for d in lease.devices] == ["n0/g0"]
        run(state, c.LiftCordon(target="n0/g1"))
        run(state, c.Release(lease=lease.id))
        run(state, c.ProveReleased(lease=lease.id, fence=lease.fence))
    state.settle()
    assert state.nodes[0].free.bit_count() == 2
    assert not state.nodes[0].partial


def test_a_decision_is_the_same_after_a_replay_and_the_views_are_only_memory():
    rng = random.Random(7)
    devices = [*server("a", 4), *server("b", 4)]
    warm, cold = state_of(devices), state_of(devices)
    for number in range(60):
        wanted = claim(f"c{number}", rng.choice(["gpu", "rnic"]), rng.choice([1, 2]), same=rng.choice([None, "numa"]))
        cold.views.clear()
        first, second = (decide(state, c.ClaimDevices(claim=wanted), 1000.0) for state in (warm, cold))
        assert first == second
        for state, (records, _) in ((warm, first), (cold, second)):
            for record in records:
                state.apply(record)
        if warm.leases and rng.random() < 0.5:
            lease = warm.leases[rng.choice(sorted(warm.leases))]
            for state in (warm, cold):
                run(state, c.Release(lease=lease.id))
                run(state, c.ProveReleased(lease=lease.id, fence=lease.fence))


def test_many_nodes_are_joined_right():
    """More than 4096 devices are joined by another way than fewer."""
    state = state_of([d for n in range(600) for d in server(f"n{n:03d}", 8) if d.kind is not Kind.SWITCH])
    for number in range(3):
        lease = grant(state, claim(f"c{number}", requests=(request("gpu", 500), request("rnic", 20))))
        assert len({d.id for d in lease.devices}) == 520
    assert len(state.holders) == 1560
