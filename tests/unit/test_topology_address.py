"""The address net resolves, finds common memory, and reports mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import UsageError
from hal.topology.address import AddressError, AddressNet, Block, MapBlock, Name, Node, check, load_net
from hal.topology.route import Way, masters, path, shared


def reference_nets() -> list[Path]:
    folder = Path(os.environ.get("HAL_REFERENCE_DATA") or Path(__file__).parents[3] / "shared" / "data")
    files = sorted((folder / "address-nets").glob("*.json"))
    if not files:
        pytest.skip(f"no address-nets in {folder}; HAL_REFERENCE_DATA can name another folder")
    return files


def accept(base: int, limit: int, **more: frozenset[str]) -> Block:
    return Block(base=base, limit=limit, **more)


def to(node: int, base: int, limit: int, to_base: int, **more: frozenset[str]) -> MapBlock:
    return MapBlock(base=base, limit=limit, to=node, to_base=to_base, **more)


DRAM = Node(id=0, name="dram", accept=(accept(0, 0xFFFF),))


def test_an_address_is_translated_to_where_it_is_accepted():
    net = AddressNet("m", [DRAM, Node(id=1, name="core", map=(to(0, 0x8000, 0x8FFF, 0x100),))])
    assert net.resolve("core", 0x8010) == {Name(0, 0x110)}
    assert net.resolve("core", 0x9000) == frozenset()
    assert net.reachable("core") == {0}


def test_limits_are_inclusive():
    net = AddressNet("m", [DRAM, Node(id=1, name="core", map=(to(0, 0x10, 0x1F, 0),))])
    assert net.resolve(1, 0x1F) == {Name(0, 0xF)}
    assert net.resolve(1, 0x20) == frozenset()


def test_a_cache_over_memory_gives_both_names():
    cache = Node(id=1, name="cache", accept=(accept(0x100, 0x1FF),), overlay=0)
    net = AddressNet("m", [DRAM, cache])
    assert net.resolve("cache", 0x180) == {Name(1, 0x180), Name(0, 0x180)}
    assert net.resolve("cache", 0x200) == {Name(0, 0x200)}


def test_properties_decide_which_block_answers_and_are_stripped_on_the_way():
    device = Node(id=2, name="device", issues=frozenset({"coherent", "write"}), map=(to(1, 0, 0xFFFF, 0),))
    port = Node(id=1, name="port", map=(to(0, 0, 0xFFFF, 0, strip=frozenset({"coherent"})),))
    memory = Node(id=0, name="rom", accept=(accept(0, 0xFF, forbid=frozenset({"write"})), accept(0x100, 0xFFFF)))
    net = AddressNet("m", [memory, port, device])
    assert net.resolve("device", 0x10) == frozenset()
    assert net.resolve("device", 0x110) == {Name(0, 0x110, frozenset({"write"}))}
    assert net.coherence("device", 0x110) is False
    assert net.coherence("device", 0x10) is None


def test_coherence_is_never_assumed():
    net = AddressNet("m", [DRAM, Node(id=1, name="core", overlay=0)])
    assert net.coherence("core", 0) is False


def test_a_loop_ends_and_is_reported():
    net = AddressNet("m", [Node(id=0, name="a", map=(to(1, 0, 9, 0),)), Node(id=1, name="b", map=(to(0, 0, 9, 0),))])
    assert net.resolve("a", 5) == frozenset()
    assert {finding.mistake for finding in check(net)} == {"loop"}


def test_a_loop_that_shifts_addresses_ends_when_they_leave_the_block():
    net = AddressNet("m", [Node(id=0, name="a", accept=(accept(50, 59),), map=(to(0, 0, 49, 10),))])
    assert net.resolve("a", 3) == {Name(0, 53)}


def test_an_endless_shift_is_an_error_and_a_finding():
    net = AddressNet("m", [Node(id=0, name="a", map=(to(0, 0, 1 << 60, 1),))])
    with pytest.raises(AddressError, match="in a circle"):
        net.resolve("a", 0)
    assert {"self-loop", "loop"} == {finding.mistake for finding in check(net)}


def test_check_names_every_mistake_of_a_net():
    net = AddressNet(
        "m",
        [
            DRAM,
            Node(id=1, name="bus", accept=(accept(9, 3),), map=(to(7, 0, 1, 0), to(1, 4, 5, 4)), overlay=8),
            Node(id=1, name="twin"),
        ],
    )
    assert [(f.node, f.mistake) for f in check(net)][:5] == [
        (1, "inverted"),
        (1, "self-loop"),
        (1, "dangling"),
        (1, "dangling"),
        (1, "duplicate"),
    ]


def test_a_sound_net_has_no_findings():
    assert check(AddressNet("m", [DRAM, Node(id=1, name="core", overlay=0)])) == ()


def parker(**iommu: object) -> AddressNet:
    """Two processor sets and a device; the device sees one window through its IOMMU."""
    coherent = frozenset({"coherent"})
    return AddressNet(
        "two sets",
        [
            DRAM,
            Node(id=1, name="bus", overlay=0),
            Node(id=2, name="cpu", overlay=1, issues=coherent),
            Node(id=3, name="gpu", map=(to(1, 0x4000, 0x4FFF, 0),), issues=coherent),
            Node(id=4, name="nic", map=(to(5, 0, 0xFFF, 0),)),
            Node(id=5, name="iommu", **iommu),
            Node(id=6, name="sensor", map=(to(7, 0, 0xF, 0),)),
            Node(id=7, name="registers", accept=(accept(0, 0xF),)),
        ],
    )


def test_the_best_way_between_two_masters():
    net = parker(map=(to(0, 0, 0xFF, 0x200),))
    assert path(net, "cpu", "gpu").way is Way.COHERENT
    direct = path(net, "gpu", "nic")
    assert direct.way is Way.DIRECT
    assert (direct.shared[0].node, direct.shared[0].base, direct.shared[0].limit) == (0, 0x200, 0x2FF)
    assert (direct.shared[0].first_base, direct.shared[0].second_base) == (0x4200, 0)
    assert path(net, "gpu", "sensor").way is Way.NONE


def test_an_iommu_with_a_free_slot_can_be_configured():
    route = path(parker(slots=2, opens=(0,)), "gpu", "nic")
    assert route.way is Way.DMA
    assert [(slot.node, slot.target, slot.master, slot.slots) for slot in route.configure] == [(5, 0, 4, 2)]
    assert path(parker(slots=0, opens=(0,)), "gpu", "nic").way is Way.NONE


def test_a_third_one_copies_where_there_is_no_common_memory():
    net = AddressNet(
        "m",
        [
            DRAM,
            Node(id=1, name="far", accept=(accept(0, 9),)),
            Node(id=2, name="a", overlay=0),
            Node(id=3, name="b", overlay=1),
            Node(id=4, name="cpu", map=(to(0, 0, 0xFF, 0), to(1, 0x100, 0x109, 0))),
        ],
    )
    assert masters(net) == (2, 3, 4)
    assert path(net, "a", "b") == path(net, 2, 3)
    assert (path(net, "a", "b").way, path(net, "a", "b").via) == (Way.STAGED, 4)


def test_what_is_not_a_net_is_refused_with_a_reason():
    for data in (
        b"{}",
        b'{"machine":"m","nodes":[{"id":0}]}',
        b'{"machine":"m","nodes":[{"id":0,"accept":3}]}',
        b"\xff",
    ):
        with pytest.raises(UsageError, match="not an address net"):
            load_net(data)
    with pytest.raises(UsageError, match="0 nodes"):
        AddressNet("m", []).node("x")


blocks = st.tuples(st.integers(0, 60), st.integers(0, 20), st.integers(0, 3), st.integers(0, 60))


@st.composite
def nets(draw: st.DrawFn) -> AddressNet:
    nodes = []
    for number in range(4):
        accepts = [accept(base, base + size) for base, size, _, _ in draw(st.lists(blocks, max_size=2))]
        # translations lead to higher ids only, so that the plain recursion below ends
        maps = [to(t, b, b + s, tb) for b, s, t, tb in draw(st.lists(blocks, max_size=3)) if t > number]
        overlay = draw(st.one_of(st.none(), st.integers(number + 1, 3))) if number < 3 else None
        nodes.append(Node(id=number, name=f"n{number}", accept=tuple(accepts), map=tuple(maps), overlay=overlay))
    return AddressNet("random", nodes)


def naive(net: AddressNet, node: int, address: int) -> set[tuple[int, int]]:
    """One address at a time, straight from the definition."""
    here = net.nodes[node]
    found = {(node, address) for block in here.accept if block.base <= address <= block.limit}
    for mapped in here.map:
        if mapped.base <= address <= mapped.limit:
            found |= naive(net, mapped.to, mapped.to_base + address - mapped.base)
    return found | (naive(net, here.overlay, address) if here.overlay is not None else set())


@given(nets(), st.integers(0, 100))
def test_intervals_resolve_as_single_addresses_do(net: AddressNet, address: int):
    expected = naive(net, 0, address)
    assert {(name.node, name.address) for name in net.resolve(0, address)} == expected
    seen = {
        (region.node, region.to_base + address - region.base)
        for region in net.regions(0)
        if region.base <= address <= region.limit
    }
    assert seen == expected


@given(nets())
def test_common_memory_is_the_same_from_both_sides(net: AddressNet):
    ours = {(both.node, both.base, both.limit) for both in shared(net, 0, 1)}
    theirs = {(both.node, both.base, both.limit) for both in shared(net, 1, 0)}
    assert ours == theirs


REFERENCE_MISTAKES = {
    "OMAP44xx": {(3, "self-loop")},
    "SCC": {(0, "inverted"), (0, "dangling")},
    "Server": {(4, "inverted"), (5, "inverted"), (9, "inverted"), (10, "inverted")},
}


def test_published_machines_load_and_their_defects_are_named():
    for file in reference_nets():
        net = load_net(file.read_bytes())
        found = {(finding.node, finding.mistake) for finding in check(net) if finding.mistake != "loop"}
        assert found == REFERENCE_MISTAKES.get(net.machine, set()), file.name


def test_published_machines_resolve_through_buses_and_overlays():
    nets = {file.stem: load_net(file.read_bytes()) for file in reference_nets()}
    desktop = nets["Desktop"]
    assert {(n.node, n.address) for n in desktop.resolve(0, 0x100000)} == {(1, 0)}
    assert {(n.node, n.address) for n in desktop.resolve(3, 0x100000000)} == {(1, 0xC0000000)}
    assert {(n.node, n.address) for n in desktop.resolve("cpu_virt0", 0xFEE00010)} >= {(7, 0xFEE00010)}
    assert desktop.reachable(4) >= {1}
