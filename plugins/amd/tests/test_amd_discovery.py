"""GPUs are found where the kernel shows them, and whatever one of them does not tell costs nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hal.drivers.contract import Cause, Context, HostRoot
from hal.errors import DeviceNotFound, Unsupported
from hal.interfaces.deadline import Deadline
from hal.model.attributes import Absence
from hal.testing.trees import FakeTree
from hal_amd.driver import AmdDriver
from plugins.amd.tests.amd_trees import MEMORY_BYTES, AmdMachine

SOON = 20.0


def found(driver):
    return {device.id: device for device in driver.discover(Deadline.after(SOON)).devices}


def test_a_gpu_is_what_the_kernel_tells(tmp_path):
    machine = AmdMachine(tmp_path)
    gpu = found(machine.driver())[machine.gpu(0)]
    told = {name: gpu.value(name) for name in gpu.attributes}
    assert gpu.name == "gpu0"
    assert gpu.aliases == ("pci:0000:03:00.0", f"uuid:{gpu.id}", f"rocr:{gpu.id}")
    assert gpu.capacity == {"memory_bytes": MEMORY_BYTES}
    assert gpu.location.numa_node == 0
    assert gpu.location.pci_path == ("pci0000:00", "0000:00:01.1", "0000:01:00.0", "0000:02:00.0")
    assert told["uuid"] == gpu.id == "GPU-a1b2c3d400000001"
    assert told["vendor"] == "AMD"
    assert told["model"] == "AMD Instinct MI300X OAM"
    assert (told["gfx_target"], told["architecture"], told["multiprocessors"]) == ("gfx942", "CDNA 3", 304)
    assert told["compute_partition"] == "SPX"
    assert told["compute_partitions"] == ("SPX", "DPX", "QPX", "CPX")
    assert told["serial"] == "PCB000"
    assert (told["ras_uncorrectable"], told["ras_corrected"], told["retired_pages"]) == (0, 2, 0)
    assert gpu.allocatable
    assert gpu.conditions == ()


def test_the_link_that_counts_is_the_one_that_leaves_the_board(tmp_path):
    machine = AmdMachine(tmp_path, gpus=1)
    gpu = found(machine.driver())[machine.gpu(0)]
    assert gpu.value("link_speed_gts") == 32.0, "not the 64 GT/s between the GPU and the switch before it"


def test_compute_capability_is_not_made_up(tmp_path):
    machine = AmdMachine(tmp_path, gpus=1)
    assert found(machine.driver())[machine.gpu(0)].why_absent("compute_capability") is Absence.UNSUPPORTED


def test_xgmi_leads_both_ways(tmp_path):
    machine = AmdMachine(tmp_path, gpus=3)
    gpus = found(machine.driver())
    for gpu in gpus.values():
        assert {link.peer for link in gpu.links} == set(gpus) - {gpu.id}
        assert {(link.type, link.bandwidth_bytes_per_second) for link in gpu.links} == {("xgmi", 64e9)}
    assert len({gpu.value("xgmi_hive") for gpu in gpus.values()}) == 1


def test_without_xgmi_there_are_no_links(tmp_path):
    machine = AmdMachine(tmp_path, xgmi=False)
    for gpu in found(machine.driver()).values():
        assert gpu.links == ()
        assert "xgmi_hive" not in gpu.attributes


@pytest.mark.parametrize(("mode", "count"), [("DPX", 2), ("CPX", 8)])
def test_a_divided_gpu_is_leased_in_parts(tmp_path, mode, count):
    machine = AmdMachine(tmp_path)
    machine.divide(0, mode)
    devices = found(machine.driver())
    whole = devices[machine.gpu(0)]
    parts = [device for device in devices.values() if device.parent == whole.id]
    assert not whole.allocatable
    assert len(parts) == count
    assert sum(part.capacity["memory_bytes"] for part in parts) == MEMORY_BYTES
    assert all(part.allocatable for part in parts)
    # all parts have their GPU's number here: ROCm takes it for none of them, so they are told by their order
    assert [part.aliases[1] for part in parts] == [f"rocr:{number}" for number in range(count)]
    assert devices[machine.gpu(1)].aliases[-1] == f"rocr:{machine.gpu(1)}"


def test_parts_that_have_numbers_of_their_own_are_called_by_them(tmp_path):
    machine = AmdMachine(tmp_path, gpus=1)
    machine.divide(0, "DPX")
    nodes = "devices/virtual/kfd/kfd/topology/nodes"
    path = Path(machine.tree.sys, nodes, "2", "properties")
    path.write_text(path.read_text().replace(str(int(machine.unique_id(0), 16)), str(0xABC)))
    driver = machine.driver()
    devices = found(driver)
    assert devices[f"{machine.gpu(0)}/part-1"].aliases[1] == "rocr:GPU-0000000000000abc"


def test_a_gpu_without_a_number_is_known_by_its_place(tmp_path):
    machine = AmdMachine(tmp_path, unique=False)
    gpus = found(machine.driver())
    assert list(gpus) == ["n0/pci/0000:03:00.0", "n0/pci/0000:13:00.0"]
    assert [gpu.aliases[-1] for gpu in gpus.values()] == ["rocr:0", "rocr:1"]
    assert all(gpu.why_absent("uuid") is Absence.NOT_REPORTED for gpu in gpus.values())


def test_two_gpus_of_one_number_are_two_gpus(tmp_path):
    machine = AmdMachine(tmp_path)
    machine.write(1, "unique_id", machine.unique_id(0))
    assert list(found(machine.driver())) == [machine.gpu(0), "n0/pci/0000:13:00.0"]


def test_a_gpu_that_rocm_does_not_see_is_shown_and_not_leased(tmp_path):
    machine = AmdMachine(tmp_path)
    machine.tree.remove("class/kfd")
    driver = machine.driver()
    gpus = found(driver)
    assert len(gpus) == 2
    for gpu in gpus.values():
        assert not gpu.allocatable
        assert gpu.why_absent("gfx_target") is Absence.NOT_REPORTED
        with pytest.raises(Unsupported, match="KFD"):
            driver.open(gpu.id, _Open(), Deadline.after(SOON))


def test_a_gpu_that_another_driver_has_is_not_ours(tmp_path):
    machine = AmdMachine(tmp_path)
    path = machine.path(1)
    machine.tree.folder("bus/pci/drivers/vfio-pci")
    machine.tree.remove(f"{path}/driver")
    machine.tree.link(f"{path}/driver", "bus/pci/drivers/vfio-pci")
    uevent = Path(machine.tree.sys, path, "uevent")
    uevent.write_text(uevent.read_text().replace("DRIVER=amdgpu", "DRIVER=vfio-pci"))
    assert list(found(machine.driver())) == [machine.gpu(0)]


class _Open:
    lease, fence = "x", 1

    def check(self):
        return None


def test_a_recorded_machine_is_looked_at_and_not_leased(tmp_path):
    machine = AmdMachine(tmp_path)
    driver = machine.driver(live=False)
    gpus = found(driver)
    assert len(gpus) == 2
    assert not any(gpu.allocatable for gpu in gpus.values())
    assert list(driver.sample(list(gpus), Deadline.after(SOON))) == []
    with pytest.raises(Unsupported, match="a machine that this is not"):
        driver.open(machine.gpu(0), _Open(), Deadline.after(SOON))


FREE_TEXTS = ("model", "serial", "vbios_version")
BREAKS = ("remove", "garbage", "unreadable", "fifo", "empty", "strange")


def _break(tree: FakeTree, how: str, path: str) -> None:
    match how:
        case "empty":
            tree.write(path, b"")
        case "strange":
            tree.write(path, "§$% -17 of ???")
        case _:
            getattr(tree, how)(path)


@pytest.mark.parametrize("how", BREAKS)
def test_what_one_file_does_not_tell_costs_nothing_else(tmp_path, how):
    """Every file of a GPU, broken in turn: each fact is as before, is absent with a reason, or has another source."""
    machine = AmdMachine(tmp_path)
    driver = machine.driver()
    well = found(driver)
    top = Path(machine.tree.sys, machine.path(0))
    kfd = Path(machine.tree.sys, "devices/virtual/kfd/kfd/topology/nodes/1")
    spared = {"uevent", "vendor", "device", "class", "config", "revision", "dev"}
    files = [p for base in (top, kfd) for p in sorted(base.rglob("*")) if p.is_file() and not p.is_symlink()]
    files = [path for path in files if path.name not in spared and "subsystem" not in path.name]
    assert len(files) >= 45
    for path in files:
        before = path.read_bytes()
        name = os.path.relpath(path, machine.tree.sys)
        _break(machine.tree, how, name)
        gpus = found(driver)
        # what KFD tells of the way to the broken one is the other's link
        assert gpus[machine.gpu(1)].attributes == well[machine.gpu(1)].attributes, name
        assert machine.gpu(0) in gpus, f"{name}: {list(gpus)}"
        gpu = gpus[machine.gpu(0)]
        for field, attribute in well[machine.gpu(0)].attributes.items():
            now = gpu.attributes.get(field)
            if now is None:
                assert field.startswith(("ras_", "retired_", "compute_part", "memory_part", "xgmi")), (name, field)
                continue
            assert now.source, (name, field)
            if attribute.known and now != attribute and field not in FREE_TEXTS:
                honest = now.absent is not None or now.source != attribute.source
                assert honest or field.startswith("ras"), (name, field)
        assert not [c for c in gpu.conditions if c.severity in ("fatal", "critical")], (name, gpu.conditions)
        path.unlink(missing_ok=True)
        path.write_bytes(before)
        path.chmod(0o644)
    assert found(driver) == well, "and all is as before when it is whole again"


@pytest.mark.parametrize("how", BREAKS)
def test_telemetry_goes_on_without_one_file(tmp_path, how):
    machine = AmdMachine(tmp_path, gpus=1)
    driver = machine.driver()
    found(driver)
    handle = driver.open(machine.gpu(0), _Open(), Deadline.after(SOON))
    well = handle.telemetry()
    assert {name for name, attribute in well.items() if not attribute.known} == {
        "pcie_received_bytes",
        "pcie_sent_bytes",
    }
    for name in ("gpu_busy_percent", "mem_info_vram_used", "pp_dpm_sclk", "pcie_replay_count", "gpu_metrics"):
        _break(machine.tree, how, f"{machine.path(0)}/{name}")
        told = handle.telemetry()
        assert set(told) == set(well)
        lost = [field for field in told if well[field].known and not told[field].known]
        assert lost, name
        assert all(told[field].absent is not None for field in lost)
    assert told["power_watts"].value == 350.0
    assert told["temperature_celsius"].value == 61.0


def test_a_gpu_that_does_not_answer_lets_the_others_be_found(tmp_path):
    import threading

    from hal_amd.lookout import look_at

    machine = AmdMachine(tmp_path)
    release = threading.Event()

    def look(tree, card):
        if card.address == machine.address(0):
            release.wait(SOON)
        return look_at(tree, card)

    driver = machine.driver()
    driver.lookout._look = look
    try:
        gpus = {d.id: d for d in driver.discover(Deadline.after(2)).devices}
        assert [c.type for c in gpus[machine.gpu(0)].conditions] == ["NoAnswer"]
        assert gpus[machine.gpu(0)].health == "unknown"
        assert gpus[machine.gpu(1)].conditions == ()
        again = driver.sample(list(gpus), Deadline.after(SOON))
        assert [(c.device, c.type) for c in again] == [(machine.gpu(0), "NoAnswer")], "it is not asked a second time"
    finally:
        release.set()
    deadline = Deadline.after(SOON)
    while driver.sample([machine.gpu(0)], Deadline.after(SOON)):
        deadline.check(during="waiting for the GPU that answers again")


@pytest.mark.parametrize(
    ("make", "cause", "word"),
    [
        (lambda machine: machine.tree.remove("bus"), Cause.NO_HARDWARE, "1002"),
        (lambda machine: machine.tree.remove("bus/pci/drivers/amdgpu"), Cause.NO_DRIVER, "modprobe amdgpu"),
        (lambda machine: None, Cause.READY, ""),
    ],
)
def test_readiness_is_one_line(tmp_path, make, cause, word):
    machine = AmdMachine(tmp_path)
    make(machine)
    readiness = machine.driver().readiness()
    assert readiness.cause is cause
    line = f"{readiness.detail}; {readiness.remedy}"
    assert word in line
    assert "\n" not in line
    assert "Traceback" not in line


def test_a_machine_without_such_a_gpu_says_so(tmp_path):
    """This one, whatever it is, as a user runs it."""
    driver = AmdDriver((HostRoot(node="here"),), {"XDG_RUNTIME_DIR": str(tmp_path)})
    readiness = driver.readiness()
    if not readiness.ready:
        assert readiness.detail
        assert readiness.remedy
        assert driver.discover(Deadline.after(SOON)).devices == ()


def test_an_unknown_device_is_not_found(tmp_path):
    with pytest.raises(DeviceNotFound):
        AmdMachine(tmp_path).driver().sample(["GPU-0"], Deadline.after(SOON))


def test_nothing_is_touched_when_the_plugin_registers():
    import hal_amd

    (factory,) = hal_amd.hal_drivers()
    assert any(match.fits_pci("1002", "74a1", "120000") for match in factory.matches)
    assert factory.create(Context(hosts=(), environ={})).discover(Deadline.after(1)).devices == ()
