"""Two NICs, opened and connected: what the checks for RDMA NICs stand on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import pytest

from hal.drivers.contract import Driver, Grant
from hal.drivers.guard import OpenGuard
from hal.interfaces.common import Handle
from hal.interfaces.deadline import Deadline
from hal.interfaces.operation import Operation
from hal.interfaces.rnic import ALL_ACCESS, Connection, Region, Rnic
from hal.model.device import Device
from hal.testing.conformance import DriverConformance
from hal.testing.kinds.rnic_peer import DriverSpec, PeerProcess

WITHIN = 30.0
"""After so many seconds a check no longer waits for a verb; an emulated machine that shares its processor is slow."""


class Pair(NamedTuple):
    """Two connected sides; ``region`` belongs to the far one, and ``near`` may do anything to it."""

    near: Connection
    far: Connection
    region: Region


class RnicBench(DriverConformance):
    """The fixtures for RDMA NICs, and the hook for a second process."""

    def peer_driver_spec(self, driver: Driver) -> DriverSpec | None:
        """Override: module, function and arguments that build the same driver in another process."""
        return None

    @pytest.fixture
    def peer_device(self, driver: Driver, device: Device) -> Device:
        """The NIC at the other end: another one of the same link layer in the same rack, or the same one."""
        for other in driver.discover(Deadline.after(10)).devices:
            if (
                other.allocatable
                and other.id != device.id
                and other.value("link_layer") == device.value("link_layer")
                and other.location.rack == device.location.rack
            ):
                return other
        return device

    @pytest.fixture
    def nic(self, handle: Handle) -> Rnic:
        """The examined NIC."""
        assert isinstance(handle, Rnic), "a handle of this kind is an hal.interfaces.rnic.Rnic"
        return handle

    @pytest.fixture
    def peer(self, driver: Driver, peer_device: Device, device: Device, grant: Grant) -> Iterator[Rnic]:
        """The NIC at the other end, opened."""
        if peer_device.id != device.id:
            driver.prepare(peer_device.id, grant, Deadline.after(10))
        handle = cast(Rnic, driver.open(peer_device.id, OpenGuard(grant.lease, grant.fence), Deadline.after(10)))
        yield handle
        handle.close()
        if peer_device.id != device.id:
            driver.unprepare(peer_device.id, Grant(lease=grant.lease, fence=1_000_000), Deadline.after(10))

    @pytest.fixture
    def pair(self, nic: Rnic, peer: Rnic) -> Iterator[Pair]:
        """Two connected sides with 4 KiB between them."""
        near, far = connect(nic, peer)
        with peer.register(4096, ALL_ACCESS) as region, near, far:
            yield Pair(near, far, region)

    @pytest.fixture
    def other_process(self, driver: Driver, peer_device: Device, device: Device, grant: Grant) -> Iterator[PeerProcess]:
        """The NIC at the other end, opened in a process of its own."""
        spec = self.peer_driver_spec(driver)
        assert spec is not None, "give peer_driver_spec(), or declare lacks = {'second-process'}"
        if peer_device.id != device.id:
            driver.prepare(peer_device.id, grant, Deadline.after(10))
        with PeerProcess(spec, peer_device.id) as process:
            yield process
        if peer_device.id != device.id:
            driver.unprepare(peer_device.id, Grant(lease=grant.lease, fence=1_000_000), Deadline.after(10))


def finish(connection: Connection, operation: Operation[Any], within_seconds: float = WITHIN) -> None:
    """Wait for an operation, and until it is visible at the target."""
    operation.wait(Deadline.after(within_seconds))
    connection.flush().wait(Deadline.after(within_seconds))


def connect(near: Rnic, far: Rnic, *, rnr_timeout_seconds: float = 5.0) -> tuple[Connection, Connection]:
    """Connect two NICs of this process with each other."""
    here = near.endpoint(rnr_timeout_seconds=rnr_timeout_seconds)
    there = far.endpoint(rnr_timeout_seconds=rnr_timeout_seconds)
    return here.connect(there.address), there.connect(here.address)


def flush_until_it_ends(connection: Connection, deadline: Deadline) -> None:
    """Flush again and again: with nothing under way one may be done before the news is there that the peer is gone."""
    while True:
        deadline.check(during="waiting to hear that the peer is gone")
        connection.flush().wait(deadline)
