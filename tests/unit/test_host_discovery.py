import pytest

from hal.drivers.contract import Discovery, HostRoot
from hal.host.driver import discover_host
from hal.model.attributes import Absence
from hal.model.device import Device, alias
from hal.model.health import Health
from hal.model.kind import Kind
from hal.testing.example_tree import one_of_each
from hal.testing.trees import FakeTree


def look(tree: FakeTree, **options) -> Discovery:
    return discover_host(HostRoot(node="n0", root=tree.root, rack="r1"), **options)


def by_name(tree: FakeTree, **options) -> dict[str, Device]:
    return {device.name: device for device in look(tree, **options).devices}


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> dict[str, Device]:
    found = look(one_of_each(tmp_path_factory.mktemp("one")))
    assert not found.problems
    return {device.name: device for device in found.devices}


def test_every_device_has_the_id_that_its_plugin_gives_it(machine):
    ids = {name: machine[name].id for name in ("mlx5_0", "nvme0", "dpu0", "region0", "nmem0", "mem0", "dpu_rank1")}
    assert ids == {
        "mlx5_0": "rnic-a088c20300ab5f40",
        "nvme0": "nvme-S4EVNX0R000001",
        "dpu0": "dpu-MT2312X00001",
        "region0": "pmem-1f2e3d4c5b6a7988",
        "nmem0": "dimm-56341200",
        "mem0": "dimm-abcdef01",
        "dpu_rank1": "upmem-UP0123456789-1",
    }
    assert machine["gpu0"].id == "n0/pci/0000:18:00.0"
    assert machine["ens1f0"].id == "n0/nic/ens1f0"
    assert machine["cpu0"].id == "n0/cpu/0"
    assert machine["memory1"].id == "n0/memory/1"


def test_nothing_is_allocatable_and_everything_says_where_it_is(machine):
    for device in machine.values():
        assert not device.allocatable
        assert device.driver == "sysfs"
        assert (device.location.node, device.location.rack) == ("n0", "r1")
        for name, attribute in device.attributes.items():
            assert attribute.source, f"{device.name}.{name}"
            assert (attribute.value is None) == (attribute.absent is not None), f"{device.name}.{name}"


def test_a_function_knows_the_bridges_above_it(machine):
    path = ("pci0000:15", "0000:15:01.0", "0000:16:00.0", "0000:17:00.0")
    assert machine["gpu0"].location.pci_path == path
    assert [machine[name].value("pci_role") for name in path[1:]] == [
        "root-port",
        "switch-upstream",
        "switch-downstream",
    ]
    assert machine["0000:16:00.0"].kind is Kind.SWITCH


def test_links_tell_speed_and_width_now_and_at_most(tmp_path):
    tree = FakeTree(tmp_path)
    tree.pci(
        "0000:01:00.0", vendor="10de", device="2330", class_code="030200",
        speed_gts=16.0, max_speed_gts=32.0, width=8, max_width=16,
    )  # fmt: skip
    gpu = by_name(tree)["gpu0"]
    assert [gpu.value(f"link_{what}") for what in ("speed_gts", "max_speed_gts", "width", "max_width")] == [
        16.0,
        32.0,
        8,
        16,
    ]
    assert [condition.type for condition in gpu.conditions] == ["LinkNarrow"]


def test_a_bridges_link_is_the_same_from_its_capability_and_from_its_files(tmp_path):
    tree = FakeTree(tmp_path)
    path = tree.pci(
        "0000:00:01.0", vendor="8086", device="352a", class_code="060400", role="root-port",
        speed_gts=8.0, max_speed_gts=32.0, width=4, max_width=16,
    )  # fmt: skip
    names = ("link_speed_gts", "link_max_speed_gts", "link_width", "link_max_width", "pci_role")
    privileged = by_name(tree)["0000:00:01.0"]
    assert privileged.attributes["link_width"].source == "sysfs:config"
    tree.write(f"{path}/config", b"\0" * 6 + b"\x10" + b"\0" * 45 + b"\x40" + b"\0" * 11)  # what a user may read
    ordinary = by_name(tree)["0000:00:01.0"]
    assert ordinary.attributes["link_width"].source == "sysfs:current_link_width"
    assert [privileged.value(name) for name in names] == [ordinary.value(name) for name in names]


