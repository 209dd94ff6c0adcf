"""However machines and holders come and go, the answer is that of an allocator which sees the devices anew."""

from __future__ import annotations

import random

from hypothesis import given as tried_with
from hypothesis import settings
from hypothesis import strategies as st

from hal.broker.allocation.choice import Place, Refusal, given
from hal.broker.allocation.view import allocate, allocate_if
from hal.model.health import Severity
from tests.budget import examples
from tests.unit.broker.floor import Floor
from tests.unit.broker.oracle_worlds import random_claim, random_devices
from tests.unit.broker.world import changed, condition


def told(found):
    """What of an outcome does not depend on what was seen before."""
    if isinstance(found, Place):
        return found.cost, found.replicas, [(d.id, d.slot, d.uses, d.replica, d.request) for d in given(found)]
    return type(found).__name__


def anew(floor):
    """The same machines and holders, in an index that has seen nothing else."""
    fresh = Floor([floor.devices[name] for node in floor.nodes for name in floor._here[node.name]])
    for name, devices in floor.leases.items():
        fresh.take(name, devices)
    fresh.settle()
    return fresh


@settings(max_examples=examples(60), deadline=None)
@tried_with(st.integers(0, 1 << 32))
def test_a_view_that_follows_changes_answers_as_one_made_afresh(seed):
    rng = random.Random(seed)
    floor = Floor(random_devices(rng))
    shapes = [random_claim(rng, f"s{n}") for n in range(4)]
    for number in range(14):
        step = rng.random()
        if step < 0.2 and floor.leases:
            floor.give(rng.choice(sorted(floor.leases)))
        elif step < 0.3:
            some = floor.devices[rng.choice(sorted(floor.devices))]
            sick = () if some.conditions else (condition(some.id, Severity.FATAL),)
            floor.place(changed(some, conditions=sick))
        wanted = rng.choice(shapes)
        found = allocate(floor, wanted)
        fresh = anew(floor)
        other = allocate(fresh, wanted)
        assert type(found) is type(other), (seed, number)
        if isinstance(found, Place):
            assert (found.cost, found.replicas) == (other.cost, other.replicas)
        before = [(node.free, node.open, node.partial, node.held) for node in floor.nodes]
        assert before == [(node.free, node.open, node.partial, node.held) for node in fresh.nodes]
        check_what_if(rng, floor, wanted)
        assert before == [(node.free, node.open, node.partial, node.held) for node in floor.nodes]
        assert told(allocate(floor, wanted)) == told(found), "to ask changes nothing"
        if isinstance(found, Place) and rng.random() < 0.6:
            floor.take(f"c{number}", given(found))


def check_what_if(rng, floor, wanted):
    """What is told of a time when some have gone is what is told when they have gone."""
    if not floor.leases:
        return
    gone = rng.sample(sorted(floor.leases), rng.randint(1, len(floor.leases)))
    freed = [device for name in gone for device in floor.leases[name]]
    later = anew(floor)
    for name in gone:
        later.give(name)
    foretold, found = allocate_if(floor, wanted, freed=freed), allocate(later, wanted)
    assert type(foretold) is type(found)
    if isinstance(found, Place):
        assert (foretold.cost, foretold.replicas) == (found.cost, found.replicas)
    empty = anew(floor)
    for name in list(empty.leases):
        empty.give(name)
    assert type(allocate_if(floor, wanted, empty=True)) is type(allocate(empty, wanted))
    node = rng.choice(floor.nodes).name
    only = allocate_if(floor, wanted, nodes={node})
    if isinstance(only, Place):
        assert {choice.node.name for choice in only.choices} == {node}
        assert not isinstance(allocate(floor, wanted), Refusal)


def test_many_touches_are_forgotten_and_nothing_is_missed():
    floor = Floor(random_devices(random.Random(3)))
    wanted = [random_claim(random.Random(n), f"c{n}", frozenset({"where", "shared"})) for n in range(12)]
    for number in range(3000):
        found = allocate(floor, wanted[number % 12 if number % 200 == 0 else 0])
        if isinstance(found, Place):
            floor.take("x", given(found))
            floor.give("x")
    assert floor.forgotten_touches
    fresh = anew(floor)
    assert [type(allocate(floor, c)) for c in wanted] == [type(allocate(fresh, c)) for c in wanted]
