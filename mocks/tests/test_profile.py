from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.errors import ProfileError
from hal_mocks.names import devices_of
from hal_mocks.profile import PROFILES, load_profile, parse_profile, profile_names, sources_of, summary_of
from hal_mocks.profile_lines import lines_of
from hal_mocks.profile_models import SECTIONS, Library
from hal_mocks.sysfs_cpus import cpu_list, cpus_of

NAMES = profile_names()
OFTEN = [name for name in NAMES if name != "dgx-hall"]

SMALL = """
[host]
cpu = "AMD EPYC 9354"
[[numa]]
count = 2
cores = 4
memory = "1 GiB"
[[switch]]
name = "sw0"
[[gpu]]
count = 2
model = "A100-PCIe-80GB"
switch = "sw0"
nvlink = "mesh"
[[rnic]]
model = "ConnectX-7"
switch = "sw0"
"""


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_loads_and_says_what_it_is(name):
    graph = load_profile(name)
    assert graph.name == name
    assert graph.hosts
    assert len(summary_of(name)) > 20


def test_the_profiles_that_are_promised_are_there():
    promised = {
        "dgx-h100",
        "dgx-a100",
        "gb200-tray",
        "bluefield-host",
        "optane-server",
        "cxl-server",
        "upmem-server",
        "edge-soc",
        "hostile",
        "rack",
    }
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", OFTEN)
def test_a_seed_gives_the_same_machine_every_time_and_another_seed_other_identities(name):
    first, again, other = load_profile(name, 7), load_profile(name, 7), load_profile(name, 8)
    assert first == again
    ids = [device.id for host in first.hosts for device in devices_of(host)]
    others = [device.id for host in other.hosts for device in devices_of(host)]
    assert len(ids) == len(others)
    changed = [one for one, two in zip(ids, others, strict=True) if one != two]
    named_by_place = ("/nic/", "/pci/", "nvme-S6EW0000000001")
    assert all(one in changed for one in ids if not any(part in one for part in named_by_place))


@pytest.mark.parametrize("name", NAMES)
def test_no_two_devices_of_a_machine_have_the_same_id(name):
    graph = load_profile(name)
    ids = Counter(device.id for host in graph.hosts for device in devices_of(host))
    assert [one for one, times in ids.items() if times > 1] == []


@pytest.mark.parametrize("name", OFTEN)
def test_every_pci_function_hangs_below_a_host_bridge_and_has_an_address_of_its_own(name):
    for host in load_profile(name).hosts:
        addresses = [function.address for function in host.pci]
        assert len(set(addresses)) == len(addresses)
        for address in addresses:
            assert host.pci_path(address)[0].startswith("pci")
        buses = {}
        for function in host.pci:
            bus = function.address.rpartition(":")[0]
            assert buses.setdefault(bus, function.parent) == function.parent


@pytest.mark.parametrize("name", OFTEN)
def test_numa_nodes_hold_every_cpu_once_and_are_nearest_to_themselves(name):
    for host in load_profile(name).hosts:
        cpus = [cpu for node in host.numa for cpu in cpus_of(node.cpus)]
        assert sorted(cpus) == list(range(len(cpus)))
        for node in host.numa:
            assert len(node.distances) == len(host.numa)
            assert node.distances[node.id] == min(node.distances) == 10


def test_a_dgx_h100_pairs_each_gpu_with_a_nic_below_one_switch():
    (host,) = load_profile("dgx-h100").hosts
    ports = {function.address for function in host.pci if function.role == "switch-upstream"}
    assert len(host.gpus) == 8
    for gpu, nic in zip(host.gpus, host.rnics[:8], strict=True):
        shared = set(host.pci_path(gpu.pci)) & set(host.pci_path(nic.pci)) & ports
        assert len(shared) == 1
        assert nic.ports[0].rate_gbps == 400
        (link,) = gpu.nvlinks
        assert (link.peer, link.links, link.bandwidth_bytes_per_second) == ("switch", 18, 18 * 26.5625e9)
        function = host.function(gpu.pci)
        assert function is not None
        assert (function.vendor, function.device, function.speed_gts) == ("10de", "2330", 32.0)
    assert [node.cpus for node in host.numa] == ["0-55,112-167", "56-111,168-223"]
    assert sum(node.memory_bytes for node in host.numa) == 2 << 40


