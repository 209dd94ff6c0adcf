"""Where counting decides over all nodes, it decides what a search over all of their devices decides."""

from __future__ import annotations

import random

from hypothesis import given as tried_with
from hypothesis import settings
from hypothesis import strategies as st
from msgspec.structs import replace

from hal.broker.allocation.choice import Place, Refusal, given
from hal.broker.allocation.view import allocate, allocate_if
from hal.model.claim import Claim, Constraint, Request
from hal.model.health import Severity
from hal.model.kind import Kind
from tests.budget import examples
from tests.unit.broker.floor import Floor
from tests.unit.broker.world import changed, condition, device


def ragged(rng):
    """Machines where some switches lack a GPU or a NIC, some lie below others, and some devices are on none."""
    found = []
    for n in range(rng.randint(3, 8)):
        node, rack = f"n{n}", rng.choice(["r0", "r0", "r1", "r1", None])
        switches = [f"0000:{n:02x}:{i:02x}.0" for i in range(rng.randint(1, 3))]
        for switch in switches:
            found.append(device(f"{node}/{switch}", Kind.SWITCH, node, rack=rack, allocatable=False))
        for i in range(rng.randint(2, 6)):
            kind = rng.choice([Kind.GPU, Kind.RNIC] * 4 + [Kind.PMEM])
            made = device(
                f"{node}/d{i}", kind, node, numa=rng.choice([0, 0, 0, 1, 1, None]), rack=rack, size=rng.randint(1, 2)
            )
            if i and rng.random() < 0.05:
                made = replace(made, parent=f"{node}/d0")
            path = sorted(rng.sample(switches, rng.randint(0, min(2, len(switches)))))
            found.append(replace(made, location=replace(made.location, pci_path=("pci0000:00", *path))))
    return found


def spread(rng, name):
    """A claim of pairs that may lie on any nodes, and perhaps of something beside them."""
    count = rng.randint(2, 5)
    kinds = [Kind.GPU, Kind.RNIC, *([Kind.PMEM] if rng.random() < 0.2 else [])]
    requests = [Request(kind=kind, count=count, name=kind.value) for kind in kinds]
    if rng.random() < 0.2:
        requests[0] = replace(requests[0], where="size <= 1")
    paired = tuple(kind.value for kind in kinds)
    if rng.random() < 0.3:
        requests.append(Request(kind=rng.choice([Kind.PMEM, Kind.GPU]), count=rng.randint(1, 3), name="beside"))
    rule = Constraint(same=rng.choice(["pci-switch", "pci-switch", "numa", "node"]), pairwise=True, requests=paired)
    return Claim(id=name, requests=tuple(requests), constraints=(rule,) if rng.random() < 0.85 else ())


@settings(max_examples=examples(150), deadline=None)
@tried_with(st.integers(0, 1 << 32))
def test_counting_and_searching_agree_whatever_comes_and_goes(seed):
    rng = random.Random(seed)
    floor = Floor(ragged(rng))
    shapes = [spread(rng, f"s{n}") for n in range(3)]
    for number in range(12):
        if floor.leases and rng.random() < 0.3:
            floor.give(rng.choice(sorted(floor.leases)))
        if rng.random() < 0.2:
            some = floor.devices[rng.choice(sorted(floor.devices))]
            floor.place(changed(some, conditions=() if some.conditions else (condition(some.id, Severity.FATAL),)))
        if rng.random() < 0.2:
            move(floor, rng.choice(floor.nodes).name, rng.choice(["r0", "r1", None]))
        wanted = rng.choice(shapes)
        counted = allocate(floor, wanted)
        searched = allocate_if(floor, wanted, nodes=[node.name for node in floor.nodes])
        assert type(counted) is type(searched), (seed, number)
        if isinstance(counted, Refusal):
            if counted.cause != searched.cause:
                assert_a_proof(floor, wanted, counted.cause)
            continue
        assert isinstance(counted, Place)
        devices = given(counted)
        assert_kept(floor, wanted, devices)
        if rng.random() < 0.7:
            floor.take(f"c{number}", devices)


def move(floor, name, rack):
    """Put a machine into another rack."""
    for moved in [d for d in floor.devices.values() if d.location.node == name]:
        floor.place(replace(moved, location=replace(moved.location, rack=rack)))


def assert_kept(floor, wanted, devices):
    """The numbers are right, nobody has them, and the n-th of each paired request share a place."""
    assert len({d.id for d in devices}) == len(devices)
    rows = {r.name: [d for d in devices if d.request == r.name] for r in wanted.requests}
    for request in wanted.requests:
        assert len(rows[request.name]) == request.count
        for found in rows[request.name]:
            node = floor.node(found.node)
            assert found.kind is request.kind
            assert node.free >> node.place[found.id] & 1
    for rule in wanted.constraints:
        for row in zip(*(rows[name] for name in rule.requests), strict=True):
            node = floor.node(row[0].node)
            bits = sum(1 << node.place[found.id] for found in row)
            assert {found.node for found in row} == {node.name}
            assert any(bits & ~group == 0 for group in node.groups(rule.same).values()), rule


def assert_a_proof(floor, wanted, cause):
    """What is named cannot be met by itself, and without any one thing of it it could be."""
    everywhere = [node.name for node in floor.nodes]

    def possible(requests, rules):
        named = {wanted.requests[i].name for i in requests}
        constraints = []
        for n in rules:
            who = tuple(name for name in wanted.constraints[n].requests if name in named)
            if who:
                constraints.append(replace(wanted.constraints[n], requests=who))
        part = Claim(id="p", requests=tuple(wanted.requests[i] for i in requests), constraints=tuple(constraints))
        return isinstance(allocate_if(floor, part, nodes=everywhere), Place)

    assert not possible(cause.requests, cause.rules)
    for i in cause.requests:
        if len(cause.requests) > 1:
            assert possible([j for j in cause.requests if j != i], cause.rules)
    for n in cause.rules:
        assert possible(cause.requests, [m for m in cause.rules if m != n])
