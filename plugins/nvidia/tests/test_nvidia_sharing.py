"""MIG, MPS and time slices: each for itself, and never two of them on one GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from hal.drivers.contract import Cause, Grant
from hal.drivers.guard import OpenGuard
from hal.errors import DeviceBusy, DeviceNotFound, InvalidArgument, NotReady, Unsupported, UsageError
from hal.export.environment import environment
from hal.interfaces.deadline import Deadline
from hal.model.kind import Kind
from hal.model.lease import AllocatedDevice
from hal_nvidia import hal_exporters
from hal_nvidia.sharing import SHARING, Sharing, SharingMode, parse
from plugins.nvidia.tests.nvidia_machines import SOON, NvidiaMachine, devices_of


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvidiaMachine:
    return NvidiaMachine("dgx-h100", tmp_path, monkeypatch)


def allocated(device_id: str, *aliases: str) -> AllocatedDevice:
    return AllocatedDevice(
        id=device_id, kind=Kind.GPU, name="g", node="n", driver="nvidia", vendor="NVIDIA", aliases=aliases
    )


def test_a_plan_names_modes_for_one_gpu_and_for_all_others() -> None:
    plan = parse({SHARING: "GPU-a=time-slice:2; mps:4,threads=50,memory=8GiB; GPU-b=exclusive"})
    assert plan.of("GPU-a") == Sharing(mode=SharingMode.TIME_SLICE, shares=2)
    assert plan.of("GPU-b") == Sharing()
    rest = plan.of("GPU-c")
    assert (rest.mode, rest.shares, rest.thread_percent, rest.memory_bytes) == (SharingMode.MPS, 4, 50, 8 << 30)
    assert not parse({}).of("GPU-a").shared


@pytest.mark.parametrize(
    "text", ["mps", "mps:1", "mps:99", "mig:2", "time-slice:2,threads=5", "mps:2,threads=0", "mps:x", "exclusive:2"]
)
def test_a_plan_that_makes_no_sense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=SHARING) as caught:
        parse({SHARING: text})
    assert "mps:4" in str(caught.value.hint)


def test_a_wrong_plan_is_one_line_of_readiness(machine: NvidiaMachine) -> None:
    readiness = machine.driver(**{SHARING: "mig:2"}).readiness()
    assert readiness.cause is Cause.BROKEN
    assert "mig:2" in readiness.detail


def test_time_slices_are_leases_on_one_gpu_and_the_gpu_is_not_leased_whole(machine: NvidiaMachine) -> None:
    gpu = machine.uuids[0]
    driver = machine.driver(**{SHARING: f"{gpu}=time-slice:3"})
    found = devices_of(driver)
    shares = [device for device in found.values() if device.parent == gpu]
    assert [device.name for device in shares] == ["gpu0-share0", "gpu0-share1", "gpu0-share2"]
    assert not found[gpu].allocatable
    assert all(device.allocatable and device.value("memory_isolated") is False for device in shares)
    assert found[machine.uuids[1]].allocatable
    with pytest.raises(Unsupported, match="shared"):
        driver.prepare(gpu, Grant(lease="a", fence=1), Deadline.after(SOON))
    for number, share in enumerate(shares):
        driver.prepare(share.id, Grant(lease=f"l{number}", fence=1), Deadline.after(SOON))
        with driver.open(share.id, OpenGuard(), Deadline.after(SOON)) as opened:
            assert opened.telemetry()["power_watts"].known
            assert opened.environment == {"CUDA_VISIBLE_DEVICES": gpu}
            with pytest.raises(Unsupported):
                opened.set_power_limit(None)
        driver.unprepare(share.id, Grant(lease=f"l{number}", fence=1), Deadline.after(SOON))
    with pytest.raises(DeviceNotFound):
        driver.prepare(f"{gpu}/share-3", Grant(lease="a", fence=1), Deadline.after(SOON))


def test_a_share_of_mps_needs_its_daemon_and_tells_its_bounds(machine: NvidiaMachine, tmp_path: Path) -> None:
    pipes = tmp_path / "pipes"
    driver = machine.driver(**{SHARING: "mps:4", "CUDA_MPS_PIPE_DIRECTORY": str(pipes)})
    share = f"{machine.uuids[0]}/share-1"
    devices = devices_of(driver)
    total = devices[machine.uuids[0]].capacity["memory_bytes"]
    assert devices[share].capacity["memory_bytes"] == total // 4
    with pytest.raises(NotReady) as caught:
        driver.prepare(share, Grant(lease="a", fence=1), Deadline.after(SOON))
    assert "nvidia-cuda-mps-control -d" in str(caught.value.hint)
    pipes.mkdir()
    (pipes / "control").touch()
    driver.prepare(share, Grant(lease="a", fence=1), Deadline.after(SOON))
    with driver.open(share, OpenGuard(), Deadline.after(SOON)) as opened:
        assert opened.environment == {
            "CUDA_VISIBLE_DEVICES": machine.uuids[0],
            "CUDA_MPS_PIPE_DIRECTORY": str(pipes),
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={total // 4 >> 20}M",
        }


def test_a_lease_exports_what_its_shares_need_and_nothing_for_whole_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARING, "GPU-a=mps:2,memory=4GiB")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    (exporter,) = hal_exporters()
    found = environment([allocated("GPU-a/share-1", "uuid:GPU-a/share-1")], exporters=[exporter])
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert found["CUDA_MPS_PIPE_DIRECTORY"] == "/tmp/nvidia-mps"
    assert found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=4096M"
    assert exporter.environment([allocated("GPU-b", "uuid:GPU-b")]) == {}


def test_mig_and_shares_are_never_mixed(machine: NvidiaMachine) -> None:
    gpu = machine.uuids[0]
    machine.add_reset_tool()
    plain = machine.driver()
    devices_of(plain)
    shared = machine.driver(**{SHARING: f"{gpu}=time-slice:2"})
    with pytest.raises(DeviceBusy, match="MIG is never mixed"):
        shared.set_partitioning(gpu, True)
    plain.set_partitioning(gpu, True)
    plain.reset(gpu).wait(Deadline.after(60))
    found = shared.discover(Deadline.after(SOON))
    assert [device.id for device in found.devices if device.parent == gpu] == []
    assert not next(device for device in found.devices if device.id == gpu).allocatable
    assert any("leased in neither" in problem.detail for problem in found.problems)
    with pytest.raises(Unsupported, match="never mixed"):
        shared.prepare(f"{gpu}/share-0", Grant(lease="a", fence=1), Deadline.after(SOON))


def divided(machine: NvidiaMachine):
    machine.add_reset_tool()
    driver = machine.driver()
    gpu = machine.uuids[0]
    driver.set_partitioning(gpu, True)
    driver.reset(gpu).wait(Deadline.after(60))
    return driver, gpu


def test_partitions_go_where_they_are_told_and_nowhere_else(machine: NvidiaMachine) -> None:
    driver, gpu = divided(machine)
    profiles = {profile.name: profile for profile in driver.partition_profiles(gpu)}
    assert profiles["1g.10gb"].placements == (0, 1, 2, 3, 4, 5, 6)
    assert profiles["3g.40gb"].memory_slices == 4
    made = driver.create_partition(gpu, "3g.40gb", 4).wait(Deadline.after(SOON))
    assert (made.start, made.compute_slices, made.memory_slices) == (4, 3, 4)
    with pytest.raises(DeviceBusy):
        driver.create_partition(gpu, "7g.80gb").wait(Deadline.after(SOON))
    with pytest.raises(DeviceBusy):
        driver.create_partition(gpu, "1g.10gb", 5).wait(Deadline.after(SOON))
    with pytest.raises(InvalidArgument):
        driver.create_partition(gpu, "3g.40gb", 1).wait(Deadline.after(SOON))
    with pytest.raises(InvalidArgument) as caught:
        driver.create_partition(gpu, "9g.90gb").wait(Deadline.after(SOON))
    assert "1g.10gb" in str(caught.value.hint)
    small = driver.create_partition(gpu, "1g.10gb").wait(Deadline.after(SOON))
    assert small.start == 0, "the first place that is free"
    assert [partition.id for partition in driver.partitions(gpu)] == [small.id, made.id]
    with pytest.raises(DeviceBusy):
        driver.set_partitioning(gpu, False)
    driver.destroy_partition(gpu, small.id).wait(Deadline.after(SOON))
    with pytest.raises(DeviceNotFound):
        driver.destroy_partition(gpu, small.id).wait(Deadline.after(SOON))
    assert [partition.id for partition in driver.partitions(gpu)] == [made.id]


def test_a_partition_is_a_child_that_shares_its_gpus_fate(machine: NvidiaMachine) -> None:
    driver, gpu = divided(machine)
    made = driver.create_partition(gpu, "2g.20gb").wait(Deadline.after(SOON))
    child = devices_of(driver)[made.id]
    assert (child.parent, child.name, child.value("mig_profile")) == (gpu, f"gpu0-mig{made.start}", "2g.20gb")
    driver.prepare(made.id, Grant(lease="a", fence=1), Deadline.after(SOON))
    with driver.open(made.id, OpenGuard(), Deadline.after(SOON)) as part:
        told = part.telemetry()
        total = told["memory_total_bytes"].value
        assert isinstance(total, int)
        assert 0 <= total - made.memory_bytes < 1 << 20, "NVML gives the size of a partition in whole MiB"
        assert told["power_watts"].absent == "unsupported"
        with pytest.raises(Unsupported):
            part.partitions()
    assert child.capacity == {"memory_bytes": made.memory_bytes}


def test_a_board_without_mig_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = NvidiaMachine("bluefield-host", tmp_path, monkeypatch)
    driver = machine.driver()
    found = devices_of(driver)
    device = next(device for device in found.values() if device.why_absent("mig_mode") == "unsupported")
    with pytest.raises(Unsupported):
        driver.partition_profiles(device.id)
