"""Shares of one device that become ready, and go, in another order than they were granted in."""

from __future__ import annotations

import itertools

import pytest

from hal.broker import command as c
from hal.model.claim import FRACTION, Request, Share
from hal.model.kind import Kind
from hal.model.lease import Lease, LeaseState
from tests.unit.broker.fake import World
from tests.unit.broker.world import claim, server

NAMES = ("one", "two", "three")


def share(name):
    return claim(name, requests=(Request(kind=Kind.GPU, share=Share.SHARED, capacity={FRACTION: 300}),))


@pytest.mark.parametrize("ready", list(itertools.permutations(NAMES)))
def test_the_last_share_to_go_shuts_the_device_whoever_was_ready_first(tmp_path, ready):
    for number, leaving in enumerate(itertools.permutations(NAMES)):
        world = World(tmp_path / str(number), server("n0", 1))
        broker = world.broker
        leases = {name: broker.ledger.execute(c.ClaimDevices(claim=share(name))).lease for name in NAMES}
        for name in ready:
            assert isinstance(broker.agent.prepare(leases[name]), Lease)
        for name in leaving:
            assert world.prepared()
            broker.release(name)
        assert not world.prepared(), f"ready {ready}, gone {leaving}"
        assert broker.claim("gpu").lease.fence > leases["three"].fence


def test_a_share_is_ready_after_a_later_one_has_come_and_gone(tmp_path):
    world = World(tmp_path, server("n0", 1))
    broker = world.broker
    one, two = (broker.ledger.execute(c.ClaimDevices(claim=share(name))).lease for name in NAMES[:2])
    broker.agent.prepare(two)
    broker.release("two")  # and then the broker goes on with what is not ready yet
    assert broker.get("one").lease.state is LeaseState.PREPARED
    assert world.driver.holder(one.devices[0].id)[0] == "one"
    broker.release("one")
    assert not world.prepared()
