from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hal.drivers.contract import HostRoot
from hal.host.driver import discover_host
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Absence
from hal.model.device import Device, alias
from hal.model.kind import Kind
from hal_mocks import sysfs
from hal_mocks.clock import VirtualClock
from hal_mocks.dpu import MockDpuDriver
from hal_mocks.faults import FaultType
from hal_mocks.gpu import MockGpuDriver
from hal_mocks.machine import Machine, open_machine
from hal_mocks.names import devices_of
from hal_mocks.pmem import MockPmemDriver
from hal_mocks.profile import load_profile, parse_profile, profile_names
from hal_mocks.rnic import MockRnicDriver
from hal_mocks.sysfs import host_roots, render
from hal_mocks.upmem import MockUpmemDriver

OFTEN = [name for name in profile_names() if name not in ("dgx-hall", "rack")]
DRIVERS = (MockGpuDriver, MockRnicDriver, MockDpuDriver, MockPmemDriver, MockUpmemDriver)
SOON = Deadline.after(30)

SHARED = frozenset(
    {
        "pci_vendor",
        "pci_device",
        "pci_class",
        "pci_driver",
        "link_speed_gts",
        "link_width",
        "link_max_speed_gts",
        "link_max_width",
        "numa_node",
        "uuid",
        "serial",
        "firmware",
        "node_guid",
        "netdev",
        "port_state",
        "link_layer",
        "rate_gbps",
        "board_id",
        "gids",
        "generation",
        "mode",
        "set_cookie",
        "dimms",
        "persistence_domain",
        "size_bytes",
        "memory_bytes",
        "read_only",
        "mram_bytes",
        "clock_hz",
        "control_interfaces",
        "dpus_per_ci",
        "channel",
    }
)


