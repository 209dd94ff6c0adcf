"""The conformance kit over verbs, on whatever RDMA device this machine has: soft-RoCE in the lab, an HCA elsewhere.

It wants a device of ``class/infiniband`` whose port is up, its file in ``/dev/infiniband``, and python3-pyverbs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hal.drivers.contract import HostRoot
from hal.interfaces.deadline import Deadline
from hal.model.device import Device
from hal.testing.kinds.rnic import RnicConformance
from hal.testing.kinds.rnic_peer import DriverSpec
from hal_rdma.driver import RdmaDriver
from hal_rdma.verbs import why_not_verbs

HOSTS = (HostRoot(node=os.uname().nodename),)


def usable() -> tuple[list[str], str]:
    """Return the devices that verbs can use here, and why it cannot use others."""
    driver = RdmaDriver(HOSTS, {})
    fit: list[str] = []
    reasons: list[str] = []
    for device in driver.discover(Deadline.after(10)).devices:
        why = why_not_verbs(device, {})
        if not why and device.value("port_state") != "active":
            why = "its port is not active"
        if why:
            reasons.append(f"{device.name}: {why}")
        else:
            fit.append(device.id)
    return fit, "; ".join(reasons) or driver.readiness().detail


FIT, WHY_NOT = usable()
if not FIT:
    pytest.skip(f"no RDMA device for verbs here ({WHY_NOT})", allow_module_level=True)


class TestVerbs(RnicConformance):
    lacks = frozenset({"reset", "scrub"})

    @pytest.fixture
    def environ(self, tmp_path: Path) -> dict[str, str]:
        return {"HAL_RDMA_TRANSPORT": "verbs", "XDG_RUNTIME_DIR": str(tmp_path)}

    @pytest.fixture
    def driver(self, environ: dict[str, str]) -> RdmaDriver:
        self.environ = environ
        return RdmaDriver(HOSTS, environ)

    @pytest.fixture
    def device(self, driver: RdmaDriver) -> Device:
        return next(one for one in driver.discover(Deadline.after(10)).devices if one.id == FIT[0])

    @pytest.fixture
    def peer_device(self, device: Device) -> Device:
        return device  # a loop through one NIC: two of them need not be cabled to each other

    def peer_driver_spec(self, driver: RdmaDriver) -> DriverSpec:
        return DriverSpec("hal_rdma.driver", "RdmaDriver", (HOSTS, self.environ))
