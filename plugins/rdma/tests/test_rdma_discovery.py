"""What the driver finds on trees: what host discovery finds, completed; and what is missing costs only itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.drivers.contract import Cause, Context, DriverFactory, Grant, HostRoot, Reports
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceGone, DeviceNotFound, Unsupported
from hal.host.bluefield import find_cards
from hal.host.driver import SysfsDriver
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import LinkLayer, PhysicalState, PortState
from hal.model.device import Device
from hal.model.health import Health, Severity
from hal.model.inventory import merge
from hal.model.kind import Kind
from hal.testing.trees import FakeTree
from hal_mocks.faults import FaultType
from hal_mocks.machine import Machine
from hal_mocks.rnic import MockRnicDriver
from hal_mocks.sysfs import render
from hal_rdma import hal_drivers
from hal_rdma.driver import RdmaDriver
from hal_rdma.finding import find_nics
from hal_rdma.ports import read_ports

SOON = 10.0
GUID = "a088:c203:00ab:5f40"
ID = "rnic-a088c20300ab5f40"
MAPPED = "0000:0000:0000:0000:0000:ffff:0a09:0001"


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    tree = FakeTree(tmp_path / "machine")
    tree.numa(0, cpus="0-3")
    tree.pci("0000:17:00.0", parent="pci0000:16", vendor="15b3", device="1021", class_code="020700", numa_node=0)
    return tree


def driver_of(tree: FakeTree, tmp_path: Path) -> RdmaDriver:
    return RdmaDriver([HostRoot(node="n0", root=tree.root)], {"XDG_RUNTIME_DIR": str(tmp_path)})


def found(driver: RdmaDriver) -> list[Device]:
    return list(driver.discover(Deadline.after(SOON)).devices)


def test_the_plugin_registers_without_touching_anything() -> None:
    (factory,) = hal_drivers()
    assert isinstance(factory, DriverFactory)
    assert (factory.name, factory.kinds, factory.priority) == ("rdma", (Kind.RNIC,), 20)
    nowhere = Context(hosts=(HostRoot(node="n", root="/nonexistent"),), environ={})
    driver = factory.create(nowhere)
    assert driver.readiness().cause is Cause.NO_DRIVER
    assert isinstance(driver, Reports)
    assert len(driver.discover(Deadline.after(SOON)).problems) == 1


@pytest.mark.parametrize("profile", ["dgx-h100", "bluefield-host", "gb200-tray", "hostile"])
def test_everything_that_host_discovery_says_of_a_nic_stands(profile: str, request: pytest.FixtureRequest) -> None:
    request.node.add_marker(pytest.mark.hal_machine(profile))
    machine: Machine = request.getfixturevalue("hal_machine")
    roots = render(machine)
    plain = {d.id: d for d in SysfsDriver(roots).discover(Deadline.after(SOON)).devices if d.kind is Kind.RNIC}
    ours = found(RdmaDriver(roots, {}))
    assert [device.id for device in ours] == list(plain)
    for device in ours:
        other = plain[device.id]
        assert (device.name, device.aliases, device.location) == (other.name, other.aliases, other.location)
        assert {name: device.attributes[name] for name in other.attributes} == other.attributes
        assert device.driver == "rdma"
        assert device.allocatable
    merged = merge([(0, plain.values()), (20, ours)])
    assert [device.driver for device in merged] == ["rdma"] * len(ours)


@pytest.mark.hal_machine("dgx-h100")
def test_the_driver_and_the_mock_agree_on_every_nic(hal_machine: Machine) -> None:
    ours = {device.id: device for device in found(RdmaDriver(render(hal_machine), {}))}
    theirs = {device.id: device for device in MockRnicDriver(hal_machine).discover(Deadline.after(SOON)).devices}
    assert set(ours) == set(theirs)
    for device_id, device in ours.items():
        other = theirs[device_id]
        assert set(device.aliases) == set(other.aliases)
        assert device.capacity == other.capacity
        assert device.parent == other.parent
        assert device.links == other.links
        for name in set(device.attributes) & set(other.attributes) - {"model", "serial"}:
            assert device.value(name) == other.value(name), f"{device_id}.{name}"


@pytest.mark.hal_machine("dgx-h100")
def test_a_link_that_is_cut_is_seen_and_heals(hal_machine: Machine) -> None:
    driver = RdmaDriver(render(hal_machine), {})
    nic = found(driver)[0]
    assert driver.sample([nic.id], Deadline.after(SOON)) == []
    hal_machine.inject(nic.id, FaultType.LINK_DOWN)
    render(hal_machine)
    (condition,) = driver.sample([nic.id], Deadline.after(SOON))
    assert (condition.type, condition.severity) == ("PortDown", Severity.CRITICAL)
    assert "port 1 is down" in condition.evidence
    hal_machine.heal(nic.id)
    render(hal_machine)
    assert driver.sample([nic.id], Deadline.after(SOON)) == []


@pytest.mark.hal_machine("dgx-h100")
def test_a_nic_that_is_gone_hides_no_other(hal_machine: Machine, tmp_path: Path) -> None:
    driver = RdmaDriver(render(hal_machine), {"XDG_RUNTIME_DIR": str(tmp_path)})
    first, second, *_ = found(driver)
    hal_machine.inject(first.id, FaultType.FALLEN_OFF_BUS)
    render(hal_machine)
    (condition,) = driver.sample([first.id, second.id], Deadline.after(SOON))
    assert (condition.device, condition.severity) == (first.id, Severity.FATAL)
    with pytest.raises(DeviceGone):
        driver.prepare(first.id, Grant(lease="a", fence=1), Deadline.after(SOON))
    driver.unprepare(first.id, Grant(lease="a", fence=1), Deadline.after(SOON))


def test_a_recorded_tree_is_looked_at_and_not_used(tree: FakeTree, tmp_path: Path) -> None:
    tree.rdma("mlx5_0", node_guid=GUID, pci="0000:17:00.0")
    driver = driver_of(tree, tmp_path)
    assert driver.readiness().ready
    assert "recorded" in driver.readiness().detail
    for step in (
        lambda: driver.prepare(ID, Grant(lease="a", fence=1), Deadline.after(SOON)),
        lambda: driver.open(ID, OpenGuard(), Deadline.after(SOON)),
    ):
        with pytest.raises(Unsupported) as caught:
            step()
        assert caught.value.device == ID
        assert caught.value.hint
    with pytest.raises(DeviceNotFound):
        driver.sample(["rnic-none"], Deadline.after(SOON))


def test_ports_are_read_in_full(tree: FakeTree) -> None:
    gids = {f"fe80:0000:0000:0000:{GUID}": "IB/RoCE v1", MAPPED: "RoCE v2"}
    path = tree.rdma(
        "mlx5_0", node_guid=GUID, pci="0000:17:00.0", netdev="eth0", link_layer="Ethernet", gids=gids, ports=2
    )
    tree.write(f"{path}/ports/2/state", "1: DOWN")
    tree.write(f"{path}/ports/2/phys_state", "3: Disabled")
    tree.write(f"{path}/ports/2/rate", "40 Gb/sec (4X QDR)")
    one, two = find_nics([HostRoot(node="n0", root=tree.root)], Deadline.after(SOON))[0][0].ports
    assert (one.number, one.state, one.physical_state) == (1, PortState.ACTIVE, PhysicalState.LINK_UP)
    assert (one.link_layer, one.rate_gbps, one.lid) == (LinkLayer.ETHERNET, 400.0, 1)
    assert [(gid.index, gid.gid, gid.type, gid.netdev) for gid in one.gids] == [
        (0, f"fe80:0000:0000:0000:{GUID}", "IB/RoCE v1", "eth0"),
        (1, MAPPED, "RoCE v2", "eth0"),
    ]
    assert (two.state, two.physical_state, two.rate_gbps, two.up) == (
        PortState.DOWN,
        PhysicalState.DISABLED,
        40.0,
        False,
    )


def test_a_gid_keeps_its_index_behind_a_hole(tree: FakeTree) -> None:
    path = tree.rdma("mlx5_0", node_guid=GUID, pci="0000:17:00.0", gids={f"fe80:0000:0000:0000:{GUID}": "RoCE v2"})
    tree.write(f"{path}/ports/1/gids/1", "0000:0000:0000:0000:0000:0000:0000:0000")
    tree.write(f"{path}/ports/1/gids/2", MAPPED)
    tree.write(f"{path}/ports/1/gid_attrs/types/2", "RoCE v2")
    (port,) = find_nics([HostRoot(node="n0", root=tree.root)], Deadline.after(SOON))[0][0].ports
    assert [(gid.index, gid.netdev) for gid in port.gids] == [(0, ""), (2, "")]


def test_a_second_port_that_is_down_is_a_warning_only(tree: FakeTree, tmp_path: Path) -> None:
    path = tree.rdma("mlx5_0", node_guid=GUID, pci="0000:17:00.0", ports=2)
    tree.write(f"{path}/ports/2/state", "1: DOWN")
    (device,) = found(driver_of(tree, tmp_path))
    assert [(c.type, c.severity) for c in device.conditions] == [("PortDown", Severity.WARN)]
    assert [link.state for link in device.links] == ["up", "down"]


def test_a_state_that_cannot_be_read_is_unknown_not_down(tree: FakeTree, tmp_path: Path) -> None:
    path = tree.rdma("mlx5_0", node_guid=GUID, pci="0000:17:00.0")
    tree.remove(f"{path}/ports/1/state")
    tree.fifo(f"{path}/ports/1/state")  # firmware that hangs
    (device,) = found(driver_of(tree, tmp_path))
    assert [condition.type for condition in device.conditions] == ["PortUnknown"]
    assert device.health is Health.UNKNOWN


def test_virtual_functions_and_subfunctions_are_devices_that_share_their_nics_fate(
    tree: FakeTree, tmp_path: Path
) -> None:
    tree.rdma("mlx5_0", node_guid=GUID, pci="0000:17:00.0")
    tree.pci("0000:17:00.1", parent="pci0000:16", vendor="15b3", device="101e", class_code="020700", numa_node=0)
    tree.rdma("mlx5_1", node_guid="a088:c203:00ab:5f41", pci="0000:17:00.1")
    physical = tree.path_of("0000:17:00.0")
    tree.write(f"{physical}/sriov_totalvfs", 8)
    tree.write(f"{physical}/sriov_numvfs", 1)
    tree.link(f"{tree.path_of('0000:17:00.1')}/physfn", physical)
    inside = f"{physical}/mlx5_core.sf.4/infiniband/mlx5_2"
    tree.device(inside, "class/infiniband", {"node_guid": "a088:c203:00ab:5f42", "ports/1/state": "4: ACTIVE"})
    whole, virtual, sub = found(driver_of(tree, tmp_path))
    assert (whole.value("max_vfs"), whole.value("vfs"), whole.parent) == (8, 1, None)
    assert (virtual.value("physical_function"), virtual.parent) == ("0000:17:00.0", whole.id)
    assert (sub.value("subfunction"), sub.parent) == ("mlx5_core.sf.4", whole.id)


def test_soft_roce_has_no_counters_and_that_is_no_zero(tree: FakeTree, tmp_path: Path) -> None:
    tree.netdev("d0", pci="0000:17:00.0")
    tree.rdma("rxe0", node_guid=GUID, netdev="d0", link_layer="Ethernet", counters=False)
    (device,) = found(driver_of(tree, tmp_path))
    assert device.value("counters") is None
    assert device.allocatable


@pytest.mark.hal_machine("bluefield-host")
def test_a_cards_serial_number_is_read_once(hal_machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    import hal_rdma.finding as finding

    reads: list[object] = []
    monkeypatch.setattr(finding, "find_cards", lambda scan: reads.append(scan) or find_cards(scan))
    driver = RdmaDriver(render(hal_machine), {})
    looks = [found(driver) for _ in range(3)]
    assert [[device.parent for device in look] for look in looks] == [[device.parent for device in looks[0]]] * 3
    assert looks[0][0].parent is not None
    assert len(reads) == 1


def test_ports_of_a_device_that_is_not_there_are_none(tree: FakeTree) -> None:
    from hal.host.tree import HostTree

    with HostTree(tree.root) as host:
        assert read_ports(host.sys, "mlx5_9") == ()
