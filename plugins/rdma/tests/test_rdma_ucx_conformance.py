"""The conformance kit over software NICs: real UCX between real processes, over shared memory and over TCP."""

from __future__ import annotations

import os

import pytest

from hal.drivers.contract import HostRoot
from hal.testing.kinds.rnic import RnicConformance
from hal.testing.kinds.rnic_peer import DriverSpec
from hal_rdma.driver import RdmaDriver

LIBRARY = {name: os.environ[name] for name in ("HAL_RDMA_UCX",) if name in os.environ}
"""Which library the whole run examines: one process can hold only one."""


class _Examined(RnicConformance):
    lacks = frozenset({"scrub", "reset"})
    software = ""

    @pytest.fixture
    def driver(self, tmp_path):
        self.environ = {"HAL_RDMA_SOFTWARE": self.software, "XDG_RUNTIME_DIR": str(tmp_path)} | LIBRARY
        return RdmaDriver((HostRoot(node="here"),), self.environ)

    def peer_driver_spec(self, driver):
        return DriverSpec("hal_rdma.driver", "RdmaDriver", ((HostRoot(node="here"),), self.environ))


class TestSharedMemory(_Examined):
    software = "near=shm;far=shm"


class TestTcp(_Examined):
    software = "near=tcp;far=tcp"
