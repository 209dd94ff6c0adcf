"""An opened GPU tells what it measures, lets itself be limited, divided and reset, and is taken back whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hal.drivers.contract import Context, Grant, HostRoot, Resets
from hal.drivers.guard import GuardPages, OpenGuard
from hal.errors import (
    AccessDenied,
    DeadlineExceeded,
    DeviceBusy,
    DeviceGone,
    HardwareFault,
    InvalidArgument,
    LeaseEnded,
    Unsupported,
)
from hal.export.environment import environment
from hal.interfaces.deadline import Deadline
from hal.interfaces.gpu import Ancestor, EccCounts, Gpu, GpuProcess, PeerAccess
from hal.model.attributes import Absence
from hal.model.health import Action
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice
from hal_amd.resetting import ResettingAmdDriver
from hal_amd.visible import exported
from plugins.amd.tests.amd_trees import MEMORY_BYTES, AmdMachine, metrics_table

SOON = 20.0
OTHER = 4_000_000  # above every pid that Linux gives


@pytest.fixture
def machine(tmp_path):
    return AmdMachine(tmp_path)


@pytest.fixture
def driver(machine):
    return machine.driver()


def opened(driver, device_id):
    return driver.open(device_id, OpenGuard(), Deadline.after(SOON))


def test_telemetry_has_the_units_it_names(machine, driver):
    told = {name: a.value for name, a in opened(driver, machine.gpu(0)).telemetry().items()}
    assert told == {
        "gpu_utilization_percent": 42,
        "memory_utilization_percent": 7,
        "memory_used_bytes": 1 << 30,
        "memory_total_bytes": MEMORY_BYTES,
        "memory_free_bytes": MEMORY_BYTES - (1 << 30),
        "power_watts": 350.0,
        "power_limit_watts": 750.0,
        "energy_joules": 16.0,
        "temperature_celsius": 61.0,
        "memory_temperature_celsius": 55.0,
        "sm_clock_hz": 2_085_000_000,
        "sm_max_clock_hz": 2_100_000_000,
        "memory_clock_hz": 1_300_000_000,
        "memory_max_clock_hz": 1_300_000_000,
        "clock_event_reasons": (),
        "pcie_speed_gts": 32.0,
        "pcie_max_speed_gts": 32.0,
        "pcie_width": 16,
        "pcie_max_width": 16,
        "pcie_replays": 3,
        "pcie_received_bytes": None,
        "pcie_sent_bytes": None,
        "recovery_action": Action.NONE,
    }


def test_newer_kernels_have_the_power_of_now_alone(machine, driver):
    machine.tree.remove(f"{machine.hwmon(0)}/power1_average")
    machine.tree.write(f"{machine.hwmon(0)}/power1_input", 123_000_000)
    assert opened(driver, machine.gpu(0)).telemetry()["power_watts"].value == 123.0


def test_reasons_and_recovery_are_told(machine, driver):
    machine.write(0, "gpu_metrics", metrics_table(status=1 << 36))
    machine.write(0, "ras/umc_err_count", "ue: 1\nce: 0")
    told = opened(driver, machine.gpu(0)).telemetry()
    assert told["clock_event_reasons"].value == ("sw-thermal-slowdown",)
    assert told["recovery_action"].value is Action.DRAIN_RESET


def test_a_part_is_told_its_memory_and_not_the_gpus(machine):
    machine.divide(0, "DPX")
    machine.compute(OTHER, 0, 5 << 30, part=1)
    driver = machine.driver()
    one, other = (opened(driver, f"{machine.gpu(0)}/part-{part}") for part in (0, 1))
    assert one.telemetry()["memory_total_bytes"].value == MEMORY_BYTES // 2
    assert one.memory_info().used_bytes == 0
    assert other.memory_info().used_bytes == 5 << 30
    assert other.telemetry()["power_watts"].absent is Absence.UNSUPPORTED
    assert one.processes() == []


def test_who_computes_is_who_holds_memory_or_a_queue(machine, driver):
    machine.compute(OTHER, 0, 7 << 20)
    machine.compute(OTHER + 1, 1, 0, queue=True)
    assert opened(driver, machine.gpu(0)).processes() == [
        GpuProcess(pid=OTHER, name=f"prog-{OTHER}", memory_bytes=7 << 20)
    ]
    assert [p.pid for p in opened(driver, machine.gpu(1)).processes()] == [OTHER + 1]


def test_peers_are_reached_over_xgmi(machine, driver):
    (peer,) = opened(driver, machine.gpu(0)).peers()
    assert (peer.device, peer.nvlinks, peer.access) == (machine.gpu(1), 1, PeerAccess.OK)
    assert peer.ancestor is Ancestor.HOST_BRIDGE


def test_a_way_that_is_not_listed_is_not_known(tmp_path):
    machine = AmdMachine(tmp_path, xgmi=False)
    (peer,) = opened(machine.driver(), machine.gpu(0)).peers()
    assert (peer.nvlinks, peer.access) == (0, PeerAccess.UNKNOWN)


def test_errors_are_counted_by_place(machine, driver):
    machine.write(0, "ras/gpu_vram_bad_pages", "".join(f"0x{page:x} : 0x1000 : R\n" for page in range(5)))
    gpu = opened(driver, machine.gpu(0))
    ecc = gpu.ecc()
    assert ecc.mode.current
    assert ecc.volatile == {"dram": EccCounts(corrected=2), "gfx": EccCounts()}
    assert ecc.aggregate["dram"].uncorrected == 5, "each page was retired for an error at least"
    assert gpu.retired_pages().retired == 5


def test_a_board_without_ras_has_no_counts(machine, driver):
    machine.tree.remove(f"{machine.path(0)}/ras")
    gpu = opened(driver, machine.gpu(0))
    for verb in (gpu.ecc, gpu.retired_pages):
        with pytest.raises(Unsupported):
            verb()


def test_a_power_limit_that_may_not_be_set_is_refused(machine, driver):
    gpu = opened(driver, machine.gpu(0))
    path = Path(machine.tree.sys, machine.hwmon(0), "power1_cap")
    assert gpu.set_power_limit(500.0).watts == 500.0
    assert path.read_text() == "500000000"
    if os.getuid() != 0:  # root writes where nobody may
        path.chmod(0o444)
        with pytest.raises(AccessDenied):
            gpu.set_power_limit(600.0)
    machine.tree.remove(f"{machine.hwmon(0)}/power1_cap_default")
    with pytest.raises(Unsupported):
        gpu.power_limit()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        ("EACCES", AccessDenied),
        ("EBUSY", DeviceBusy),
        ("EINVAL", InvalidArgument),
        ("EOPNOTSUPP", Unsupported),
        ("ENODEV", DeviceGone),
        ("EIO", HardwareFault),
    ],
)
def test_what_the_kernel_refuses_is_an_error_with_a_way_on(number, kind):
    import errno

    from hal_amd.writing import refusal

    code = getattr(errno, number)
    error = refusal(OSError(code, os.strerror(code)), "writing CPX", "GPU-1", "set_compute_partition")
    assert type(error) is kind
    assert error.hint
    assert os.strerror(code) in error.message


def test_a_gpu_is_not_given_on_while_somebody_computes(machine, driver):
    grant = Grant(lease="x", fence=1)
    driver.prepare(machine.gpu(0), grant, Deadline.after(SOON))
    machine.compute(OTHER, 0)
    with pytest.raises(DeviceBusy, match=str(OTHER)):
        driver.unprepare(machine.gpu(0), grant, Deadline.after(0.2))
    driver.unprepare(machine.gpu(1), grant, Deadline.after(SOON))
    machine.end(OTHER)
    driver.unprepare(machine.gpu(0), grant, Deadline.after(SOON))


def test_this_process_does_not_hinder_itself(machine, driver):
    machine.compute(os.getpid(), 0)
    driver.unprepare(machine.gpu(0), Grant(lease="x", fence=1), Deadline.after(SOON))


def test_a_lost_gpu_is_refused_and_let_go(machine, driver):
    gpu = opened(driver, machine.gpu(0))
    machine.compute(OTHER, 0)
    machine.fall_off(0)
    with pytest.raises(DeviceGone):
        gpu.telemetry()
    with pytest.raises(DeviceGone):
        driver.prepare(machine.gpu(0), Grant(lease="x", fence=1), Deadline.after(SOON))
    driver.unprepare(machine.gpu(0), Grant(lease="x", fence=1), Deadline.after(SOON))
    assert opened(driver, machine.gpu(1)).telemetry()["power_watts"].known


def test_the_whole_of_a_divided_gpu_is_not_leased(machine):
    machine.divide(0, "DPX")
    driver = machine.driver()
    with pytest.raises(Unsupported, match="part"):
        driver.prepare(machine.gpu(0), Grant(lease="x", fence=1), Deadline.after(SOON))


# reset


def test_a_reset_is_offered_where_debugfs_can_be_looked_into(machine, driver):
    assert isinstance(driver, Resets)
    machine.tree.remove("kernel/debug")
    assert not isinstance(machine.driver(), Resets)


def test_a_reset_that_fails_says_what_the_driver_said(machine, driver):
    assert isinstance(driver, ResettingAmdDriver)
    machine.tree.write("kernel/debug/dri/1/amdgpu_gpu_recover", -110)
    with pytest.raises(HardwareFault) as caught:
        driver.reset(machine.gpu(0)).wait(Deadline.after(SOON))
    assert caught.value.code == -110


def test_a_reset_never_hits_another_gpu(machine, driver):
    machine.tree.write("kernel/debug/dri/1/name", "amdgpu dev=0000:99:00.0 unique=0000:99:00.0")
    with pytest.raises(Unsupported, match=machine.address(0)):
        driver.reset(machine.gpu(0)).wait(Deadline.after(SOON))


def test_a_hive_is_reset_together_so_nobody_may_compute_in_it(machine, driver):
    driver.discover(Deadline.after(SOON))
    machine.compute(OTHER, 1)
    with pytest.raises(DeviceBusy) as caught:
        driver.reset(machine.gpu(0)).wait(Deadline.after(SOON))
    assert caught.value.device == machine.gpu(1)


def test_a_reset_that_hangs_ends_with_its_deadline_and_the_others_go_on(machine, driver):
    machine.tree.fifo("kernel/debug/dri/1/amdgpu_gpu_recover")
    driver.discover(Deadline.after(SOON))
    with pytest.raises(DeadlineExceeded):
        driver.reset(machine.gpu(0), deadline=Deadline.after(0.3)).wait(Deadline.after(SOON))
    found = driver.sample([machine.gpu(0), machine.gpu(1)], Deadline.after(SOON))
    assert [(c.device, c.type) for c in found] == [(machine.gpu(0), "NoAnswer")]
    fifo = Path(machine.root, "sys/kernel/debug/dri/1/amdgpu_gpu_recover")
    fifo.write_text("0\n")  # the kernel answers at last, and the thread that was left behind ends
    deadline = Deadline.after(SOON)
    while driver.sample([machine.gpu(0)], Deadline.after(SOON)):
        deadline.check(during="waiting for the GPU that answers again")


# dividing


def test_a_gpu_is_divided_and_made_whole(machine, driver):
    assert driver.compute_partitions(machine.gpu(0)) == ("SPX", "DPX", "QPX", "CPX")
    driver.set_compute_partition(machine.gpu(0), "DPX").wait(Deadline.after(SOON))
    mode = Path(machine.tree.sys, machine.path(0), "current_compute_partition")
    assert mode.read_text() == "DPX"
    machine.divide(0, "DPX")  # as the kernel does in that call
    parts = driver.set_compute_partition(machine.gpu(0), "DPX").wait(Deadline.after(SOON))
    assert parts == (f"{machine.gpu(0)}/part-0", f"{machine.gpu(0)}/part-1")


def test_a_mode_that_there_is_not_and_a_gpu_in_use_are_refused(machine, driver):
    with pytest.raises(InvalidArgument, match="XPX"):
        driver.set_compute_partition(machine.gpu(0), "XPX")
    machine.compute(OTHER, 0)
    with pytest.raises(DeviceBusy):
        driver.set_compute_partition(machine.gpu(0), "CPX").wait(Deadline.after(SOON))
    machine.tree.remove(f"{machine.path(1)}/current_compute_partition")
    driver.discover(Deadline.after(SOON))
    with pytest.raises(Unsupported):
        driver.compute_partitions(machine.gpu(1))


# computing is for others


def test_the_array_namespace_says_why_there_is_none(machine, driver):
    gpu = opened(driver, machine.gpu(0))
    assert isinstance(gpu, Gpu)
    with pytest.raises(Unsupported, match="ROCR_VISIBLE_DEVICES"):
        gpu.xp.zeros(3)
    assert gpu.kernel_languages == ()
    assert gpu.environment == {"ROCR_VISIBLE_DEVICES": machine.gpu(0)}


def test_verbs_that_are_not_there_end_with_the_lease_all_the_same(machine, driver, tmp_path):
    pages = GuardPages(tmp_path / "guards")
    pages.grant(machine.gpu(0), 7)
    gpu = driver.open(machine.gpu(0), pages.guard(machine.gpu(0), "x", 7), Deadline.after(SOON))
    verbs = {
        "allocate": lambda: gpu.allocate(1),
        "copy_to_device": lambda: gpu.copy_to_device([1]),
        "copy_to_host": lambda: gpu.copy_to_host(None),
        "copy_peer": lambda: gpu.copy_peer(None, None),
        "stream": gpu.stream,
        "synchronize": gpu.synchronize,
        "load_kernel": lambda: gpu.load_kernel("x"),
        "launch": lambda: gpu.launch(None, 1, 1),
        "set_ecc": lambda: gpu.set_ecc(True),
        "row_remapping": gpu.row_remapping,
        "partitioning": gpu.partitioning,
        "set_partitioning": lambda: gpu.set_partitioning(True),
        "partition_profiles": gpu.partition_profiles,
        "partitions": gpu.partitions,
        "create_partition": lambda: gpu.create_partition("x"),
        "destroy_partition": lambda: gpu.destroy_partition("x"),
    }
    for name, verb in verbs.items():
        with pytest.raises(Unsupported) as caught:
            verb()
        assert (caught.value.device, caught.value.during) == (machine.gpu(0), name)
        assert caught.value.hint
    pages.revoke(machine.gpu(0), 7)
    others = {"xp": lambda: gpu.xp, "peers": gpu.peers, "ecc": gpu.ecc, "memory": gpu.memory_info}
    for verb in (verbs | others).values():
        with pytest.raises(LeaseEnded):
            verb()


def _allocated(device):
    return AllocatedDevice(
        id=device.id,
        kind=Kind.GPU,
        name=device.name,
        node="n0",
        driver=device.driver,
        vendor=str(device.value("vendor")),
        aliases=device.aliases,
    )


def test_a_lease_is_known_to_rocm(machine):
    machine.divide(1, "DPX")
    devices = [d for d in machine.driver().discover(Deadline.after(SOON)).devices if d.allocatable]
    leased = [_allocated(device) for device in devices]
    assert exported(leased) == {"ROCR_VISIBLE_DEVICES": f"{machine.gpu(0)},1,2"}
    assert environment(leased[:1])["ROCR_VISIBLE_DEVICES"] == machine.gpu(0), "the core alone knows whole GPUs"
    assert environment(leased[:1])["CUDA_VISIBLE_DEVICES"] == ""
    assert exported([]) == {}


# AMD's library


def test_a_driver_for_several_machines_keeps_them_apart(tmp_path):
    from hal_amd.resetting import make_driver

    machines = [AmdMachine(tmp_path / name, gpus=1, unique=False) for name in ("a", "b")]
    hosts = tuple(HostRoot(node=f"n{number}", root=one.root) for number, one in enumerate(machines))
    driver = make_driver(Context(hosts=hosts, environ={"XDG_RUNTIME_DIR": str(tmp_path)}))
    ids = [device.id for device in driver.discover(Deadline.after(SOON)).devices]
    assert ids == ["n0/pci/0000:03:00.0", "n1/pci/0000:03:00.0"]
    machines[1].fall_off(0)
    assert [c.device for c in driver.sample(ids, Deadline.after(SOON))] == [ids[1]]
