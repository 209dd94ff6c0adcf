"""However much was explained, claimed and given back before, an explanation is that of one who sees it all anew."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given as tried_with
from hypothesis import settings
from hypothesis import strategies as st

from hal.broker import command as c
from hal.broker.allocation.explain import Explanation, explain
from hal.broker.allocation.explain_trial import is_possible
from hal.broker.allocation.explain_witness import is_witnessed
from hal.broker.state import State
from hal.model.claim import Claim, Constraint, Gang, Gather, Locality
from hal.model.health import Severity
from hal.model.lease import Lease
from tests.budget import examples
from tests.unit.broker.oracle_worlds import random_claim, random_devices
from tests.unit.broker.world import changed, claim, condition, give_back, grant, request, run, server, state_of


def anew(state: State, wanted: Claim) -> Explanation:
    """Explain as if nothing had ever been asked; what was remembered is as before afterwards."""
    views, recent = dict(state.views), dict(state.recent)
    state.views.clear()
    state.recent.clear()
    told = explain(state, wanted, most_devices=100_000)
    state.views.clear()
    state.recent.clear()
    state.views.update(views)
    state.recent.update(recent)
    return told


def check(state: State, wanted: Claim) -> None:
    told, fresh = explain(state, wanted, most_devices=100_000), anew(state, wanted)
    if told.decided and fresh.decided:
        assert {*told.devices} == {*fresh.devices}  # in which order they are listed is not promised
        assert msgspec.structs.replace(told, devices=()) == msgspec.structs.replace(fresh, devices=())


def change(rng: random.Random, state: State, leases: list[Lease], wanted: Claim) -> None:
    """Let something be claimed or given back, fall ill or recover, or be kept from new leases."""
    step = rng.random()
    if step < 0.35 and leases:
        give_back(state, leases.pop(rng.randrange(len(leases))))
    elif step < 0.5:
        some = state.devices[rng.choice(sorted(state.devices))]
        sick = () if some.conditions else (condition(some.id, Severity.FATAL),)
        run(state, c.Observe(devices=(changed(some, conditions=sick),)))
    elif step < 0.55:
        target = rng.choice(sorted(state.devices))
        run(state, c.LiftCordon(target=target) if target in state.cordons else c.SetCordon(target=target))
    else:
        answer = run(state, c.ClaimDevices(claim=wanted))
        if isinstance(answer, c.Granted):
            leases.append(answer.lease)


def live(
    rng: random.Random,
    state: State,
    explained: Sequence[Claim],
    taken: Sequence[Claim],
    steps: int,
    leases: list[Lease],
) -> None:
    for number in range(steps):
        wanted = msgspec.structs.replace(rng.choice(taken), id=f"t{number}", wait=False)
        change(rng, state, leases, wanted)
        check(state, msgspec.structs.replace(rng.choice(explained), id=f"x{number}"))


@settings(max_examples=examples(60), deadline=None)
@tried_with(st.integers(0, 1 << 32))
def test_an_explanation_does_not_depend_on_those_before_it(seed):
    rng = random.Random(seed)
    claims = [random_claim(rng, f"s{n}") for n in range(4)]
    live(rng, state_of(random_devices(rng)), claims, claims, 12, [])


def large_claims() -> list[Claim]:
    pairs = (request("gpu", 3, name="g"), request("rnic", 3, name="n"))
    switches = Constraint(same="pci-switch", pairwise=True)
    return [
        claim("x", "gpu", 9, same="node"),
        claim("x", "gpu", 5, same="numa"),
        claim("x", requests=pairs, constraints=(switches, Constraint(same="node"))),
        claim("x", requests=(*pairs, request("gpu", 6, name="h")), constraints=(Constraint(same="node"),)),
        claim(
            "x", requests=(*pairs, request("gpu", 5, name="h")), constraints=(Constraint(same="numa", requests=("h",)),)
        ),
        claim("x", "gpu", 3, replicas=2, gang=Gang(how=Gather.ONE, over=Locality.RACK)),
        claim("x", "gpu", 2, replicas=4, gang=Gang(how=Gather.ONE, over=Locality.RACK)),
        claim("x", "gpu", "all", same="node"),
    ]


@pytest.mark.parametrize("seed", range(examples(3)))
def test_nor_does_it_among_more_nodes_than_are_tried_first(seed):
    rng = random.Random(seed)
    state = state_of([device for n in range(70) for device in server(f"n{n:02d}", 4, f"r{n // 8}")])
    both = (request("gpu", 3), request("rnic", 3))
    leases = [grant(state, claim(f"c{n}", requests=both, same="node")) for n in range(70)]
    taken = [claim("t", requests=(request("gpu"), request("rnic")), same="numa"), claim("t", "gpu", 2)]
    live(rng, state, large_claims(), taken, 25, leases)


def test_what_was_found_for_a_trial_counts_until_one_of_its_devices_is_taken():
    state = state_of([*server("n0", 4), *server("n1", 4)])
    wanted = claim("x", requests=(request("gpu", 3, name="g"), request("rnic", 3)), same="node")
    spread = msgspec.structs.replace(wanted, constraints=(Constraint(same="pci-switch", pairwise=True),))
    assert is_possible(state, spread)
    assert is_witnessed(state, spread)
    given = grant(state, spread)
    assert not is_witnessed(state, spread)
    give_back(state, given)
    assert is_witnessed(state, spread)
    some = state.devices[given.devices[0].id]
    run(state, c.Observe(devices=(changed(some, conditions=(condition(some.id, Severity.FATAL),)),)))
    assert not is_witnessed(state, spread)


def test_a_rack_has_what_was_given_back_on_its_nodes():
    state = state_of([device for n in range(70) for device in server(f"n{n:02d}", 4, f"r{n // 8}")])
    leases = [grant(state, claim(f"c{n}", "gpu", 4, same="node")) for n in range(70)]
    rack = claim("x", "gpu", 3, replicas=2, gang=Gang(how=Gather.ONE, over=Locality.RACK))
    give_back(state, leases[0])
    assert explain(state, rack).conflict.gang is False  # nor would they fit into two racks
    give_back(state, leases[69])
    assert explain(state, rack).conflict.gang is True
    give_back(state, leases[7])
    assert explain(state, rack).feasible
    grant(state, claim("other", "gpu", 4, same="node"))
    assert not explain(state, rack).feasible