@pytest.fixture
def machine(tmp_path):
    def make(profile: str) -> Machine:
        return Machine(load_profile(profile), tmp_path / profile, VirtualClock())

    return make


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Machines that many tests look at, and that are left without faults: a tree takes a while to write."""
    made: dict[str, Machine] = {}

    def make(profile: str) -> Machine:
        if profile not in made:
            made[profile] = Machine(load_profile(profile), tmp_path_factory.mktemp(profile), VirtualClock())
        return made[profile]

    return make


def found_on(machine: Machine) -> dict[str, Device]:
    return {device.id: device for root in render(machine) for device in discover_host(root).devices}


def twin_of(device: Device, found: dict[str, Device]) -> Device | None:
    if device.id in found:
        return found[device.id]
    address = alias(device, "pci")
    same = [
        other
        for other in found.values()
        if address and alias(other, "pci") == address and other.location.node == device.location.node
    ]
    return same[0] if same else None


@pytest.mark.parametrize("profile", OFTEN)
def test_host_discovery_and_the_mock_drivers_agree_on_every_shared_fact(rendered, profile):
    mock = rendered(profile)
    found = found_on(mock)
    compared = 0
    for driver in DRIVERS:
        for device in driver(mock).discover(SOON).devices:
            twin = twin_of(device, found)
            if twin is None:
                assert device.kind is Kind.GPU, f"{device.name} is not in sysfs"
                assert device.location.pci_address is None
                continue
            assert twin.kind is device.kind
            if device.kind is not Kind.MEMORY:  # the kernel does not say where a DIMM is plugged
                assert twin.location == device.location, device.name
            assert twin.parent == device.parent
            for name in SHARED & twin.attributes.keys() & device.attributes.keys():
                theirs, ours = twin.attributes[name], device.attributes[name]
                if theirs.known and ours.known:
                    assert theirs.value == ours.value, f"{device.name}: {name}"
                    compared += 1
    assert compared or profile == "edge-soc"


@pytest.mark.parametrize("profile", OFTEN)
def test_everything_in_the_graph_is_found_in_its_tree_under_its_own_id(rendered, profile):
    mock = rendered(profile)
    found = found_on(mock)
    for host in mock.graph.hosts:
        for named in devices_of(host):
            address = next((name[4:] for name in named.aliases if name.startswith("pci:")), None)
            by_place = f"{host.name}/pci/{address}"
            if named.kind is Kind.GPU and address is None:
                continue
            device = found.get(named.id) or found.get(by_place)
            assert device is not None, named
            assert device.kind is named.kind
        for function in host.pci:
            assert any(d.location.pci_address == function.address for d in found.values())


@pytest.mark.parametrize("profile", OFTEN)
def test_numa_nodes_are_seen_as_they_are_described(rendered, profile):
    mock = rendered(profile)
    found = found_on(mock)
    for host in mock.graph.hosts:
        for node in host.numa:
            cpus, memory = found[f"{host.name}/cpu/{node.id}"], found[f"{host.name}/memory/{node.id}"]
            assert cpus.value("cpulist") == node.cpus
            assert cpus.value("cpu_model") == host.cpu_model
            assert cpus.value("numa_distances") == node.distances
            if memory.attributes["memory_bytes"].known:
                assert memory.value("memory_bytes") == node.memory_bytes


@pytest.mark.parametrize("profile", OFTEN)
def test_every_link_of_a_tree_leads_to_something_in_it(rendered, profile):
    for root in render(rendered(profile)):
        top = os.path.realpath(root.root)
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                path = Path(folder, name)
                if path.is_symlink() and "hal-absent" not in os.readlink(path):
                    assert os.path.realpath(path).startswith(top + "/")
                    assert path.exists(), path


def test_a_tree_has_the_kernels_form(rendered):
    (root,) = render(rendered("dgx-h100"))
    link = root.path("sys/bus/pci/devices/0000:18:00.0")
    target = "../../../devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0"
    assert os.readlink(link) == target
    assert (link / "current_link_speed").read_text() == "32.0 GT/s PCIe\n"
    assert (link / "driver").resolve().name == "nvidia"
    assert "PCI_ID=10DE:2330\n" in (link / "uevent").read_text()
    port = root.path("sys/class/infiniband/mlx5_0/ports/1")
    assert (port / "rate").read_text() == "400 Gb/sec (4X NDR)\n"
    assert (port / "state").read_text() == "4: ACTIVE\n"
    assert root.path("sys/class/infiniband/mlx5_0/device").resolve().name == "0000:19:00.0"


def test_hostile_trees_cost_attributes_and_never_the_healthy_devices(rendered):
    mock = rendered("hostile")
    (root,) = render(mock)
    discovery = discover_host(root)
    found = {device.name: device for device in discovery.devices}
    (host,) = mock.graph.hosts
    assert found["mlx5_0"].id == mock.resolve("mlx5_0")
    assert found["mlx5_0"].attributes["numa_node"].value == 1
    gpus = {device.location.pci_address: device for device in discovery.devices if device.kind is Kind.GPU}
    assert host.gpus[0].pci in gpus
    assert gpus[host.gpus[0].pci].value("uuid") == host.gpus[0].uuid
    assert found["mlx5_1"].why_absent("node_guid") is Absence.PERMISSION
    assert found["mlx5_2"].why_absent("port_state") in (Absence.TIMEOUT, Absence.MALFORMED)
    assert found["nvme2"].why_absent("model") is Absence.MALFORMED
    drives = [device for device in discovery.devices if device.value("serial") == "S6EW0000000001"]
    assert len({device.id for device in drives}) == 2
    assert all(device.location.pci_address.startswith("10000:") for device in drives)


def names(root: HostRoot, kind: Kind) -> set[str | None]:
    return {device.location.pci_address for device in discover_host(root).devices if device.kind is kind}


@pytest.mark.parametrize(("name", "kind"), [("gpu3", Kind.GPU), ("mlx5_2", Kind.RNIC), ("nvme1", Kind.NVME)])
def test_what_falls_off_the_bus_is_gone_from_sysfs_until_it_heals(rendered, name, kind):
    mock = rendered("dgx-h100")
    (root,) = render(mock)
    before = names(root, kind)
    address = next(alias[4:] for alias in mock.named(name).aliases if alias.startswith("pci:"))
    mock.inject(name, FaultType.FALLEN_OFF_BUS)
    assert names(root, kind) == before - {address}
    assert not root.path("sys/bus/pci/devices", address).is_symlink()
    mock.heal(name)
    assert names(root, kind) == before


def test_a_card_that_falls_off_takes_its_nics_and_its_rshim_along(machine):
    mock = machine("bluefield-host")
    (root,) = render(mock)
    mock.inject("dpu0", FaultType.FALLEN_OFF_BUS)
    left = [device.name for device in discover_host(root).devices if device.kind in (Kind.RNIC, Kind.DPU)]
    assert len(left) == 3
    assert not root.path("dev/rshim0").exists()
    assert root.path("dev/rshim1/misc").exists()


def test_links_go_down_and_slow_as_the_drivers_say(rendered):
    mock = rendered("dgx-h100")
    (root,) = render(mock)
    mock.inject("mlx5_0", FaultType.LINK_DOWN)
    mock.inject("mlx5_8", FaultType.LINK_DOWN)
    mock.inject("mlx5_1", FaultType.LINK_DEGRADED, generation=6, width=2)
    mock.inject("gpu0", FaultType.LINK_DEGRADED, generation=3, width=4)
    ports = root.path("sys/class/infiniband")
    assert (ports / "mlx5_0/ports/1/state").read_text() == "1: DOWN\n"
    assert (ports / "mlx5_0/ports/1/phys_state").read_text() == "2: Polling\n"
    assert (ports / "mlx5_8/ports/1/phys_state").read_text() == "3: Disabled\n"
    gpu = root.path("sys/bus/pci/devices/0000:18:00.0")
    assert (gpu / "current_link_speed").read_text() == "8.0 GT/s PCIe\n"
    assert (gpu / "max_link_speed").read_text() == "32.0 GT/s PCIe\n"
    found = found_on(mock)
    for driver in (MockRnicDriver(mock), MockGpuDriver(mock)):
        for device in driver.discover(SOON).devices:
            twin = twin_of(device, found)
            assert twin is not None
            for name in ("port_state", "rate_gbps", "link_speed_gts", "link_width"):
                if name in device.attributes and name in twin.attributes:
                    assert twin.value(name) == device.value(name), (device.name, name)
    mock.heal()


def test_a_region_turns_read_only_and_bad_in_places(machine):
    mock = machine("optane-server")
    (root,) = render(mock)
    mock.inject("region0", FaultType.READ_ONLY)
    mock.inject("region0", FaultType.BAD_BLOCK, offset=1000, length=100)
    region = root.path("sys/bus/nd/devices/region0")
    assert (region / "read_only").read_text() == "1\n"
    assert (region / "badblocks").read_text() == "1 2\n"
    mock.heal("region0", FaultType.READ_ONLY)
    assert (region / "read_only").read_text() == "0\n"
    assert root.path("sys/bus/nd/devices/region1/badblocks").read_text() == ""


def test_a_cxl_module_is_one_device_though_the_kernel_shows_its_memory_twice(rendered):
    found = [device for device in found_on(rendered("cxl-server")).values() if device.kind is Kind.MEMORY]
    assert sorted(device.name for device in found) == ["mem0", "mem1", "mem2", "mem3", "memory0", "memory1"]


@pytest.mark.parametrize(("profile", "dimm", "bus"), [("optane-server", "nmem3", "nd"), ("cxl-server", "mem1", "cxl")])
def test_a_module_that_falls_off_takes_its_region_along_and_leaves_the_other_modules(rendered, profile, dimm, bus):
    mock = rendered(profile)
    (root,) = render(mock)
    devices = root.path("sys/bus", bus, "devices")
    before = set(os.listdir(devices))
    mock.inject(dimm, FaultType.FALLEN_OFF_BUS)
    gone = before - set(os.listdir(devices))
    assert {dimm, "region0"} <= gone
    assert not any(name.startswith(("nmem", "mem")) and name != dimm for name in gone)
    assert "region1" not in gone
    assert discover_host(root).problems == ()
    mock.heal(dimm)
    assert set(os.listdir(devices)) == before


def test_a_lost_drive_is_dead_to_the_kernel(rendered):
    mock = rendered("edge-soc")
    (root,) = render(mock)
    mock.inject("nvme0", FaultType.LOST)
    (drive,) = [device for device in discover_host(root).devices if device.kind is Kind.NVME]
    assert drive.value("state") == "dead"
    assert drive.conditions
    mock.heal()


def test_a_hung_device_answers_with_fifos_and_hides_nobody(rendered):
    mock = rendered("dgx-h100")
    (root,) = render(mock)
    before = len(discover_host(root).devices)
    mock.inject("mlx5_3", FaultType.HANG)
    path = root.path("sys/class/infiniband/mlx5_3/node_guid")
    assert path.is_fifo()
    found = {device.name: device for device in discover_host(root).devices}
    assert len(found) == before
    assert not found["mlx5_3"].attributes["node_guid"].known
    mock.heal("mlx5_3")
    assert path.read_text().count(":") == 3


def test_a_fault_that_begins_and_ends_by_itself_comes_and_goes_in_the_tree(machine):
    mock = machine("dgx-h100")
    render(mock)
    mock.inject("mlx5_0", FaultType.LINK_DOWN, after_seconds=10, duration_seconds=5)
    state = Path(mock.state.folder, "sys/dgx-h100/sys/class/infiniband/mlx5_0/ports/1/state")
    seen = []
    for _ in range(4):
        render(mock)
        seen.append(state.read_text()[0])
        mock.clock.sleep(6)
    assert seen == ["4", "4", "1", "4"]


def test_a_machine_without_a_tree_gets_none_by_a_fault(machine):
    mock = machine("dgx-h100")
    mock.inject("gpu0", FaultType.LOST)
    assert not (mock.state.folder / "sys").exists()


def test_the_tree_is_rendered_once_and_again_when_the_profile_changes(tmp_path, monkeypatch):
    profile = tmp_path / "mine.toml"
    text = '[[numa]]\ncores = 2\nmemory = "1 GiB"\n[[nic]]\nmodel = "X550"\n'
    profile.write_text(text)
    environ = {"HAL_MACHINE": f"{profile}?state={tmp_path / 'state'}"}
    (root,) = host_roots(environ)
    assert len(names(root, Kind.NIC)) == 1
    with monkeypatch.context() as patched:
        patched.setattr(sysfs, "tree_of", None)
        assert host_roots(environ) == (root,)
        patched.setattr("hal_mocks.machine.open_machine", None)
        assert host_roots(environ) == (root,)
    profile.write_text(text + '[[nic]]\nmodel = "I210"\n')
    (again,) = host_roots(environ)
    assert again == root
    assert len(names(again, Kind.NIC)) == 2


def test_another_process_sees_the_fault_in_the_tree(tmp_path):
    environ = {"HAL_MACHINE": f"dgx-h100?state={tmp_path}"}
    (root,) = host_roots(environ)
    code = "import sys; from hal_mocks.cli import main; sys.exit(main(['fault', 'gpu0', 'fallen-off-bus']))"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environ}, check=True, stdout=subprocess.DEVNULL)
    assert len(names(root, Kind.GPU)) == 7
    mock = open_machine(environ)
    assert mock is not None
    assert [fault.type for fault in mock.faults_of(mock.resolve("gpu0"))] == [FaultType.FALLEN_OFF_BUS]
    mock.heal()
    assert len(names(root, Kind.GPU)) == 8


def test_racks_have_a_root_for_every_host(machine):
    roots = render(machine("rack"))
    assert [(root.node, root.rack) for root in roots] == [(f"rack-1-n{n}", "rack-1") for n in range(1, 7)]
    assert sum(len(names(root, Kind.GPU)) for root in roots) == 17


def test_soft_roce_has_no_pci_function_and_no_counters(tmp_path):
    text = '[[numa]]\ncores = 1\nmemory = "1 GiB"\n[[nic]]\nmodel = "X550"\nname = "eth0"\n'
    graph = parse_profile(text + '[[rnic]]\nname = "rxe0"\nsoft = true\nnetdev = "eth0"\n')
    mock = Machine(graph, tmp_path, VirtualClock())
    found = {device.name: device for device in found_on(mock).values()}
    assert found["rxe0"].value("netdev") == "eth0"
    assert found["rxe0"].location.pci_address is None
    assert found["rxe0"].why_absent("counters") is Absence.NOT_REPORTED