def test_switch_ports_are_told_by_position_where_config_cannot_be_read(tmp_path):
    tree = one_of_each(tmp_path)
    for address in ("0000:15:01.0", "0000:16:00.0", "0000:17:00.0"):
        tree.remove(f"{tree.path_of(address)}/config")
    found = by_name(tree)
    roles = [found[address].attributes["pci_role"] for address in ("0000:15:01.0", "0000:16:00.0", "0000:17:00.0")]
    assert [role.value for role in roles] == ["root-port", "switch-upstream", "switch-downstream"]
    assert {role.source for role in roles} == {"position"}


def test_a_conventional_bridge_is_no_switch_port(tmp_path):
    tree = FakeTree(tmp_path)
    tree.pci("0000:00:1e.0", vendor="8086", device="244e", class_code="060401")
    assert by_name(tree)["0000:00:1e.0"].value("pci_role") == "pci-bridge"


def test_a_device_without_driver_says_so(machine):
    assert machine["0000:c2:00.0"].why_absent("pci_driver") is Absence.DRIVER_NOT_BOUND


@pytest.mark.parametrize(
    ("vendor", "class_code", "kind"),
    [
        ("10de", "030000", Kind.GPU),
        ("10de", "030200", Kind.GPU),
        ("8086", "038000", Kind.GPU),
        ("1002", "120000", Kind.GPU),
        ("1da3", "120000", Kind.GPU),
        ("1a03", "030000", Kind.PCI),
        ("102b", "030000", Kind.PCI),
        ("1234", "030000", Kind.PCI),
        ("10ee", "120000", Kind.PCI),
        ("10de", "040300", Kind.PCI),
    ],
)
def test_a_bmcs_vga_and_an_audio_function_are_no_gpus(tmp_path, vendor, class_code, kind):
    tree = FakeTree(tmp_path)
    tree.pci("0000:01:00.0", vendor=vendor, device="1234", class_code=class_code)
    (device,) = look(tree).devices
    assert device.kind is kind


def test_the_nvidia_drivers_own_file_tells_model_and_uuid(tmp_path):
    tree = one_of_each(tmp_path)
    uuid = "GPU-11111111-2222-3333-4444-555555555555"
    tree.beside("proc/driver/nvidia/gpus/0000:18:00.0/information", f"Model: \t NVIDIA H100\nGPU UUID:\t {uuid}\n")
    gpu = by_name(tree)["gpu0"]
    assert gpu.value("model") == "NVIDIA H100"
    assert alias(gpu, "uuid") == uuid


def test_an_rnic_and_its_interface_are_one_device(machine):
    assert "ib0" not in machine
    rnic = machine["mlx5_0"]
    assert alias(rnic, "netdev") == "ib0"
    assert alias(rnic, "pci") == "0000:19:00.0"
    assert (rnic.value("port_state"), rnic.value("link_layer"), rnic.value("rate_gbps")) == (
        "active",
        "InfiniBand",
        400.0,
    )


def test_gids_carry_their_types_and_interfaces(machine):
    rnic = machine["mlx5_1"]
    assert rnic.value("gids") == (
        "fe80:0000:0000:0000:966d:aeff:fe11:2233",
        "0000:0000:0000:0000:0000:ffff:0a01:0203",
    )
    assert rnic.value("gid_types") == ("RoCE v2", "RoCE v2")
    assert rnic.value("gid_netdevs") == ("ens2f0np0", "ens2f0np0")


def test_a_soft_rdma_device_has_no_pci_and_its_missing_counters_are_not_zero(tmp_path):
    tree = FakeTree(tmp_path)
    tree.numa(0, cpus="0-1")
    tree.pci("0000:00:03.0", vendor="1af4", device="1041", class_code="020000", numa_node=0)
    tree.netdev("eth0", pci="0000:00:03.0")
    tree.rdma(
        "rxe0", node_guid="5054:00ff:fe12:3456", netdev="eth0", link_layer="Ethernet", rate="2.5 Gb/sec (1X SDR)",
        counters=False,
    )  # fmt: skip
    found = by_name(tree)
    rxe = found["rxe0"]
    assert rxe.location.pci_address is None
    assert rxe.why_absent("counters") is Absence.NOT_REPORTED
    assert rxe.why_absent("model") is Absence.NOT_REPORTED
    assert (rxe.location.numa_node, rxe.attributes["numa_node"].source) == (0, "parent")
    assert rxe.value("netdev") == "eth0"
    assert found["eth0"].kind is Kind.NIC, "a soft RDMA device does not swallow the real interface below it"


