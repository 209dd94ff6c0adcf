"""What sysfs tells of memory that is a device: persistent memory, CXL, DAX, UPMEM ranks and their DIMMs."""

import pytest

from hal.drivers.contract import HostRoot
from hal.host.driver import discover_host
from hal.model.device import Device, alias
from hal.model.kind import Kind
from hal.testing.example_tree import one_of_each
from hal.testing.trees import FakeTree


def by_name(tree: FakeTree) -> dict[str, Device]:
    found = discover_host(HostRoot(node="n0", root=tree.root, rack="r1"))
    return {device.name: device for device in found.devices}


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> dict[str, Device]:
    return by_name(one_of_each(tmp_path_factory.mktemp("one")))


def test_a_region_names_its_dimms_namespaces_and_mode(machine):
    region = machine["region0"]
    assert region.value("dimms") == ("dimm-56341200", "dimm-56341201")
    assert region.value("mode") == "fsdax"
    assert region.capacity == {"memory_bytes": 16 << 30}
    assert {"nd:region0", "nd:namespace0.0", "block:pmem0"} <= set(region.aliases)


def test_bad_blocks_are_counted_and_degrade_the_region(tmp_path):
    tree = one_of_each(tmp_path)
    tree.write("devices/platform/nfit/ndbus0/region0/badblocks", "8 1\n64 3")
    region = by_name(tree)["region0"]
    assert region.value("bad_blocks") == 4
    assert [condition.type for condition in region.conditions] == ["BadBlocks"]


def test_bad_blocks_that_only_the_block_device_lists_are_counted_too(tmp_path):
    tree = one_of_each(tmp_path)
    region = "devices/platform/nfit/ndbus0/region0"
    tree.write(f"{region}/namespace0.0/block/pmem0/badblocks", "8 1\n64 3")
    found = by_name(tree)["region0"]
    assert (found.value("bad_blocks"), found.attributes["bad_blocks"].source) == (4, "sysfs:block/badblocks")
    assert [condition.type for condition in found.conditions] == ["BadBlocks"]
    tree.write(f"{region}/badblocks", "8 9")
    assert by_name(tree)["region0"].value("bad_blocks") == 9


def test_a_regions_node_may_sit_on_its_namespace_alone(tmp_path):
    tree = FakeTree(tmp_path)
    tree.numa(0)
    tree.numa(1)
    tree.pmem_region(
        "region0", set_cookie="0x1", size_bytes=1 << 30, numa_node=1, numa_on_namespace=True, namespace="namespace0.0"
    )
    region = by_name(tree)["region0"]
    assert (region.location.numa_node, region.attributes["numa_node"].source) == (1, "child")


def test_a_recording_without_bus_nd_shows_its_regions_through_block_devices(tmp_path):
    tree = one_of_each(tmp_path)
    tree.remove("bus/nd")
    region = by_name(tree)["region0"]
    assert region.id == "pmem-1f2e3d4c5b6a7988"
    assert "block:pmem0" in region.aliases


def test_a_pmem_disk_without_any_region_is_listed(tmp_path):
    tree = FakeTree(tmp_path)
    tree.device("devices/virtual/block/pmem7", "class/block", {"size": 2048})
    disk = by_name(tree)["pmem7"]
    assert (disk.kind, disk.capacity) == (Kind.PMEM, {"memory_bytes": 1 << 20})


def test_volatile_cxl_memory_is_pmem_that_does_not_persist(machine):
    region = machine["cxl-region1"]
    assert (region.kind, region.value("persistence_domain"), region.value("media")) == (Kind.PMEM, "none", "cxl")
    assert region.location.numa_node == 1
    assert alias(region, "dax") == "dax1.0"
    assert "dax1.0" not in machine, "a DAX device of a region is another name of it"
    assert machine["mem0"].capacity == {"memory_bytes": 128 << 30}


def test_a_dax_device_of_its_own_is_a_device(tmp_path):
    tree = FakeTree(tmp_path)
    tree.dax("dax0.0", size_bytes=1 << 34)
    assert by_name(tree)["dax0.0"].value("persistence_domain") == "none"


def test_ranks_hang_on_their_dimm(machine):
    rank = machine["dpu_rank1"]
    assert rank.parent == machine["dimm0"].id == "dimm-UP0123456789"
    assert rank.capacity == {"dpus": 64, "memory_bytes": 64 * (64 << 20)}
    assert rank.value("clock_hz") == 350_000_000
    assert machine["dimm0"].capacity == {"memory_bytes": 2 * 64 * (64 << 20)}


def test_the_clock_of_a_rank_is_divided_as_the_driver_says(tmp_path):
    tree = FakeTree(tmp_path)
    path = tree.upmem_rank("dpu_rank0", serial="UP1", index=0, clock_mhz=800)
    tree.write(f"{path}/clock_division", 2)
    assert by_name(tree)["dpu_rank0"].value("clock_hz") == 400_000_000
