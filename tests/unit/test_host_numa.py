import pytest

from hal.drivers.contract import HostRoot
from hal.host.driver import discover_host
from hal.host.numa import parse_cpulist
from hal.model.attributes import Absence
from hal.testing.trees import FakeTree


def place(tree: FakeTree, address: str, overrides: dict[str, int] | None = None) -> tuple[int | None, str]:
    for device in discover_host(HostRoot(node="n", root=tree.root), overrides=overrides).devices:
        if device.location.pci_address == address:
            attribute = device.attributes["numa_node"]
            assert attribute.value == device.location.numa_node
            return device.location.numa_node, attribute.source if attribute.known else str(attribute.absent)
    raise AssertionError(f"{address} is not there")


@pytest.fixture
def tree(tmp_path) -> FakeTree:
    tree = FakeTree(tmp_path)
    tree.numa(0, cpus="0-3")
    tree.numa(1, cpus="4-7")
    return tree


def gpu(tree: FakeTree, address: str = "0000:02:00.0", parent: str = "pci0000:00", **facts) -> None:
    tree.pci(address, parent=parent, vendor="10de", device="2330", class_code="030200", **facts)


def bridge(tree: FakeTree, **facts) -> None:
    tree.pci("0000:00:01.0", vendor="8086", device="352a", class_code="060400", **facts)


def test_the_devices_own_word_comes_first(tree):
    bridge(tree, numa_node=0)
    gpu(tree, parent="0000:00:01.0", numa_node=1, local_cpus="0-3")
    assert place(tree, "0000:02:00.0") == (1, "sysfs:numa_node")


@pytest.mark.parametrize("own", [-1, None, 7, "junk"])
def test_then_the_parents(tree, own):
    bridge(tree, numa_node=1)
    gpu(tree, parent="0000:00:01.0", numa_node=own, local_cpus="0-3")
    assert place(tree, "0000:02:00.0") == (1, "parent")


def test_a_host_bridge_is_a_parent_too(tree):
    gpu(tree, numa_node=-1)
    tree.write("devices/pci0000:00/numa_node", 1)
    assert place(tree, "0000:02:00.0") == (1, "parent")


def test_then_the_cpus_near_it(tree):
    gpu(tree, numa_node=-1, local_cpus="4-5")
    assert place(tree, "0000:02:00.0") == (1, "local_cpulist")


def test_cpus_of_several_nodes_tell_nothing(tree):
    gpu(tree, numa_node=-1, local_cpus="0-7")
    assert place(tree, "0000:02:00.0") == (None, Absence.NOT_REPORTED)


def test_then_its_siblings_below_the_same_host_bridge(tree):
    gpu(tree, numa_node=-1)
    gpu(tree, "0000:03:00.0", numa_node=1)
    gpu(tree, "0000:83:00.0", parent="pci0000:80", numa_node=0)
    assert place(tree, "0000:02:00.0") == (1, "sibling")


def test_siblings_that_disagree_tell_nothing(tree):
    gpu(tree, numa_node=-1)
    gpu(tree, "0000:03:00.0", numa_node=1)
    gpu(tree, "0000:04:00.0", numa_node=0)
    assert place(tree, "0000:02:00.0") == (None, Absence.NOT_REPORTED)


def test_then_the_only_node_there_is(tmp_path):
    tree = FakeTree(tmp_path)
    tree.numa(0, cpus="0-3")
    gpu(tree, numa_node=-1)
    assert place(tree, "0000:02:00.0") == (0, "single-node")


@pytest.mark.parametrize("name", ["0000:02:00.0", "pci0000:00"])
def test_an_override_beats_firmware_that_lies(tree, name):
    gpu(tree, numa_node=0)
    assert place(tree, "0000:02:00.0", {name: 1}) == (1, "override")


def test_numa_minus_one_everywhere_leaves_every_device_listed(tree):
    for number in range(8):
        gpu(tree, f"0000:{number:02x}:00.0", numa_node=-1)
    assert place(tree, "0000:05:00.0") == (None, Absence.NOT_REPORTED)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8", {0, 1, 2, 3, 8}),
        ("", set()),
        ("5", {5}),
        ("3-1", None),
        ("x", None),
        ("0-99999999999", None),
        ("-1", None),
    ],
)
def test_a_kernel_list_is_a_set_of_cpus_or_nothing(text, cpus):
    assert parse_cpulist(text) == cpus
