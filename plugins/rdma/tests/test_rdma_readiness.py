"""Not ready, or ready to look and not to open: one line with the cause, and what mends it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hal.drivers.contract import Cause, HostRoot, Readiness
from hal.errors import InvalidArgument, NotReady
from hal.host.tree import HostTree
from hal.interfaces.deadline import Deadline
from hal.testing.trees import FakeTree
from hal_rdma import readiness
from hal_rdma.devlink import judge_reporters, parse_health
from hal_rdma.driver import RdmaDriver
from hal_rdma.transport import FORCED, choose
from hal_rdma.verbs import why_not_verbs

GUID = "a088:c203:00ab:5f40"


class Here(HostRoot, frozen=True, kw_only=True):
    """A folder that passes for the running machine: what is told only of that one can be tried."""

    folder: str

    def path(self, *parts: str) -> Path:
        return Path(self.folder, *parts)


@pytest.fixture
def tree(tmp_path: Path) -> FakeTree:
    return FakeTree(tmp_path / "machine")


def judged(tree: FakeTree, **environ: str) -> Readiness:
    return readiness.judge([Here(node="n0", folder=tree.root)], environ)


def test_no_rdma_at_all_names_the_module(tree: FakeTree) -> None:
    told = judged(tree)
    assert told.cause is Cause.NO_DRIVER
    assert "no /sys/class/infiniband" in told.detail
    assert "modprobe" in told.remedy


def test_an_adapter_without_its_module_is_named_so(tree: FakeTree) -> None:
    tree.pci("0000:17:00.0", parent="pci0000:16", vendor="15b3", device="1021", class_code="020700")
    told = judged(tree)
    assert told.cause is Cause.NO_DRIVER
    assert "1 network functions" in told.detail
    assert told.remedy.startswith("modprobe mlx5_ib")


def test_a_class_without_devices_lacks_hardware(tree: FakeTree) -> None:
    tree.folder("class/infiniband")
    assert judged(tree).cause is Cause.NO_HARDWARE


def test_a_container_without_the_hosts_sysfs_is_told_so(tree: FakeTree) -> None:
    tree.folder("module/ib_core")
    assert "container" in judged(tree).remedy


@pytest.mark.parametrize(
    ("files", "mode", "detail", "remedy"),
    [
        ((), 0o666, "ib_uverbs is not loaded", "modprobe ib_uverbs"),
        (("sys",), 0o666, "no /dev/infiniband/uverbs", "container"),
        (("sys", "dev"), 0o666, "", ""),
    ],
)
def test_nics_without_a_way_to_their_data_can_be_looked_at(
    tree: FakeTree,
    files: tuple[str, ...],
    mode: int,
    detail: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness, "why_no_binding", lambda: "")
    tree.rdma("mlx5_0", node_guid=GUID)
    if "sys" in files:
        tree.write("class/infiniband_verbs/uverbs0/ibdev", "mlx5_0")
    if "dev" in files:
        tree.beside("dev/infiniband/uverbs0", "")
        os.chmod(Path(tree.root, "dev/infiniband/uverbs0"), mode)
    told = judged(tree)
    assert told.ready, "discovery is worth calling"
    assert detail in told.detail
    assert remedy in told.remedy
    assert bool(told.detail) is bool(detail), "nothing in the way, nothing said"


def test_a_device_file_that_may_not_be_opened_names_the_group(tree: FakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.rdma("mlx5_0", node_guid=GUID)
    tree.write("class/infiniband_verbs/uverbs0/ibdev", "mlx5_0")
    tree.beside("dev/infiniband/uverbs0", "")
    monkeypatch.setattr(readiness.os, "access", lambda *_: False)  # root may open everything
    why, mend = readiness.why_no_device_file(Here(node="n0", folder=tree.root), "mlx5_0")
    assert "uverbs0 may not be opened" in why
    assert "group rdma" in mend


def test_nics_without_a_binding_name_the_package(tree: FakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.rdma("mlx5_0", node_guid=GUID)
    tree.write("class/infiniband_verbs/uverbs0/ibdev", "mlx5_0")
    tree.beside("dev/infiniband/uverbs0", "")
    monkeypatch.setattr(readiness, "why_no_binding", lambda: "pyverbs is not installed")
    told = judged(tree)
    assert told.ready
    assert "pyverbs is not installed" in told.detail
    assert told.remedy.startswith("apt install python3-pyverbs")


def test_the_verbs_file_of_another_device_is_not_taken(tree: FakeTree) -> None:
    tree.write("class/infiniband_verbs/uverbs0/ibdev", "mlx5_0")
    tree.write("class/infiniband_verbs/uverbs1/ibdev", "mlx5_1")
    tree.beside("dev/infiniband/uverbs0", "")
    host = Here(node="n0", folder=tree.root)
    assert readiness.uverbs_of(host, "mlx5_1") == "uverbs1"
    assert readiness.why_no_device_file(host, "mlx5_0") == ("", "")
    assert readiness.why_no_device_file(host, "mlx5_1")[0]


def test_software_nics_need_no_kernel(tree: FakeTree) -> None:
    told = judged(tree, HAL_RDMA_SOFTWARE="shm")
    assert told.ready
    assert "HAL_RDMA_SOFTWARE" in told.detail


def test_the_running_machine_says_something_of_use_at_once() -> None:
    told = RdmaDriver([HostRoot(node="here")], {}).readiness()
    assert told.ready or (told.detail and told.remedy)


def test_a_transport_is_forced_by_name_or_not_at_all(tree: FakeTree) -> None:
    tree.rdma("nobody0", node_guid=GUID)
    driver = RdmaDriver([HostRoot(node="n0", root=tree.root)], {})
    (device,) = driver.discover(Deadline.after(10)).devices
    assert why_not_verbs(device, {}), "the running machine has no such device"
    with pytest.raises(InvalidArgument) as wrong:
        choose(device, {FORCED: "carrier-pigeon"})
    assert "verbs|ucx" in str(wrong.value)
    with pytest.raises(NotReady) as caught:
        choose(device, {FORCED: "verbs"})
    assert "verbs: " in str(caught.value)
    assert FORCED in str(caught.value.hint)


HEALTH = """{"health":{"pci/0000:17:00.0":[
  {"reporter":"fw","state":"healthy","error":2,"recover":2,"grace_period":0,"auto_recover":true},
  {"reporter":"fw_fatal","state":"error","error":1,"recover":0,"last_dump_date":"2026-11-22"}],
 "pci/0000:17:00.0/1":[{"reporter":"tx","state":"error","error":7,"recover":6}],
 "auxiliary/mlx5_core.sf.4":[{"reporter":"fw","state":"error","error":1,"recover":0}]}}"""


def test_reporters_of_firmware_become_conditions() -> None:
    reporters = parse_health(HEALTH)
    assert set(reporters) == {"0000:17:00.0"}
    fatal, sending = judge_reporters("rnic-x", reporters["0000:17:00.0"], 5.0)
    assert (fatal.severity.value, fatal.latched, fatal.action.value) == ("fatal", True, "drain-reset")
    assert "fw_fatal is in state error (1 errors, 0 recoveries)" in fatal.evidence
    assert (sending.severity.value, sending.latched, sending.count) == ("critical", False, 7)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"health": 3}', "devlink answers: Operation not supported"])
def test_what_is_no_answer_of_devlink_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"health|Expecting"):
        parse_health(text)


def test_a_tree_without_sysfs_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    HostTree(str(tmp_path)).close()
    assert readiness.judge([HostRoot(node="n0", root=str(tmp_path))], {}).cause is Cause.NO_DRIVER
