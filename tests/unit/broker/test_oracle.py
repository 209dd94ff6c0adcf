"""The allocator against trying everything, on small random data centers. The oracle reads devices, not indexes."""

from __future__ import annotations

import random
from itertools import combinations, product

import pytest

from hal.broker import command as c
from hal.broker.core import decide
from hal.broker.allocation.explain import explain
from hal.model.claim import Constraint, Locality
from hal.model.health import Severity
from hal.model.kind import Kind
from tests.budget import examples
from tests.unit.broker.world import changed, claim, condition, device, grant, request, run, server, state_of

SEEDS = examples(1500)


def random_world(rng):
    devices = []
    for n in range(rng.randint(1, 3)):
        node, rack = f"n{n}", rng.choice(["r0", "r1", None])
        switches = [f"0000:{i:02x}:00.0" for i in range(2)]
        for switch in switches:
            if rng.random() < 0.8:
                devices.append(device(f"{node}/{switch}", Kind.SWITCH, node, rack=rack, allocatable=False))
        devices = [changed(d, name=d.id.split("/")[1]) if d.kind is Kind.SWITCH else d for d in devices]
        for i in range(rng.randint(1, 4)):
            kind = rng.choice([Kind.GPU, Kind.GPU, Kind.RNIC, Kind.DPU])
            own = [d.id for d in devices if d.location.node == node and d.kind in (Kind.DPU, Kind.GPU)]
            sick = rng.random() < 0.08
            devices.append(
                device(
                    f"{node}/d{i}",
                    kind,
                    node,
                    numa=rng.choice([0, 0, 1, None]),
                    switch=rng.choice([*switches, None]),
                    rack=rack,
                    parent=rng.choice(own) if own and rng.random() < 0.3 else None,
                    allocatable=rng.random() < 0.93,
                    conditions=(condition(f"{node}/d{i}", Severity.FATAL),) if sick else (),
                    size=rng.choice([1, 2, 3]),
                )
            )
    return devices


def random_claim(rng, id):
    requests = tuple(
        request(
            rng.choice(["gpu", "gpu", "rnic", "dpu"]),
            rng.choice([1, 1, 2, 3]),
            rng.choice(["", "size >= 2", "size <= 2", "size != 2", "size == 1", "size < 3 and numa == 0"]),
            f"q{i}",
        )
        for i in range(rng.randint(1, 3))
    )
    constraints = tuple(
        Constraint(
            same=rng.choice(list(Locality)),
            requests=tuple(rng.sample([r.name for r in requests], rng.randint(1, len(requests))))
            if rng.random() < 0.5
            else (),
        )
        for _ in range(rng.choice([0, 1, 1, 2]))
    )
    return claim(id, requests=requests, constraints=constraints)


def line(devices, one):
    """The device and all its ancestors."""
    found, at = [one], one.parent
    while at is not None:
        above = next((d for d in devices if d.id == at), None)
        if above is None:
            return None
        found.append(above)
        at = above.parent
    return found


def related(devices, a, b):
    return a.id in [d.id for d in line(devices, b)] or b.id in [d.id for d in line(devices, a)]


def selected(wanted, d):
    size, numa = d.attributes["size"].value, d.location.numa_node
    return {
        "": True,
        "size >= 2": size >= 2,
        "size <= 2": size <= 2,
        "size != 2": size != 2,
        "size == 1": size == 1,
        "size < 3 and numa == 0": size < 3 and numa == 0,
    }[wanted.where]


def usable(devices, held, d):
    family = line(devices, d)
    if not d.allocatable or family is None or any(x.conditions for x in family):
        return False
    return not any(related(devices, d, other) for other in devices if other.id in held and line(devices, other))


def share(devices, level, chosen):
    """Do all of them lie in one place of that level?"""
    if len({d.location.node for d in chosen}) > 1 and level is not Locality.RACK:
        return False
    if level is Locality.NODE:
        return True
    if level is Locality.RACK:
        racks = {d.location.rack for d in chosen}
        return len(racks) == 1 and None not in racks
    if level is Locality.NUMA:
        nodes = {d.location.numa_node for d in chosen}
        return len(nodes) == 1 and None not in nodes
    node = chosen[0].location.node
    ports = {d.name for d in devices if d.kind is Kind.SWITCH and d.location.node == node}
    return bool(ports.intersection(*[set(d.location.pci_path) for d in chosen]))


def kept(devices, wanted, groups):
    flat = [d for group in groups for d in group]
    if len({d.id for d in flat}) < len(flat) or any(related(devices, a, b) for a, b in combinations(flat, 2)):
        return False
    for rule in wanted.constraints:
        names = rule.requests or [r.name for r in wanted.requests]
        concerned = [d for r, group in zip(wanted.requests, groups, strict=True) if r.name in names for d in group]
        if not share(devices, rule.same, concerned):
            return False
    return True


def feasible(devices, held, wanted):
    free = [d for d in devices if d.kind is not Kind.SWITCH and usable(devices, held, d)]
    options = [
        list(combinations([d for d in free if d.kind is r.kind and selected(r, d)], r.count)) for r in wanted.requests
    ]
    return any(kept(devices, wanted, groups) for groups in product(*options))


@pytest.mark.parametrize("block", range(5))
def test_the_allocator_agrees_with_trying_everything(block):
    outcomes = {True: 0, False: 0}
    for seed in range(block * SEEDS // 5, (block + 1) * SEEDS // 5):
        rng = random.Random(seed)
        devices = random_world(rng)
        state = state_of(devices)
        held = set()
        for number in range(4):
            wanted = random_claim(rng, f"c{number}")
            expected = feasible(devices, held, wanted)
            answer = run(state, c.ClaimDevices(claim=wanted))
            assert isinstance(answer, c.Granted if expected else c.Refused), (seed, number, wanted, answer)
            outcomes[expected] += 1
            if expected:
                by_id = {d.id: d for d in devices}
                groups = [[by_id[d.id] for d in answer.lease.devices if d.request == r.name] for r in wanted.requests]
                for r, group in zip(wanted.requests, groups, strict=True):
                    assert len(group) == r.count
                    assert all(d.kind is r.kind and selected(r, d) and usable(devices, held, d) for d in group)
                assert kept(devices, wanted, groups), (seed, wanted)
                held |= {d.id for d in answer.lease.devices}
            else:
                assert answer.reason
                if seed % 10 == 0:
                    check_explanation(devices, held, state, wanted)
            if held and rng.random() < 0.4:
                lease = state.leases[rng.choice(sorted(state.leases))]
                run(state, c.Release(lease=lease.id))
                run(state, c.ProveReleased(lease=lease.id, fence=lease.fence))
                held -= {d.id for d in lease.devices}
    assert min(outcomes.values()) > SEEDS // 20, "the instances must be of both sorts"


def check_explanation(devices, held, state, wanted):
    """The nearest feasible count is feasible, one more is not, and every refused device is truly refused."""
    told = explain(state, wanted)
    assert not told.feasible
    by_id = {d.id: d for d in devices}
    for reason in told.devices:
        asked = next(r for r in wanted.requests if r.name == reason.request)
        d = by_id[reason.device]
        assert not (selected(asked, d) and usable(devices, held, d)), reason
    for i, report in enumerate(told.requests):
        for count in range(1, wanted.requests[i].count + 1):
            requests = list(wanted.requests)
            requests[i] = changed(requests[i], count=count)
            trial = claim("t", requests=tuple(requests), constraints=wanted.constraints)
            assert feasible(devices, held, trial) == (count <= report.feasible_count)


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
