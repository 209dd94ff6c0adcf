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


def here(runtime: str) -> RdmaDriver:
    """Return the driver of the running machine, also in another process."""
    environ = {"HAL_RDMA_TRANSPORT": "verbs", "XDG_RUNTIME_DIR": runtime}
    return RdmaDriver([HostRoot(node=os.uname().nodename)], environ)


def usable(driver: RdmaDriver) -> tuple[list[Device], str]:
    """Return the devices that verbs can use, and why not the others."""
    devices = driver.discover(Deadline.after(10)).devices
    reasons = [f"{device.name}: {why_not_verbs(device, {})}" for device in devices if why_not_verbs(device, {})]
    reasons += [f"{device.name}: its port is down" for device in devices if device.value("port_state") != "active"]
    fit = [d for d in devices if not why_not_verbs(d, {}) and d.value("port_state") == "active"]
    return fit, "; ".join(reasons) or driver.readiness().detail


class TestVerbs(RnicConformance):
    lacks = frozenset({"reset", "scrub"})

    @pytest.fixture
    def driver(self, tmp_path: Path) -> RdmaDriver:
        driver = here(str(tmp_path))
        fit, why = usable(driver)
        if not fit:
            pytest.skip(f"no RDMA device for verbs here ({why})")
        return driver

    @pytest.fixture
    def device(self, driver: RdmaDriver) -> Device:
        return usable(driver)[0][0]

    @pytest.fixture
    def peer_device(self, device: Device) -> Device:
        return device  # a loop through one NIC: two of them need not be cabled to each other

    def peer_driver_spec(self, driver: RdmaDriver) -> DriverSpec:
        return DriverSpec(__name__, "here", (driver._environ["XDG_RUNTIME_DIR"],))
