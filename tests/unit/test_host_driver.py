import subprocess
import sys

import pytest

from hal.drivers.contract import Cause, Context, Driver, Grant, HostRoot
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceNotFound, Unsupported
from hal.host.driver import SYSFS_FACTORY, SysfsDriver
from hal.interfaces.deadline import Deadline
from hal.testing.conformance import assert_error_is_for_people
from hal.testing.example_tree import one_of_each
from hal.testing.trees import FakeTree


@pytest.fixture
def tree(tmp_path) -> FakeTree:
    return one_of_each(tmp_path)


@pytest.fixture
def driver(tree) -> Driver:
    return SYSFS_FACTORY.create(Context(hosts=(HostRoot(node="n0", root=tree.root),), environ={}))


def test_the_factory_makes_a_driver_of_the_lowest_priority(driver):
    assert isinstance(driver, Driver)
    assert (driver.name, SYSFS_FACTORY.name, SYSFS_FACTORY.priority) == ("sysfs", "sysfs", 0)
    assert driver.readiness().ready


def test_it_is_not_ready_where_there_is_no_sysfs(tmp_path):
    readiness = SysfsDriver([HostRoot(node="n", root=str(tmp_path / "none"))]).readiness()
    assert readiness.cause is Cause.NO_HARDWARE
    assert readiness.remedy


def test_discovery_twice_finds_the_same(driver):
    assert driver.discover(Deadline.after(10)) == driver.discover(Deadline.after(10))


@pytest.mark.parametrize(
    ("device", "plugin"),
    [
        ("n0/pci/0000:18:00.0", "rackhal-nvidia"),
        ("rnic-a088c20300ab5f40", "rackhal-rdma"),
        ("dpu-MT2312X00001", "rackhal-bluefield"),
        ("pmem-1f2e3d4c5b6a7988", "rackhal-pmem"),
        ("upmem-UP0123456789-0", "rackhal-upmem"),
    ],
)
@pytest.mark.parametrize("verb", ["prepare", "open"])
def test_using_a_device_is_refused_and_the_plugin_named(driver, device, plugin, verb):
    argument = Grant(lease="x", fence=1) if verb == "prepare" else OpenGuard()
    with pytest.raises(Unsupported) as caught:
        getattr(driver, verb)(device, argument, Deadline.after(10))
    assert_error_is_for_people(caught.value, device)
    assert plugin in str(caught.value)


@pytest.mark.parametrize("verb", ["prepare", "unprepare", "open"])
def test_an_unknown_device_is_not_found(driver, verb):
    argument = OpenGuard() if verb == "open" else Grant(lease="x", fence=1)
    with pytest.raises(DeviceNotFound, match="no-such-device"):
        getattr(driver, verb)("no-such-device", argument, Deadline.after(10))


def test_unpreparing_what_was_never_prepared_is_no_error(driver):
    driver.unprepare("n0/pci/0000:18:00.0", Grant(lease="x", fence=1), Deadline.after(10))


def test_a_sample_gives_what_holds_now(driver, tree):
    assert not driver.sample(["rnic-a088c20300ab5f40"], Deadline.after(10))
    tree.write(f"{tree.path_of('0000:19:00.0')}/infiniband/mlx5_0/ports/1/state", "1: DOWN")
    (condition,) = driver.sample(["rnic-a088c20300ab5f40"], Deadline.after(10))
    assert (condition.device, condition.type) == ("rnic-a088c20300ab5f40", "LinkDown")
    with pytest.raises(DeviceNotFound):
        driver.sample(["no-such-device"], Deadline.after(10))


def test_a_device_that_fell_off_the_bus_is_told_of(driver, tree):
    driver.discover(Deadline.after(10))
    tree.remove("bus/pci/devices/0000:18:00.0")
    (condition,) = driver.sample(["n0/pci/0000:18:00.0"], Deadline.after(10))
    assert condition.type == "NotEnumerated"
    assert condition.evidence


def test_host_discovery_imports_nothing_heavy():
    heavy = ("numpy", "tarfile", "hashlib", "subprocess", "json", "ctypes", "pluggy", "socket", "sqlite3")
    code = (
        f"import sys; import hal.host.driver, hal.host.tree; print([name for name in {heavy} if name in sys.modules])"
    )
    bare = f"import sys, msgspec, hal.drivers.contract; print([name for name in {heavy} if name in sys.modules])"
    found, before = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
        for text in (code, bare)
    )
    assert found == before, "nothing beyond what the driver contract needs"


def test_what_looks_for_rare_hardware_is_imported_only_where_there_is_some(tmp_path):
    rare = {"bluefield", "cxl", "pmem", "upmem"}

    def imported(root: str) -> set[str]:
        code = (
            "import sys; from hal.host.driver import discover_host; from hal.drivers.contract import HostRoot;"
            f"discover_host(HostRoot(node='n0', root={root!r})); print(*sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return {name.removeprefix("hal.host.") for name in done.stdout.split()} & rare

    tree = FakeTree(tmp_path)
    tree.pci("0000:18:00.0", vendor="15b3", device="1021", class_code="020700")
    assert imported(tree.root) == set()
    tree.upmem_rank("dpu_rank0", serial="1", index=0)
    assert imported(tree.root) == {"upmem"}
    tree.pci("0000:19:00.0", vendor="15b3", device="a2dc", class_code="020000")
    assert imported(tree.root) == {"upmem", "bluefield"}
    tree.dax("dax0.0", size_bytes=1 << 30)
    assert imported(tree.root) == {"upmem", "bluefield", "pmem"}
    tree.cxl_region("region0", size_bytes=1 << 30)
    assert imported(tree.root) == rare
