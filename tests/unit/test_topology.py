"""What is near what: the graph, distance classes, the matrix, the nearest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hal.model.device import Device, Link, Location
from hal.model.kind import Kind
from hal.topology.distance import LEGEND, Distance, distance, link_word, matrices, nearest, word
from hal.topology.graph import Level, build
from tests.golden.machines import device, gpu_server

MACHINE = {found.name: found for found in gpu_server()}


def apart(one: str, other: str) -> Distance:
    return distance(MACHINE[one], MACHINE[other])


def test_distance_classes_follow_the_pci_tree_and_numa():
    assert apart("gpu0", "gpu0") is Distance.SELF
    assert apart("gpu0", "mlx5_0") is Distance.SWITCH
    assert apart("gpu0", "gpu2") is Distance.NUMA
    assert apart("gpu0", "gpu4") is Distance.SYSTEM
    assert apart("gpu0", "region0") is Distance.SYSTEM
    assert apart("gpu4", "region0") is Distance.NUMA


def test_cascaded_switches_and_a_shared_host_bridge_have_classes_of_their_own():
    one = device(Kind.GPU, "a", path=("pci0000:10", "r", "u", "d1", "u2", "d3"))
    two = device(Kind.GPU, "b", path=("pci0000:10", "r", "u", "d2"))
    three = device(Kind.GPU, "c", path=("pci0000:10", "r2"))
    assert distance(one, two) is Distance.SWITCHES
    assert distance(one, three) is Distance.HOST_BRIDGE


def test_two_functions_of_one_card_are_as_near_as_below_one_switch():
    one = device(Kind.RNIC, "mlx5_0", pci="0000:17:00.0", path=("pci0000:16", "0000:16:01.0"))
    two = device(Kind.RNIC, "mlx5_1", pci="0000:17:00.1", path=("pci0000:16", "0000:16:01.0"))
    assert distance(one, two) is Distance.SWITCH


def test_parts_of_one_device_are_one_board():
    gpu = device(Kind.GPU, "gpu0", id="GPU-1", pci="0000:01:00.0")
    first = device(Kind.GPU, "mig0", id="MIG-1", parent="GPU-1")
    second = device(Kind.GPU, "mig1", id="MIG-2", parent="GPU-1")
    assert distance(gpu, first) is distance(first, second) is Distance.BOARD


def test_other_machines_are_as_far_as_their_racks():
    here, same = device(Kind.GPU, "a", node="n1", rack="r1"), device(Kind.GPU, "b", node="n2", rack="r1")
    away, lost = device(Kind.GPU, "c", node="n3", rack="r2"), device(Kind.GPU, "d", node="n4")
    assert distance(here, same) is Distance.RACK
    assert distance(here, away) is Distance.DATACENTER
    assert distance(lost, device(Kind.GPU, "e", node="n5")) is Distance.DATACENTER


def test_an_unknown_numa_node_is_not_taken_for_near():
    stray = device(Kind.PMEM, "region9")
    assert distance(stray, MACHINE["gpu0"]) is Distance.UNKNOWN
    assert nearest(MACHINE["gpu0"], [stray]) == ()


def test_nvlink_through_a_switch_joins_all_gpus_of_a_machine():
    assert word(MACHINE["gpu0"], MACHINE["gpu7"]) == "NV18"
    assert word(MACHINE["gpu0"], MACHINE["mlx5_0"]) == "PIX"


def test_direct_links_are_counted_and_a_dead_one_is_not():
    one = device(Kind.GPU, "a", id="A", links=(Link(type="nvlink", peer="B", lanes=4),))
    two = device(Kind.GPU, "b", id="B")
    assert link_word(one, two) == link_word(two, one) == "NV4"
    down = device(Kind.GPU, "a", id="A", links=(Link(type="nvlink", peer="B", lanes=4, state="down"),))
    assert link_word(down, two) == ""
    chip = device(Kind.CPU, "cpu0", id="C", links=(Link(type="c2c", peer="B"),))
    assert link_word(chip, two) == "C2C"


def test_the_matrix_is_symmetric_and_all_its_words_are_explained():
    (matrix,) = matrices(MACHINE.values())
    assert [kind for kind in matrix.kinds if kind is Kind.GPU] == [Kind.GPU] * 8
    assert matrix.names[-2:] == ("nvme0", "region0")
    for row, cells in enumerate(matrix.cells):
        assert cells[row] == "X"
        for column, cell in enumerate(cells):
            assert cell == matrix.cells[column][row]
            assert cell in LEGEND or cell.startswith("NV")


def test_the_nearest_nic_of_a_gpu_is_the_one_at_its_switch():
    nics = [found for found in MACHINE.values() if found.kind is Kind.RNIC]
    assert [nic.name for nic in nearest(MACHINE["gpu5"], nics)] == ["mlx5_2"]
    assert [nic.name for nic in nearest(MACHINE["nvme0"], nics)] == ["mlx5_0", "mlx5_1"]


def test_the_graph_nests_rack_machine_numa_bridge_switch_device():
    topology = build([*gpu_server("n1", "r1"), *gpu_server("n2", "r1")])
    gpu = topology.vertices["GPU-n2-5"]
    assert [vertex.level for vertex in topology.above(gpu)] == [
        Level.BRIDGE,
        Level.SWITCH,
        Level.BRIDGE,
        Level.HOST_BRIDGE,
        Level.NUMA,
        Level.NODE,
        Level.RACK,
        Level.DATACENTER,
    ]
    assert len(topology.of_level(Level.SWITCH)) == 8
    assert all(vertex.device is not None for vertex in topology.of_level(Level.SWITCH))
    assert len([edge for edge in topology.edges if edge.link.type == "nvlink"]) == 16


def test_the_numa_nodes_of_a_machine_are_in_order_whichever_device_came_first():
    topology = build([device(Kind.GPU, f"gpu{n}", id=f"G{n}", numa=n) for n in (10, 2, 0)])
    machine = topology.vertices["node:n1"]
    assert [vertex.label for vertex in topology.children(machine)] == ["NUMA 0", "NUMA 2", "NUMA 10"]


def test_what_shares_a_fate_sits_within_it_even_in_a_ring():
    topology = build([device(Kind.MEMORY, "dimm0", id="D", numa=0), device(Kind.UPMEM, "rank0", id="R", parent="D")])
    assert [vertex.id for vertex in topology.above(topology.vertices["R"])][:2] == ["D", "n1/numa/0"]
    ring = [device(Kind.GPU, "a", id="A", parent="B"), device(Kind.GPU, "b", id="B", parent="A")]
    assert {vertex.id for vertex in build(ring).of_level(Level.DEVICE)} == {"A", "B"}


def test_a_legacy_bridge_with_nothing_paired_below_is_no_switch():
    (bridge,) = build([device(Kind.PCI, "vga", pci="x", path=("pci0000:00", "root", "bridge"))]).of_level(Level.BRIDGE)[
        1:
    ]
    assert bridge.label == "bridge"


names = st.sampled_from(["a", "b", "c", "d", "e"])
devices = st.builds(
    lambda index, node, rack, numa, path, parent: Device(
        id=f"d{index}",
        kind=Kind.GPU,
        name=f"gpu{index}",
        driver="test",
        parent=parent,
        location=Location(node=node, rack=rack, numa_node=numa, pci_path=tuple(path)),
    ),
    st.integers(0, 9),
    names,
    st.none() | names,
    st.none() | st.integers(0, 1),
    st.lists(names, max_size=5),
    st.none() | st.integers(0, 9).map(lambda index: f"d{index}"),
)


@given(devices, devices)
def test_distance_is_symmetric(one: Device, other: Device):
    assert distance(one, other) is distance(other, one)


@given(st.lists(devices, max_size=12, unique_by=lambda found: found.id))
def test_every_device_has_exactly_one_place_under_the_root(machine: list[Device]):
    topology = build(machine)
    placed = [vertex.device.id for vertex in topology.below(topology.root) if vertex.device is not None]
    assert sorted(placed) == sorted(found.id for found in machine)