def test_all_ports_of_a_nic_are_read(tmp_path):
    tree = FakeTree(tmp_path)
    tree.pci("0000:01:00.0", vendor="15b3", device="1017", class_code="020700")
    path = tree.rdma("mlx5_0", pci="0000:01:00.0", node_guid="a088:c203:00ab:5f40", ports=2)
    tree.write(f"{path}/ports/2/state", "1: DOWN")
    rnic = by_name(tree)["mlx5_0"]
    assert (rnic.value("ports"), rnic.value("port_state"), rnic.value("port2_port_state")) == (2, "active", "down")


def test_a_port_that_is_down_is_a_condition(tmp_path):
    tree = FakeTree(tmp_path)
    tree.pci("0000:01:00.0", vendor="15b3", device="1017", class_code="020700")
    tree.rdma("mlx5_0", pci="0000:01:00.0", node_guid="a088:c203:00ab:5f40", state="1: DOWN")
    (condition,) = by_name(tree)["mlx5_0"].conditions
    assert (condition.type, condition.evidence) == ("LinkDown", "the port is down")


def test_virtual_interfaces_are_left_out(tmp_path):
    tree = one_of_each(tmp_path)
    tree.netdev("lo")
    tree.netdev("docker0")
    found = by_name(tree)
    assert "lo" not in found
    assert "docker0" not in found


def test_an_interface_without_carrier_has_no_speed(tmp_path):
    tree = FakeTree(tmp_path)
    tree.pci("0000:01:00.0", vendor="8086", device="1593", class_code="020000")
    tree.netdev("eth0", pci="0000:01:00.0", speed_mbps=-1, operstate="down")
    nic = by_name(tree)["eth0"]
    assert nic.why_absent("speed_mbps") is Absence.NOT_REPORTED


def test_a_bluefield_is_one_card_that_owns_its_nic(machine):
    card = machine["dpu0"]
    assert card.value("generation") == "BlueField-3"
    assert card.value("functions") == ("0000:04:00.0", "0000:04:00.1", "0000:04:00.2")
    assert card.value("mode") == "dpu"
    assert alias(card, "rshim") == "rshim0"
    assert machine["mlx5_1"].parent == card.id
    assert machine["mlx5_0"].parent is None


def test_a_card_whose_serial_may_not_be_read_is_still_one_card(tmp_path):
    tree = one_of_each(tmp_path)
    for function in range(3):
        tree.unreadable(f"{tree.path_of(f'0000:04:00.{function}')}/vpd")
    found = by_name(tree)
    assert found["dpu0"].id == "n0/pci/0000:04:00.0"
    assert found["dpu0"].why_absent("serial") is Absence.PERMISSION
    assert found["mlx5_1"].parent == found["dpu0"].id


def test_a_card_in_two_slots_is_one_by_its_serial(tmp_path):
    tree = FakeTree(tmp_path)
    for address in ("0000:04:00.0", "0000:84:00.0"):
        tree.pci(address, vendor="15b3", device="a2dc", class_code="020000", serial="MT1")
    (card,) = look(tree).devices
    assert card.value("functions") == ("0000:04:00.0", "0000:84:00.0")


def test_two_cards_are_joined_with_their_own_rshims(tmp_path):
    tree = FakeTree(tmp_path)
    for bus, serial in (("04", "MT1"), ("05", "MT2")):
        tree.pci(f"0000:{bus}:00.2", vendor="15b3", device="c2d5", class_code="080100", serial=serial)
    tree.beside("dev/rshim0/misc", "DEV_NAME pcie-0000:05:00.2\nBF_MODE NIC mode")
    tree.beside("dev/rshim1/misc", "DEV_NAME pcie-0000:04:00.2")
    found = {device.id: device for device in look(tree).devices}
    assert (found["dpu-MT1"].value("rshim"), found["dpu-MT2"].value("rshim")) == ("rshim1", "rshim0")
    assert found["dpu-MT2"].value("mode") == "nic"
    assert found["dpu-MT1"].why_absent("mode") is Absence.NOT_REPORTED


def aer(tree, address: str, *, fatal: int = 0, nonfatal: int = 0, correctable: int = 0) -> None:
    for name, count, word in (
        ("fatal", fatal, "FATAL"),
        ("nonfatal", nonfatal, "NONFATAL"),
        ("correctable", correctable, "COR"),
    ):
        text = f"Undefined 0\nDLP {count}\nTOTAL_ERR_{word} {count}"
        tree.write(f"{tree.path_of(address)}/aer_dev_{name}", text)


