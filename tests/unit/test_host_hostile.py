"""Trees that are wrong: each mistake costs an attribute, never the device, never another device, never the probe."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal.drivers.contract import Discovery, HostRoot
from hal.errors import DriverError
from hal.host.driver import SysfsDriver, discover_host
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Absence
from hal.model.device import Device
from hal.testing.example_tree import one_of_each
from hal.testing.trees import FakeTree

GPU = "devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0"


def look(root: str, deadline: Deadline | None = None) -> Discovery:
    return discover_host(HostRoot(node="n0", root=root), deadline=deadline)


def device(tree: FakeTree, name: str) -> Device:
    return next(device for device in look(tree.root).devices if device.name == name)


@pytest.fixture
def tree(tmp_path) -> FakeTree:
    return one_of_each(tmp_path / "host")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (FakeTree.remove, Absence.NOT_REPORTED),
        (FakeTree.unreadable, Absence.PERMISSION),
        (FakeTree.garbage, Absence.MALFORMED),
        (FakeTree.fifo, Absence.TIMEOUT),
        (FakeTree.folder, Absence.MALFORMED),
        (lambda tree, path: tree.write(path, b""), Absence.NOT_REPORTED),
        (lambda tree, path: tree.write(path, "nonsense"), Absence.MALFORMED),
        (lambda tree, path: tree.write(path, "9" * 4000), Absence.MALFORMED),
        (lambda tree, path: (tree.remove(path), tree.link(path, path)), Absence.MALFORMED),
        (lambda tree, path: (tree.remove(path), tree.link(path, "no/where")), Absence.MALFORMED),
    ],
    ids=["missing", "unreadable", "garbage", "fifo", "folder", "empty", "nonsense", "huge", "circle", "dangling"],
)
def test_one_bad_file_costs_one_attribute(tree, spoil, reason):
    before = {device.id: device for device in look(tree.root).devices}
    spoil(tree, f"{GPU}/max_link_width")
    after = {device.id: device for device in look(tree.root).devices}
    assert after.keys() == before.keys()
    gpu = after["n0/pci/0000:18:00.0"]
    assert gpu.why_absent("link_max_width") is reason
    assert gpu.attributes["link_max_width"].source == "sysfs:max_link_width"
    changed = {one for one in after if after[one] != before[one]}
    assert changed == {gpu.id}
    different = {name for name in gpu.attributes if gpu.attributes[name] != before[gpu.id].attributes[name]}
    assert different == {"link_max_width"}


def test_an_entry_without_vendor_file_is_a_device_of_which_less_is_known(tmp_path):
    tree = FakeTree(tmp_path)
    tree.write("bus/pci/devices/0000:03:00.0/device", "0x2330")
    tree.pci("0000:04:00.0", vendor="10de", device="2330", class_code="030200")
    bare, gpu = sorted(look(tree.root).devices, key=lambda one: one.location.pci_address)
    assert bare.why_absent("pci_vendor") is Absence.NOT_REPORTED
    assert bare.why_absent("pci_class") is Absence.NOT_REPORTED
    assert bare.value("pci_device") == "2330"
    assert gpu.name == "gpu0"


def test_a_broken_uevent_is_made_up_for_by_the_other_files(tree):
    tree.fifo(f"{GPU}/uevent")
    gpu = device(tree, "gpu0")
    assert gpu.value("pci_driver") == "nvidia"
    assert gpu.attributes["pci_vendor"].source == "sysfs:vendor"


def test_domains_of_32_bits_are_addresses(tmp_path):
    tree = FakeTree(tmp_path)
    tree.pci("10000:e1:00.0", parent="pci10000:e0", vendor="144d", device="a824", class_code="010802")
    tree.nvme("nvme0", pci="10000:e1:00.0", serial="S1")
    tree.pci("deadbeef:00:1f.7", parent="pcideadbeef:00", vendor="10de", device="2330", class_code="030200")
    found = {device.name: device for device in look(tree.root).devices}
    assert found["nvme0"].aliases[0] == "pci:10000:e1:00.0"
    assert found["nvme0"].location.pci_path == ("pci10000:e0",)
    assert found["gpu0"].location.pci_path == ("pcideadbeef:00",)


def test_an_entry_that_is_no_address_is_a_problem_and_nothing_else(tree):
    tree.write("bus/pci/devices/what is this/vendor", "0x10de")
    before = len(one_device_names(tree))
    found = look(tree.root)
    assert len(found.devices) == before
    assert "what is this" in found.problems[0].detail
    assert not found.problems[0].fatal


def one_device_names(tree: FakeTree) -> set[str]:
    return {device.name for device in look(tree.root).devices}


def test_a_name_that_is_no_text_is_left_out(tree):
    before = one_device_names(tree)
    os.mkdir(os.fsencode(tree.sys) + b"/bus/pci/devices/\xff\xfe")
    os.mkdir(os.fsencode(tree.sys) + b"/class/net/\xff")
    assert one_device_names(tree) == before


def test_a_function_whose_own_folder_is_a_link_to_the_outside_shows_nothing_of_it(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "uevent").write_text("PCI_CLASS=30200\nPCI_ID=10DE:2330\nPCI_SUBSYS_ID=0000:0000\n")
    tree = FakeTree(tmp_path / "machine")
    tree.numa(0, cpus="0-3")
    tree.pci("0000:01:00.0", vendor="8086", device="1000", class_code="088000")
    os.symlink(secret, Path(tree.sys, "devices/pci0000:00/0000:02:00.0"))
    tree.link("bus/pci/devices/0000:02:00.0", "devices/pci0000:00/0000:02:00.0")
    found = discover_host(HostRoot(node="n0", root=tree.root))
    assert "0000:01:00.0" in {device.name for device in found.devices}
    assert "10de" not in repr(found).lower()


def test_a_recorded_tree_cannot_show_files_from_outside(tmp_path):
    secret = tmp_path / "secret" / "0000:66:00.0"
    secret.mkdir(parents=True)
    (secret / "serial").write_text("outside")
    (secret / "vendor").write_text("0x10de")
    tree = one_of_each(tmp_path / "host")
    os.symlink(secret, Path(tree.sys, "bus/pci/devices/0000:66:00.0"))
    os.symlink("../../../../../secret/0000:66:00.0", Path(tree.sys, "bus/pci/devices/0000:67:00.0"))
    nvme = f"{tree.path_of('0000:1a:00.0')}/nvme/nvme0"
    tree.remove(f"{nvme}/serial")
    os.symlink(secret / "serial", Path(tree.sys, nvme, "serial"))
    os.symlink(secret.parent, Path(tree.sys, "devices/pci0000:77"))
    tree.link("bus/pci/devices/0000:68:00.0", "devices/pci0000:77/0000:66:00.0")
    found = look(tree.root)
    assert "outside" not in repr(found)
    assert not any("0000:66" in repr(device) or "0000:67" in repr(device) for device in found.devices)
    assert len(found.problems) == 3
    nvme0 = next(device for device in found.devices if device.name == "nvme0")
    assert nvme0.why_absent("serial") is Absence.MALFORMED
    assert nvme0.id == "n0/pci/0000:1a:00.0"


def test_links_that_go_round_in_circles_end(tree):
    tree.link("bus/pci/devices/0000:70:00.0", "bus/pci/devices/0000:71:00.0")
    tree.link("bus/pci/devices/0000:71:00.0", "bus/pci/devices/0000:70:00.0")
    for number in range(200):
        tree.link(f"class/net/chain{number}", f"class/net/chain{number + 1}")
    assert {"gpu0", "mlx5_0"} <= one_device_names(tree)


def test_escape_sequences_do_not_reach_a_terminal(tree):
    tree.write(f"{tree.path_of('0000:1a:00.0')}/nvme/nvme0/model", "\x1b[2Jboo")
    assert device(tree, "nvme0").why_absent("model") is Absence.MALFORMED


def test_folders_that_are_pipes_cost_what_is_in_them(tree):
    for path in ("class/nvme", "class/infiniband", "bus/nd", "devices/system/node"):
        tree.remove(path)
        tree.fifo(path)
    assert {"gpu0", "ens1f0", "dpu0", "dpu_rank0"} <= one_device_names(tree)


def test_a_rank_that_says_nonsense_is_still_a_rank(tree):
    path = "devices/platform/dpu_region_mem.0/dpu_rank/dpu_rank0"
    for name in ("nb_ci", "mram_size", "serial_number", "rank_index", "fck_frequency"):
        tree.garbage(f"{path}/{name}")
    rank = device(tree, "dpu_rank0")
    assert rank.id == "n0/upmem/dpu_rank0"
    assert rank.why_absent("dpus") is Absence.MALFORMED
    assert rank.capacity == {}


def test_a_pipe_in_place_of_config_or_vpd_hangs_nothing(tree):
    tree.fifo(f"{tree.path_of('0000:16:00.0')}/config")
    for function in range(3):
        tree.fifo(f"{tree.path_of(f'0000:04:00.{function}')}/vpd")
    assert device(tree, "0000:16:00.0").attributes["pci_role"].source == "position"
    assert device(tree, "dpu0").why_absent("serial") is Absence.TIMEOUT


def test_a_deadline_that_has_passed_gives_what_was_found_and_says_so(tree):
    found = look(tree.root, Deadline.after(-1))
    assert found.devices
    assert [problem.fatal for problem in found.problems] == [True]
    assert "deadline" in found.problems[0].detail


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_root_that_is_no_machine_is_an_error_with_a_hint(tmp_path, make):
    make(tmp_path / "root")
    with pytest.raises(DriverError) as caught:
        look(str(tmp_path / "root"))
    assert caught.value.hint


def test_one_bad_root_hides_no_other(tmp_path, tree):
    driver = SysfsDriver([HostRoot(node="bad", root=str(tmp_path / "none")), HostRoot(node="good", root=tree.root)])
    found = driver.discover(Deadline.after(10))
    assert {device.location.node for device in found.devices} == {"good"}
    assert [(problem.source, problem.fatal) for problem in found.problems] == [("bad", True)]
    assert not driver.readiness().ready


@pytest.fixture(scope="module")
def pristine():
    with scratch() as folder:
        yield one_of_each(folder)


def scratch() -> tempfile.TemporaryDirectory:
    """A folder in memory where there is one: hundreds of small trees are made and thrown away."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def files_of(root: str) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(base, name), root)
        for base, folders, files in os.walk(root)
        for name in (*folders, *files)
        if not base.endswith("drivers")
    )