def test_mig_geometries_fit_seven_compute_and_eight_memory_slices():
    boards = {gpu.model: gpu for name in OFTEN for host in load_profile(name).hosts for gpu in host.gpus if gpu.mig}
    assert any("A100" in model for model in boards)
    assert any("H100" in model for model in boards)
    for gpu in boards.values():
        whole = next(profile for profile in gpu.mig if profile.compute_slices == 7)
        assert (whole.memory_slices, whole.placements) == (8, (0,))
        assert whole.memory_bytes < gpu.memory_bytes
        for profile in gpu.mig:
            assert all(start + profile.memory_slices <= 8 for start in profile.placements)
            assert profile.memory_bytes <= gpu.memory_bytes * profile.memory_slices / 8


def test_a_bluefield_host_has_one_card_in_each_mode_and_its_nics_belong_to_them():
    (host,) = load_profile("bluefield-host").hosts
    assert [card.mode for card in host.dpus] == ["dpu", "nic"]
    for card in host.dpus:
        devices = [host.function(address).device for address in card.pci]
        assert devices == ["a2dc", "a2dc", "c2d5"]
        assert [nic.name for nic in host.rnics if nic.dpu == card.name] == list(card.rnics)


def test_the_upmem_server_has_the_shape_of_the_prim_machine():
    (host,) = load_profile("upmem-server").hosts
    assert (len(host.upmem_dimms), len(host.upmem_ranks)) == (20, 40)
    units = sum(rank.control_interfaces * rank.dpus_per_ci - len(rank.disabled) for rank in host.upmem_ranks)
    assert units == 2556


def test_a_rack_numbers_its_hosts_and_no_two_of_a_kind_are_the_same_machine():
    graph = load_profile("rack")
    assert [host.name for host in graph.hosts] == [f"rack-1-n{number}" for number in range(1, 7)]
    assert {host.rack for host in graph.hosts} == {"rack-1"}
    assert graph.hosts[0].gpus[0].uuid != graph.hosts[1].gpus[0].uuid
    assert graph.hosts[0].pci[0].address == graph.hosts[1].pci[0].address


def test_a_thousand_nodes_are_one_line():
    graph = load_profile("dgx-hall")
    assert len(graph.hosts) == 1000
    assert Counter(host.rack for host in graph.hosts) == {f"rack-{number}": 4 for number in range(1, 251)}


def test_a_profile_of_ones_own_may_bring_its_own_models(tmp_path):
    path = tmp_path / "mine.toml"
    own = '[model.gpu.Toy]\ntitle = "Toy"\npci = "1234:5678"\nclass = "030200"\narchitecture = "Toy"\n'
    own += (
        'compute_capability = "1.0"\nmemory = "1 GiB"\nmultiprocessors = 2\npower_watts = 5\nmemory_bandwidth = 1e9\n'
    )
    path.write_text(SMALL + '[[gpu]]\nmodel = "Toy"\nnuma = 1\n' + own)
    (host,) = load_profile(path).hosts
    assert host.gpus[2].model == "Toy"
    assert host.gpus[2].name == "gpu2"
    assert host.function(host.gpus[2].pci).numa_node == 1


def test_meshed_gpus_share_their_links_out():
    (host,) = parse_profile(SMALL).hosts
    assert [(link.peer, link.links) for link in host.gpus[0].nvlinks] == [("gpu1", 12)]
    assert host.rnics[0].netdev.startswith("ibp")


