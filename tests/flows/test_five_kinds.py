"""Every kind, opened through a lease from another process: used, broken, refused, mended, claimed again."""

from __future__ import annotations

import pytest

from hal.errors import ClaimRefused
from hal_mocks.demo import SCENES, Scene, Worker, mend

PROFILES = {
    "gpu": "dgx-h100",
    "rnic": "dgx-h100",
    "dpu": "bluefield-host",
    "pmem": "optane-server",
    "upmem": "upmem-server",
}


@pytest.fixture(params=SCENES, ids=lambda scene: scene.kind.value)
def scene(request: pytest.FixtureRequest) -> Scene:
    request.node.add_marker(pytest.mark.hal_machine(PROFILES[request.param.kind.value]))
    return request.param


def test_a_device_lives_through_its_life(scene: Scene, hal_machine, hal_broker):
    words = {"count": scene.count, "where": scene.where, "same": scene.same, "ttl_seconds": 300.0}
    lease = hal_broker.claim(scene.kind, **words)
    device = lease.devices[0]
    with Worker() as worker:
        assert worker.ask(lease.ticket()) == f"ok opened {device.name}"
        assert worker.ask("work").startswith("ok ")
        hal_machine.inject(device.id, scene.fault, **scene.details)
        broken = worker.ask("work")
        assert broken.startswith("error ")
        assert device.id in broken
        assert "LeaseEnded" not in broken, "a fault is the device's, not the lease's"
        lease.release()
        assert worker.ask("work").startswith("error LeaseEnded: ")
    with pytest.raises(ClaimRefused, match="0 devices are free"):
        hal_broker.claim(scene.kind, where=f"id == '{device.id}'")
    mend(scene, hal_broker, hal_machine, device.id)
    with Worker() as worker, hal_broker.claim(scene.kind, **words) as again:
        assert again.devices[0].id == device.id
        assert again.fence > lease.fence
        worker.ask(again.ticket())
        assert worker.ask("work").startswith("ok ")
    assert hal_broker.list() == ()


def test_a_device_that_broke_while_it_was_free_is_not_handed_out(hal_machine, hal_broker):
    sick = hal_broker.claim("gpu")
    sick.release()
    hal_machine.inject(sick.devices[0].id, "lost")
    other = hal_broker.claim("gpu")
    assert other.devices[0].id != sick.devices[0].id, "the chosen device is asked how it is before it is promised"
