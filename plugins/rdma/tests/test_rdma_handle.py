"""The handle over a tree that passes for the running machine, and a transport that only remembers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import hal_rdma.transport as transports
from hal.drivers.contract import Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import DeadlineExceeded, DeviceGone, InvalidArgument, NotReady, StaleFence, TransferError
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import Access
from hal.model.attributes import Absence, Attribute, known
from hal.testing.trees import FakeTree
from hal_rdma.driver import RdmaDriver
from hal_rdma.handle import RdmaNic
from hal_rdma.transport import Choice, Opening, choose

ID = "rnic-a088c20300ab5f40"


class Remembers:
    """A transport that carries nothing."""

    name = "memory"

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.closed = 0

    def register(self, memory: object, access: Access) -> object:
        return ("region", memory, access)

    def endpoint(self, port: int, rnr_timeout_seconds: float) -> object:
        return ("endpoint", port, rnr_timeout_seconds)

    def telemetry(self) -> Mapping[str, Attribute]:
        return {"transport_regions": known(3, "memory")}

    def close(self) -> None:
        self.closed += 1

    def abandon(self) -> None:
        """Nothing is shared."""


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    tree = FakeTree(tmp_path / "machine")
    path = tree.rdma("mlx5_0", node_guid="a088:c203:00ab:5f40", ports=2)
    tree.write(f"{path}/ports/2/state", "1: DOWN")
    tree.write(f"{path}/ports/2/counters/link_downed", 4)
    return tree


@pytest.fixture
def nic(tree: FakeTree, tmp_path: Path) -> RdmaNic:
    host = HostRoot(node="n0", root=tree.root)
    (device,) = RdmaDriver([host], {}).discover(Deadline.after(10)).devices
    nic = RdmaNic(device, OpenGuard(), host, "mlx5_0")
    opening = Opening(device=device, environ={}, check=lambda: None, enter=nic._enter, ports=nic.read_ports)
    nic.attach(Choice(name="memory", reason="a test", open=Remembers), Remembers(opening))
    return nic


def test_memory_and_endpoints_are_the_transports(nic: RdmaNic) -> None:
    assert nic.register(64, Access.LOCAL_WRITE) == ("region", 64, Access.LOCAL_WRITE)
    assert nic.endpoint(1, rnr_timeout_seconds=2.0) == ("endpoint", 1, 2.0)


def test_an_endpoint_on_a_port_that_is_down_is_refused(nic: RdmaNic) -> None:
    with pytest.raises(TransferError) as caught:
        nic.endpoint(2)
    assert caught.value.hint
    with pytest.raises(InvalidArgument):
        nic.endpoint(3)


def test_telemetry_tells_the_links_and_what_carries_the_data(nic: RdmaNic) -> None:
    told = nic.telemetry()
    assert (told["port1_state"].value, told["port2_state"].value) == ("active", "down")
    assert told["port1_rate_gbps"].value == 400.0
    assert told["link_downed"].value == 4, "of both ports"
    assert told["temperature_celsius"].absent is Absence.NOT_REPORTED
    assert (told["transport"].value, told["transport_reason"].value) == ("memory", "a test")
    assert told["transport_regions"].value == 3


def test_the_sensor_of_the_nics_function_is_read(tree: FakeTree) -> None:
    tree.pci("0000:17:00.0", parent="pci0000:16", vendor="15b3", device="1021", class_code="020700")
    tree.rdma("mlx5_1", node_guid="a088:c203:00ab:5f41", pci="0000:17:00.0")
    tree.write(f"{tree.path_of('0000:17:00.0')}/hwmon/hwmon3/temp1_input", 61500)
    host = HostRoot(node="n0", root=tree.root)
    devices = RdmaDriver([host], {}).discover(Deadline.after(10)).devices
    device = next(one for one in devices if one.name == "mlx5_1")
    nic = RdmaNic(device, OpenGuard(), host, "mlx5_1")
    transport = Remembers(Opening(device=device, environ={}, check=lambda: None, enter=nic._enter, ports=tuple))
    nic.attach(Choice(name="memory", reason="a test", open=Remembers), transport)
    assert nic.telemetry()["temperature_celsius"].value == 61.5


def test_the_best_rate_that_was_seen_is_the_ports_most(nic: RdmaNic, tree: FakeTree) -> None:
    assert nic.ports()[0].max_rate_gbps == 400.0
    tree.write("class/infiniband/mlx5_0/ports/1/rate", "100 Gb/sec (4X EDR)")
    assert (nic.ports()[0].rate_gbps, nic.ports()[0].max_rate_gbps) == (100.0, 400.0)


def test_a_nic_that_was_pulled_is_gone(nic: RdmaNic, tree: FakeTree) -> None:
    tree.remove("class/infiniband/mlx5_0")
    tree.remove("devices/virtual/infiniband/mlx5_0")
    with pytest.raises(DeviceGone):
        nic.ports()


def test_closing_closes_the_transport_once(nic: RdmaNic) -> None:
    transport = nic._transport
    nic.close()
    nic.close()
    assert transport.closed == 1
    with pytest.raises(InvalidArgument):
        nic.register(64)


@pytest.fixture
def driver(tree: FakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RdmaDriver:
    import hal_rdma.driver as module
    import hal_rdma.finding as finding
    import hal_rdma.handle as handle
    from hal.host.tree import HostTree

    for place in (module, finding, handle):
        monkeypatch.setattr(place, "HostTree", lambda root: HostTree(tree.root if root is None else root))
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    return RdmaDriver([HostRoot(node="n0")], environ)


def offer(monkeypatch: pytest.MonkeyPatch, **candidates) -> None:
    monkeypatch.setattr(transports, "_CANDIDATES", {name: lambda pair=pair: pair for name, pair in candidates.items()})


def test_the_first_transport_that_can_is_chosen_and_says_why(driver, monkeypatch) -> None:
    offer(monkeypatch, first=(lambda *_: "no library", Remembers), second=(lambda *_: "", Remembers))
    (device,) = driver.discover(Deadline.after(10)).devices
    choice = choose(device, {})
    assert (choice.name, choice.reason) == ("second", "not first: no library")
    assert choose(device, {"HAL_RDMA_TRANSPORT": "second"}).reason == "forced by HAL_RDMA_TRANSPORT"
    with driver.open(ID, OpenGuard(), Deadline.after(10)) as nic:
        assert nic.telemetry()["transport"].value == "second"
        assert nic.register(8, Access.LOCAL_WRITE)[0] == "region"


def test_no_transport_names_the_reason_against_each(driver, monkeypatch) -> None:
    offer(monkeypatch, first=(lambda *_: "no library", Remembers), second=(lambda *_: "no permission", Remembers))
    with pytest.raises(NotReady) as caught:
        driver.open(ID, OpenGuard(), Deadline.after(10))
    assert "first: no library; second: no permission" in str(caught.value)


def test_a_library_that_hangs_or_breaks_is_an_error_of_one_device(driver, monkeypatch) -> None:
    import threading

    released = threading.Event()

    def hang(opening: Opening) -> Remembers:
        released.wait(30)
        return Remembers(opening)

    def fall(opening: Opening) -> Remembers:
        raise ValueError("vendor nonsense")

    offer(monkeypatch, hanging=(lambda *_: "", hang))
    with pytest.raises(DeadlineExceeded):
        driver.open(ID, OpenGuard(), Deadline.after(0.05))
    released.set()
    offer(monkeypatch, falling=(lambda *_: "", fall))
    with pytest.raises(NotReady) as caught:
        driver.open(ID, OpenGuard(), Deadline.after(10))
    assert "vendor nonsense" in str(caught.value)


def test_fences_outlive_the_driver(driver: RdmaDriver, tmp_path: Path) -> None:
    driver.prepare(ID, Grant(lease="new", fence=20), Deadline.after(10))
    again = RdmaDriver([HostRoot(node="n0")], {"XDG_RUNTIME_DIR": str(tmp_path)})
    with pytest.raises(StaleFence):
        again.prepare(ID, Grant(lease="old", fence=19), Deadline.after(10))
    driver.unprepare(ID, Grant(lease="new", fence=20), Deadline.after(10))