def test_a_profile_includes_a_file_beside_it_and_depends_on_both(tmp_path):
    (tmp_path / "node.toml").write_text(SMALL)
    path = tmp_path / "room.toml"
    path.write_text('[[host]]\ninclude = "node.toml"\ncount = 3\nrack = "r{i%2}"\n')
    assert [host.name for host in load_profile(path).hosts] == ["r0-n1", "r1-n1", "r0-n2"]
    assert sources_of(path) == (path, tmp_path / "node.toml")


def test_one_host_many_times_needs_no_include():
    graph = parse_profile(SMALL.replace("[host]", '[host]\ncount = 3\nrack = "r"'))
    assert [host.name for host in graph.hosts] == ["r-n1", "r-n2", "r-n3"]


def test_thirty_two_bit_pci_domains_keep_their_digits():
    (host,) = load_profile("hostile").hosts
    assert any(function.address.startswith("10000:") for function in host.pci)


def test_an_unknown_profile_is_named_with_the_nearest_one():
    with pytest.raises(ProfileError, match="'dgx-h10'") as caught:
        load_profile("dgx-h10")
    assert caught.value.hint.startswith("'dgx-h100'?")


def test_a_graph_goes_through_msgpack_unchanged():
    graph = load_profile("bluefield-host")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(graph), type=type(graph)) == graph


@pytest.mark.parametrize("section", SECTIONS)
def test_every_model_of_the_library_is_complete(section):
    library = Library({})
    for name in library.names(section):
        if section == "mig":
            assert library.mig(name, ())
        else:
            assert library.find(section, name, SECTIONS[section][1], ()) is not None


@pytest.mark.parametrize("path", sorted(PROFILES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_key_of_a_toml_file_has_a_line(path):
    text = path.read_text()
    lines = lines_of(text)
    rows = text.split("\n")
    for where in _paths(tomllib.loads(text)):
        assert where in lines
        if isinstance(where[-1], str):
            assert where[-1] in rows[lines[where] - 1]


def test_the_profiles_of_the_readme_are_right_and_its_mistake_is_as_it_says():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    own, room = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(parse_profile(own).hosts[0].gpus) == 2
    assert len(parse_profile(room).hosts) == 1000
    with pytest.raises(ProfileError) as caught:
        parse_profile(own.replace("A100-PCIe-80GB", "A100"), name="mine")
    said = re.search(r"hal-mock: (mine\.toml:.*), \.\.\.\)", text)
    assert said is not None
    assert str(caught.value).startswith(said.group(1))
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", text.partition("## What goes")[0], re.MULTILINE)) == set(NAMES)


keys = st.text("abcz-_", min_size=1, max_size=4) | st.text('a. "#=[\\', min_size=1, max_size=5)
values = st.recursive(
    st.integers() | st.booleans() | st.text('a"\\#[]{}=,\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)


def _write(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(_write, value)) + "\n]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_write(key)} = {_write(inner)}" for key, inner in value.items()) + "}"
    return str(value)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys, st.dictionaries(keys, values, max_size=3), max_size=3), st.booleans())
def test_the_line_finder_finds_every_key_that_tomllib_finds(tables, arrays):
    text = ""
    starts = {}
    for name, table in tables.items():
        text += "# a comment with [brackets]\n"
        starts[name] = text.count("\n") + 1
        text += f"[[{_write(name)}]]\n" if arrays else f"[{_write(name)}]\n"
        text += "".join(f"{_write(key)} = {_write(value)} # end\n" for key, value in table.items())
    parsed = tomllib.loads(text)
    lines = lines_of(text)
    assert set(_paths(parsed)) <= set(lines)
    assert {name: lines[(name,)] for name in tables} == starts
    rows = text.split("\n")
    assert all(1 <= line <= len(rows) for line in lines.values())


def _paths(value: object, above: tuple[str | int, ...] = ()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from _paths(inner, (*above, key))


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_kernel_list_of_cpus_holds_just_those_cpus(cpus):
    assert cpus_of(cpu_list(sorted(cpus))) == sorted(cpus)