@pytest.mark.parametrize(
    ("counts", "health", "conditions"),
    [
        ({"correctable": 7}, Health.HEALTHY, []),
        ({"nonfatal": 2, "correctable": 7}, Health.HEALTHY, ["2 non-fatal errors on PCI Express since it came up"]),
        ({"fatal": 1, "nonfatal": 2}, Health.DEGRADED, ["1 fatal errors on PCI Express since it came up"]),
    ],
)
def test_errors_that_pci_express_could_not_correct_are_conditions(tmp_path, counts, health, conditions):
    tree = one_of_each(tmp_path)
    aer(tree, "0000:18:00.0", **counts)
    device = next(device for device in look(tree).devices if device.location.pci_address == "0000:18:00.0")
    assert {name: device.value(f"pci_{name}_errors") for name in counts} == counts
    assert device.health is health
    assert [condition.evidence for condition in device.conditions if condition.type == "PciError"] == conditions


def test_a_function_whose_errors_the_kernel_does_not_handle_has_no_count_of_them(machine):
    assert not any("pci_fatal_errors" in device.attributes for device in machine.values())


def test_an_nvme_behind_a_multipath_head_knows_its_size(tmp_path):
    tree = FakeTree(tmp_path)
    tree.pci("0000:01:00.0", vendor="144d", device="a824", class_code="010802")
    path = tree.nvme("nvme0", pci="0000:01:00.0", serial="S1")
    tree.remove(f"{path}/nvme0n1")
    tree.write(f"{path}/nvme0c0n1/size", 4096)
    nvme = by_name(tree)["nvme0"]
    assert nvme.value("size_bytes") == 2 << 20
    assert alias(nvme, "block") == "nvme0n1"


def test_nvmes_are_found_by_block_devices_where_their_class_was_not_recorded(tmp_path):
    tree = one_of_each(tmp_path)
    path = f"{tree.path_of('0000:1a:00.0')}/nvme/nvme0"
    tree.link(f"{path}/nvme0n1/device", path)
    tree.remove("class/nvme")
    assert by_name(tree)["nvme0"].id == "nvme-S4EVNX0R000001"


def test_cpus_and_memory_are_devices_of_their_nodes(machine):
    assert machine["cpu1"].value("cpulist") == "4-7"
    assert machine["cpu1"].capacity == {"cpus": 4}
    assert machine["cpu0"].value("cpu_model") == "Example CPU @ 2.00GHz"
    assert machine["memory0"].capacity == {"memory_bytes": 64 << 30}
    assert machine["memory0"].value("numa_distances") == (10, 21)


def test_a_node_of_memory_alone_has_no_cpus(tmp_path):
    tree = FakeTree(tmp_path)
    tree.numa(0, cpus="0-1")
    tree.numa(1, cpus="", memory_bytes=1 << 30)
    found = by_name(tree)
    assert "cpu1" not in found
    assert found["memory1"].capacity == {"memory_bytes": 1 << 30}


def test_a_kernel_without_numa_has_one_node(tmp_path):
    tree = FakeTree(tmp_path)
    tree.write("devices/system/cpu/online", "0-3")
    tree.beside("proc/meminfo", "MemTotal:       1048576 kB\n")
    found = by_name(tree)
    assert found["cpu0"].capacity == {"cpus": 4}
    assert found["memory0"].capacity == {"memory_bytes": 1 << 30}


def test_a_second_device_with_the_same_serial_keeps_its_place_as_id(tmp_path):
    tree = FakeTree(tmp_path)
    for index in range(2):
        tree.pci(f"0000:0{index}:00.0", vendor="144d", device="a824", class_code="010802")
        tree.nvme(f"nvme{index}", pci=f"0000:0{index}:00.0", serial="SAME")
    found = look(tree)
    assert [device.id for device in found.devices] == ["nvme-SAME", "n0/pci/0000:01:00.0"]
    (problem,) = found.problems
    assert "nvme1 has the identity nvme-SAME" in problem.detail
    assert not problem.fatal


def test_the_slots_name_is_told(tmp_path):
    tree = one_of_each(tmp_path)
    tree.write("bus/pci/slots/7-1/address", "0000:18:00")
    assert by_name(tree)["gpu0"].location.slot == "7-1"


def test_a_folder_that_is_a_sysfs_itself_will_do(tmp_path):
    tree = one_of_each(tmp_path)
    found = discover_host(HostRoot(node="n0", root=tree.sys))
    assert "gpu0" in {device.name for device in found.devices}
