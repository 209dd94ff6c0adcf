"""The conformance kit over verbs, on whatever RDMA device this machine has: soft-RoCE in the lab, an HCA elsewhere.

It wants a device of ``class/infiniband`` whose port is up, its file in ``/dev/infiniband``, and python3-pyverbs.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from hal.drivers.contract import HostRoot
from hal.errors import (
    DeadlineExceeded,
    DeviceBusy,
    FlushedError,
    InvalidArgument,
    RemoteAccessError,
    TransferError,
)
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS, CompletionCode, ConnectionState, Rnic
from hal.model.device import Device
from hal.testing.kinds.rnic import RnicConformance
from hal.testing.kinds.rnic_bench import Pair, connect, finish
from hal.testing.kinds.rnic_peer import DriverSpec
from hal_rdma.driver import RdmaDriver
from hal_rdma.verbs import why_not_verbs
from hal_rdma.verbs.binding import load_verbs
from hal_rdma.verbs.queue import DEPTH
from hal_rdma.verbs.wire import pack_key, unpack_key

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
load_verbs()  # on an emulated machine reading the library for the first time takes longer than opening a device may


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
        return DriverSpec("hal_rdma.driver", "driver_with_verbs", (HOSTS, self.environ))

    # What the kit does not ask of every driver

    def test_verbs_is_what_was_forced(self, nic: Rnic) -> None:
        told = nic.telemetry()
        assert told["transport"].value == "verbs"
        assert told["transport_reason"].value == "forced by HAL_RDMA_TRANSPORT"

    def test_more_requests_than_the_queue_is_deep_all_complete(self, pair: Pair) -> None:
        words = [number.to_bytes(8, "little") for number in range(500)]
        puts = [pair.near.put(word, pair.region.address + 8 * n, pair.region.rkey) for n, word in enumerate(words)]
        for put in puts:
            put.wait(Deadline.after(30))
        pair.near.flush().wait(Deadline.after(30))
        assert list(pair.region.view[:4000].cast("Q")) == list(range(500))

    def test_a_full_receive_queue_is_busy_and_breaks_nothing(self, pair: Pair) -> None:
        buffers = [bytearray(8) for _ in range(DEPTH)]
        for buffer in buffers:
            pair.far.recv(buffer)
        with pytest.raises(DeviceBusy):
            pair.far.recv(bytearray(8))
        pair.near.send(b"first").wait(Deadline.after(10))
        assert buffers[0][:5] == b"first"

    def test_long_patience_ends_by_the_clock_with_the_nics_code(self, nic: Rnic, peer: Rnic) -> None:
        near, far = connect(nic, peer, rnr_timeout_seconds=0.2)
        waiting = near.recv(bytearray(8))
        with pytest.raises(TransferError) as caught:
            near.send(b"nobody listens").wait(Deadline.after(10))
        assert caught.value.code == CompletionCode.RNR_RETRY_EXCEEDED
        with pytest.raises(FlushedError):
            waiting.wait(Deadline.after(10))
        assert far.state is ConnectionState.RTS, "the other side did nothing wrong"

    def test_an_operation_ends_by_its_deadline_and_the_connection_goes_on(self, pair: Pair) -> None:
        late = pair.far.recv(bytearray(8), deadline=Deadline.after(0.05))
        with pytest.raises(DeadlineExceeded):
            late.wait(Deadline.after(10))
        pair.near.put(b"on", pair.region.address, pair.region.rkey).wait(Deadline.after(10))
        assert pair.near.state is ConnectionState.RTS

    def test_a_key_of_another_handle_is_refused(self, nic: Rnic, peer: Rnic, pair: Pair) -> None:
        with nic.register(64, ALL_ACCESS) as mine, pytest.raises(RemoteAccessError):
            finish(pair.near, pair.near.put(b"x", mine.address, mine.rkey))

    def test_a_forged_key_that_looks_right_is_refused_by_the_nic(self, pair: Pair) -> None:
        key = unpack_key(pair.region.rkey)
        assert key is not None
        with pytest.raises(RemoteAccessError):
            finish(pair.near, pair.near.put(b"x", pair.region.address, pack_key(key._replace(key=key.key ^ 0xFF00))))
        assert pair.region.view[0] == 0

    def test_a_forked_child_is_refused_and_leaves_the_parents_queue_pairs_alone(self, nic: Rnic, pair: Pair) -> None:
        child = os.fork()
        if not child:
            status = 1
            try:
                nic.ports()
            except InvalidArgument:
                try:
                    pair.near.put(b"child", pair.region.address, pair.region.rkey)
                except InvalidArgument:
                    nic.close()
                    gc.collect()
                    status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        pair.near.put(b"parent", pair.region.address, pair.region.rkey).wait(Deadline.after(10))
        pair.near.flush().wait(Deadline.after(10))
        assert pair.region.view[:6] == b"parent"
