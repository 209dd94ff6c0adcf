"""Programs that know nothing of mocks say what the profile says: they are the oracle of the trees."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from hal_mocks.faults import FaultType
from hal_mocks.namespace.nodes import rendered
from hal_mocks.sysfs_cpus import cpus_of
from mocks.tests.rooms import rooms


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    with rooms(tmp_path_factory.mktemp("machines")) as make:
        yield make


@pytest.mark.parametrize("profile", ["dgx-h100", "bluefield-host", "gb200-tray"])
def test_lspci_lists_the_profiles_functions_with_their_numbers(inside, profile):
    room = inside(profile)
    (host,) = room.machine.graph.hosts
    listed = {}
    for block in room.output("lspci", "-Dvmmn").strip().split("\n\n"):
        facts = dict(line.split(":\t", 1) for line in block.splitlines())
        listed[facts["Slot"]] = (facts["Vendor"], facts["Device"], facts["Class"])
    assert listed == {one.address: (one.vendor, one.device, one.class_code[:4]) for one in host.pci}


def test_lspci_finds_the_links_that_sysfs_tells_of(inside):
    room = inside("dgx-h100")
    gpu = room.machine.graph.hosts[0].gpus[0]
    text = room.output("lspci", "-vv", "-s", gpu.pci)
    assert re.search(r"LnkSta:\s+Speed 32GT/s, Width x16", text)
    assert "Kernel driver in use: nvidia" in text
    assert "NUMA node: 0" in text


def test_lspci_keeps_the_buses_of_a_bridge_below_which_something_fell_off(inside):
    room = inside("dgx-h100")
    before = room.output("lspci", "-D").splitlines()
    tree = room.output("lspci", "-t")
    room.machine.inject("gpu2", FaultType.FALLEN_OFF_BUS)
    after = room.output("lspci", "-D").splitlines()
    assert [line for line in before if line not in after] == [line for line in before if "0000:4b:00.0" in line]
    room.machine.heal()
    assert room.output("lspci", "-t") == tree


def test_ibstat_says_guid_state_and_rate_of_every_port(inside):
    room = inside("dgx-h100")
    for rnic in room.machine.graph.hosts[0].rnics:
        text = room.output("ibstat", rnic.name)
        port = rnic.ports[0]
        assert f"Node GUID: 0x{rnic.node_guid.replace(':', '')}" in text
        assert f"Firmware version: {rnic.firmware}" in text
        assert f"Rate: {port.rate_gbps:g}" in text
        assert f"Link layer: {port.link_layer}" in text
        assert "State: Active" in text
        assert f"Base lid: {port.lid}" in text


def test_ibstat_sees_a_link_go_down_and_come_back(inside):
    room = inside("dgx-h100")
    room.machine.inject("mlx5_2", FaultType.LINK_DOWN)
    assert "State: Down" in room.output("ibstat", "mlx5_2")
    assert "State: Active" in room.output("ibstat", "mlx5_3")
    room.machine.heal()
    assert "State: Active" in room.output("ibstat", "mlx5_2")


def test_ibv_devices_pairs_names_with_guids(inside):
    room = inside("dgx-h100")
    listed = dict(line.split() for line in room.output("ibv_devices").splitlines()[2:])
    assert listed == {rnic.name: rnic.node_guid.replace(":", "") for rnic in room.machine.graph.hosts[0].rnics}


@pytest.mark.parametrize("profile", ["dgx-h100", "optane-server", "upmem-server"])
def test_lstopo_counts_packages_cores_and_threads_and_places_devices(inside, profile):
    room = inside(profile)
    (host,) = room.machine.graph.hosts
    text = room.output("lstopo", "--of", "console", "--no-factorize")
    words = Counter(line.split()[0] for line in text.splitlines())
    cpus = sum(len(cpus_of(node.cpus)) for node in host.numa)
    assert (words["PU"], words["Core"]) == (cpus, cpus // 2)
    assert words["NUMANode"] == len(host.numa)
    assert words["Package"] == len(host.numa)
    for rnic in host.rnics:
        assert f'OpenFabrics "{rnic.name}"' in text
    mapped = [one for region in host.pmem for one in region.namespaces if one.mode == "devdax"]
    assert text.count("Block(NVM)") == len(mapped), "hwloc 2.9 knows no NVDIMM below a pfn device, which fsdax has"


@pytest.mark.parametrize("profile", ["optane-server", "cxl-server"])
def test_ndctl_lists_regions_namespaces_and_dimms(inside, profile):
    room = inside(profile)
    (host,) = room.machine.graph.hosts
    listed = json.loads(room.output("ndctl", "list", "-DRN"))
    regions = {one["dev"]: one for one in listed["regions"]}
    expected = [region for region in host.pmem if region.persistence_domain != "none"]
    assert set(regions) == {region.name for region in expected}
    for region in expected:
        told = regions[region.name]
        assert told["size"] == region.size_bytes
        assert told["iset_id"] == int(region.set_cookie, 16)
        assert told["persistence_domain"] == region.persistence_domain
        assert len(told["mappings"]) == len(region.dimms)
        assert {
            (one["dev"], one["mode"], one["uuid"]) for one in told.get("namespaces", ()) if one["mode"] != "raw"
        } == {(one.name, one.mode, one.uuid) for one in region.namespaces if one.mode != "raw"}
    assert len(listed["dimms"]) == sum(len(region.dimms) for region in expected)


def test_ndctl_counts_the_bad_blocks_of_a_fault_until_it_is_healed(inside):
    room = inside("optane-server")
    room.machine.inject("region1", FaultType.BAD_BLOCK, offset=4096, length=1024)
    (region,) = json.loads(room.output("ndctl", "list", "-R", "-M", "-r", "region1"))
    assert region["badblock_count"] == 2
    assert [(one["offset"], one["length"]) for one in region["badblocks"]] == [(8, 2)]
    room.machine.heal()
    (region,) = json.loads(room.output("ndctl", "list", "-R", "-M", "-r", "region1"))
    assert "badblock_count" not in region


def test_daxctl_lists_the_devices_of_both_kinds_of_regions(inside):
    room = inside("cxl-server")
    (host,) = room.machine.graph.hosts
    listed = {one["chardev"]: one["size"] for one in json.loads(room.output("daxctl", "list"))}
    volatile = [region for region in host.pmem if region.persistence_domain == "none"]
    spaces = [space for region in host.pmem for space in region.namespaces if space.mode == "devdax"]
    assert sorted(listed.values()) == sorted(
        [*(region.size_bytes for region in volatile), *(space.size_bytes for space in spaces)]
    )


def test_pyudev_finds_devices_by_subsystem_number_and_parent(inside):
    room = inside("dgx-h100")

    def look() -> tuple[int, str, str]:
        import pyudev

        context = pyudev.Context()
        nic = pyudev.Devices.from_name(context, "infiniband", "mlx5_0")
        door = pyudev.Devices.from_device_number(context, "char", (231 << 8) | 192)
        return len(list(context.list_devices(subsystem="pci"))), nic.find_parent("pci").sys_name, door.device_node

    (host,) = room.machine.graph.hosts
    assert room.namespace.run(look) == (len(host.pci), host.rnics[0].pci, "/dev/infiniband/uverbs0")


def test_every_node_of_the_machine_is_in_dev_and_can_be_opened(inside):
    for profile in ("dgx-h100", "optane-server", "upmem-server", "bluefield-host"):
        room = inside(profile)
        names = rendered(room.namespace.stage.room.root)
        assert names

        def open_all(names: list[str] = names) -> None:
            for name in names:
                Path("/dev", name).open("rb").close()

        room.namespace.run(open_all)


def test_rshim_answers_with_its_text(inside):
    room = inside("bluefield-host")
    assert "BF_MODE" in room.output("cat", "/dev/rshim0/misc")


def test_hal_probe_takes_the_machine_for_the_one_it_runs_on(inside):
    room = inside("dgx-h100")
    probe = Path(sys.executable).with_name("hal-probe")
    found = json.loads(room.output(probe, "--format", "json", "--all"))["devices"]
    kinds = Counter(device["kind"] for device in found)
    (host,) = room.machine.graph.hosts
    assert kinds["gpu"] == len(host.gpus)
    assert kinds["rnic"] == len(host.rnics)
    assert {device["driver"] for device in found if device["kind"] == "rnic"} != {"mock-rnic"}