def spoil(tree: FakeTree, path: str, how: str, data: bytes) -> None:
    where = os.path.join(tree.sys, path)
    if not os.path.realpath(os.path.dirname(where)).startswith(tree.sys):
        return  # something above it was spoilt already, and leads elsewhere
    try:
        tree.remove(path)
        if how == "garbage":
            tree.write(path, data)
        elif how == "fifo":
            tree.fifo(path)
        elif how == "folder":
            tree.folder(path)
        elif how == "unreadable":
            tree.unreadable(path)
        elif how == "loop":
            tree.link(path, path)
        elif how == "escape":
            os.symlink(os.path.join(os.path.dirname(tree.root), "outside"), where)
    except OSError:
        pass  # something above it was spoilt already


SPOILT = st.sampled_from(["remove", "garbage", "fifo", "folder", "unreadable", "loop", "escape"])


def copy_of(pristine: FakeTree, folder: str) -> FakeTree:
    """Copy the links and folders, and share the files: a spoilt one is replaced, never written to."""
    os.makedirs(os.path.join(folder, "outside", "0000:99:00.0"))
    root = os.path.join(folder, "host")
    shutil.copytree(pristine.root, root, symlinks=True, copy_function=os.link)
    return FakeTree(root)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_is_spoilt_in_one_corner_all_other_devices_are_found(pristine, data):
    before = {device.id: device for device in look(pristine.root).devices}
    victims = {
        "0000:18:00.0": {"n0/pci/0000:18:00.0"},
        "0000:1a:00.0": {"nvme-S4EVNX0R000001"},
        "region0": {"pmem-1f2e3d4c5b6a7988"},
        "nmem0": {"dimm-56341200", "pmem-1f2e3d4c5b6a7988"},
        "dpu_rank1": {"upmem-UP0123456789-1", "dimm-UP0123456789"},
        "mem0": {"dimm-abcdef01"},
        "node1": set(before) - {"n0/cpu/0", "n0/memory/0"},
    }
    victim = data.draw(st.sampled_from(sorted(victims)))
    paths = [path for path in files_of(pristine.sys) if f"/{victim}" in path and "drivers/" not in path]
    damage = data.draw(st.lists(st.tuples(st.sampled_from(paths), SPOILT, st.binary(max_size=64)), max_size=6))
    with scratch() as folder:
        tree = copy_of(pristine, folder)
        for path, how, contents in damage:
            spoil(tree, path, how, contents)
        found = look(tree.root)
    after = {device.id: device for device in found.devices}
    assert len(after) == len(found.devices)
    for device_id, device in before.items():
        if device_id not in victims[victim]:
            assert after.get(device_id) == device, f"{device_id} after {damage}"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_discovery_never_raises_whatever_the_tree(pristine, data):
    one = st.tuples(st.sampled_from(files_of(pristine.sys)), SPOILT, st.binary(max_size=64))
    damage = data.draw(st.lists(one, min_size=1, max_size=40))
    with scratch() as folder:
        tree = copy_of(pristine, folder)
        for path, how, contents in damage:
            spoil(tree, path, how, contents)
        found = look(tree.root)
    names = [device.name for device in found.devices]
    assert len(set(names)) == len(names)
    assert "0000:99:00.0" not in names, "what lies outside is not shown"
    for device in found.devices:
        for name, attribute in device.attributes.items():
            assert attribute.source, name
            assert (attribute.value is None) == (attribute.absent is not None), name
